"""A CLOC model as a detector: it grounds each phrase, and says how well the box that it found fits.

Shapes: B pictures, P phrases per picture (padded), D shared embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from open_cloc.data.transforms import Geometry
from open_cloc.labelling.detectors.checkpoint import Checkpoint, base_provenance
from open_cloc.labelling.detectors.decode import keep_boxes, skip_without_phrases
from open_cloc.labelling.detectors.texts import TextCache
from open_cloc.labelling.recipe import DetectorConfig
from open_cloc.labelling.types import Detections, Failure
from open_cloc.model.cloc import CLOC, ImageState
from open_cloc.model.embed import embed_regions, embed_texts
from open_cloc.model.grounding import CANDIDATES, ground_phrases
from open_cloc.model.load import load_model


class Encoded(NamedTuple):
    """Pictures after their one pass through the tower.

    Attributes:
        geometries: Where each lies on its canvas.
        state: Of all of them.
        content_boxes: (B, 4) normalised `xyxy` of each picture on its canvas.
    """

    geometries: list[Geometry]
    state: ImageState
    content_boxes: Tensor


class Grounded(NamedTuple):
    """What was found in one picture.

    Attributes:
        boxes: (P, 4) float64 normalised `xyxy` of the picture, the box of each phrase.
        regions: (P, D) of unit length, what each box holds.
        texts: (P, D) of unit length, the phrases.
    """

    boxes: Tensor
    regions: Tensor
    texts: Tensor


class Grounder:
    """A CLOC model with a batch of pictures at a time, and phrases remembered.

    Args:
        model: In eval mode.
        dtype: `bfloat16` computes in it where that does no harm.
    """

    def __init__(self, model: CLOC, dtype: str = "float32") -> None:
        self.model = model
        self.text_cache = TextCache(lambda text: embed_texts(model, [text])[0])
        self._in_bfloat16 = dtype == "bfloat16"

    def encode(self, images: Sequence[np.ndarray]) -> Encoded:
        """(H, W, 3) uint8 pictures, at least one, of any sizes."""
        preprocess, device = self.model.preprocess, self.model.device
        geometries = [
            Geometry.fit(image.shape[:2], preprocess.image_size, preprocess.resize_mode) for image in images
        ]
        canvases = np.stack(
            [
                geometry.image(image, preprocess.fill, preprocess.interpolation)
                for geometry, image in zip(geometries, images)
            ]
        )
        pixels = torch.from_numpy(canvases).permute(0, 3, 1, 2).to(device)  # (B, 3, H, W)
        content_boxes = torch.tensor([geometry.content_box for geometry in geometries], device=device)
        with self._autocast():
            state = self.model.encode_image(pixels, content_boxes)
        return Encoded(geometries, state, content_boxes)

    def ground(self, encoded: Encoded, phrases: Sequence[Sequence[str]]) -> list[Grounded]:
        """Find the phrases of each picture, at least one, as `Predictor.ground` does."""
        with self._autocast():
            texts = [self.text_cache.get(own) for own in phrases]
            most = max(len(own) for own in texts)
            padded = torch.stack([F.pad(own, (0, 0, 0, most - len(own))) for own in texts])  # (B, P, D)
            boxes = ground_phrases(self.model, encoded.state, padded, encoded.content_boxes, CANDIDATES).boxes
            regions = embed_regions(self.model, encoded.state, boxes)
        return [
            Grounded(geometry.invert_boxes(own[: len(text)].double()), region[: len(text)], text)
            for geometry, own, region, text in zip(encoded.geometries, boxes, regions, texts)
        ]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self._in_bfloat16)


class ClocDetector:
    """A `Detector`; see `open_detector`. As many boxes as phrases: each is grounded once.

    Attributes:
        grounder: The model.
        provenance: As the protocol has it.
    """

    def __init__(self, config: DetectorConfig, checkpoint: Checkpoint, device: torch.device) -> None:
        self.config = config
        self.grounder = Grounder(load_model(checkpoint.folder, device), config.dtype)
        self.provenance: Mapping[str, object] = base_provenance(config, checkpoint, "cloc") | {
            "class": "CLOC",
            "image_size": list(self.grounder.model.preprocess.image_size),
            "candidates": CANDIDATES,
            "phrase_score": "beside the picture's surest pair"
            if self._clip.logit_bias is None
            else "sigmoid of the logit",
        }

    def __call__(
        self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]
    ) -> list[Detections | Failure]:
        return skip_without_phrases(self._detect, images, phrases)

    def _detect(
        self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]
    ) -> list[Detections | Failure]:
        asked = [[self.config.prompt.replace("{}", phrase) for phrase in own] for own in phrases]
        found = self.grounder.ground(self.grounder.encode(images), asked)
        return [keep_boxes(own.boxes, self._scores(own), self.config) for own in found]

    def _scores(self, found: Grounded) -> Tensor:
        """(P, P) in [0, 1]: how well each box fits each phrase."""
        logits = self._clip.logit_scale.exp() * (found.regions.float() @ found.texts.float().T)
        if self._clip.logit_bias is not None:  # sigmoid losses: a pair's own probability
            return (logits + self._clip.logit_bias).sigmoid()
        return relative_scores(logits)

    @property
    def _clip(self) -> Any:
        return self.grounder.model.clip


def relative_scores(logits: Tensor) -> Tensor:
    """How likely each pair of a box and a phrase is, beside the surest pair of the picture: (P, P) in [0, 1].

    A softmax model's cosines have no zero: what counts as a match differs from model to model. But phrases
    that are in the picture match about as well as the best of them, others are further below it than the
    model's temperature. `docs/labelling.md` compares this with other scores.
    """
    return (logits - logits.amax()).exp()
