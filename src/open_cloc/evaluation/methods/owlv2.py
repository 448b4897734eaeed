"""OWLv2 of transformers: a box has the class embedding of the patch whose own box is nearest to it.

So the detector itself reads a box that it is given as an example ("image-guided" detection).

Shapes: R regions of one image, N patches, D shared embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou

from open_cloc.boxes import convert_boxes
from open_cloc.evaluation.batches import EvaluationBatch
from open_cloc.evaluation.method import Setup
from open_cloc.evaluation.methods.hf_clip import HfClipMethod, open_foreign
from open_cloc.precision import computing_in


class Owlv2Method(HfClipMethod):
    """As `HfClipMethod`, but that boxes are read from the detector's answer to the whole picture."""

    name_of_method, auto_class = "owlv2", "Owlv2ForObjectDetection"
    logit_scale = None  # each patch has one of its own

    @property
    def towers(self) -> Any:
        """The CLIP inside the detector."""
        return self.model.owlv2

    def embed_regions(self, batch: EvaluationBatch, boxes: Sequence[np.ndarray]) -> Tensor:
        """Boxes of each picture of a batch -> (sum of R, D) float32 of unit length."""
        rows = [self._nothing()]
        for sample, own in zip(batch.samples, boxes):
            if len(own):
                rows.append(self._read(sample.pixels(), own))
        return torch.cat(rows)

    def _read(self, pixels: np.ndarray, boxes: np.ndarray) -> Tensor:
        """Boxes (R, 4), normalised `xyxy` of a picture -> (R, D)."""
        inputs = self.processor(images=[Image.fromarray(pixels)], return_tensors="pt").to(self.device)
        with computing_in(self.config.precision, self.device):
            feature_map = self.model.image_embedder(**inputs)[0]
        patches = feature_map.flatten(1, 2).float()  # (1, N, width)
        _, embedded = self.model.class_predictor(patches)
        found = convert_boxes(self.model.box_predictor(patches, feature_map.float())[0], "cxcywh")
        # The processor pads below and at the right to a square.
        sides = np.array(pixels.shape[1::-1] * 2) / max(pixels.shape[:2])
        asked = torch.from_numpy(boxes * sides).to(found)
        overlaps = box_iou(asked, found)  # (R, N)
        apart = torch.cdist(_centres(asked), _centres(found))
        nearest = torch.where(overlaps.amax(1) > 0, overlaps.argmax(1), apart.argmin(1))
        return F.normalize(embedded[0, nearest].float(), dim=-1)


def _centres(boxes: Tensor) -> Tensor:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def open_owlv2(what: str, setup: Setup, *, lower_case: bool = True) -> Owlv2Method:
    """An OWLv2 of transformers.

    Args:
        what: Its folder or hub id.
        setup: How to measure, and where.
        lower_case: Lower-case its texts.

    Raises:
        UserError: If it is another model, or damaged.
        MissingFileError: If it is not there.
    """
    return open_foreign(Owlv2Method, what, setup, lower_case, ("owlv2",))
