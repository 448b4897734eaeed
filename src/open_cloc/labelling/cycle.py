"""Cycle score: ground the phrase, embed that box, compare with the phrase.

A model that finds a phrase and then recognises it in what it found agrees with itself; where it does not, one
of the two directions is wrong, and so may be the label. Scores are cosines: compare those of one model only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torchvision.ops import box_iou

from open_cloc.labelling.checkpoint import find_checkpoint, read_model_type
from open_cloc.labelling.detectors.cloc import Grounder
from open_cloc.labelling.detectors.common import base_provenance
from open_cloc.labelling.recipe import DetectorConfig
from open_cloc.model.load import choose_device, load_model


class Cycle(NamedTuple):
    """The regions of a picture, looked for once more.

    Attributes:
        score: (N,) float32 cosine of each phrase and the box that is found for it.
        iou: (N,) float32 overlap of that box and the labelled one.
    """

    score: np.ndarray
    iou: np.ndarray


class CycleScorer:
    """Scores regions with a CLOC model.

    Args:
        weights: Folder or hub name.
        device: None takes a GPU if there is one, else the CPU.
        revision: Of the hub.

    Attributes:
        provenance: Which model it is; JSON types only.

    Raises:
        FileNotFoundError: If there are no such weights.
        ValueError: If they are not a CLOC model's.
    """

    def __init__(
        self, weights: str, device: str | torch.device | None = None, revision: str | None = None
    ) -> None:
        checkpoint = find_checkpoint(weights, revision)
        model_type = read_model_type(checkpoint)
        if model_type != "cloc":
            raise ValueError(f"cycle_weights must be a CLOC model; {weights} holds a {model_type} model")
        self.grounder = Grounder(load_model(checkpoint.folder, choose_device(device)))
        base = base_provenance(DetectorConfig(kind="cloc", weights=weights), checkpoint, "cloc")
        names = ("weights", "revision", "sha256", "torch")
        self.provenance: Mapping[str, object] = {name: base[name] for name in names}

    def __call__(
        self,
        images: Sequence[np.ndarray],
        phrases: Sequence[Sequence[str]],
        boxes: Sequence[np.ndarray],
    ) -> list[np.ndarray]:
        """(H, W, 3) uint8 pictures, the phrase and the box of each region -> (N,) scores each."""
        return [own.score for own in self.compare(images, phrases, boxes)]

    def compare(
        self,
        images: Sequence[np.ndarray],
        phrases: Sequence[Sequence[str]],
        boxes: Sequence[np.ndarray],
    ) -> list[Cycle]:
        """The same, with the overlap of both boxes.

        Args:
            images: (H, W, 3) uint8.
            phrases: N of each picture; the same phrase may occur with several boxes.
            boxes: (N, 4) normalised `xyxy` of each picture.

        Raises:
            ValueError: If there are not as many phrases as boxes.
        """
        counts = [(len(own), len(theirs)) for own, theirs in zip(phrases, boxes)]
        if not len(images) == len(phrases) == len(boxes) or any(a != b for a, b in counts):
            raise ValueError(
                f"every picture needs as many phrases as boxes; got {len(images)} pictures, {counts}"
            )
        with torch.inference_mode():
            return [self._compare(*own) for own in zip(images, phrases, boxes)]

    def _compare(self, image: np.ndarray, phrases: Sequence[str], boxes: np.ndarray) -> Cycle:
        if not len(phrases):
            return Cycle(np.zeros(0, np.float32), np.zeros(0, np.float32))
        unique = list(dict.fromkeys(phrases))
        found = self.grounder.ground(image, unique)
        index = [unique.index(phrase) for phrase in phrases]
        score = (found.regions * found.texts).sum(-1)[index]
        overlap = box_iou(found.boxes.cpu()[index], torch.as_tensor(boxes, dtype=torch.float64)).diagonal()
        return Cycle(score.float().cpu().numpy(), overlap.float().numpy())
