"""Cycle score: ground the phrase, embed that box, compare with the phrase.

A model that finds a phrase and then recognises it in what it found agrees with itself; where it does not, one
of the two directions is wrong, and so may be the label. Scores are cosines: compare those of one model only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from open_cloc.devices import choose_device
from open_cloc.errors import UserError
from open_cloc.labelling.detectors.cloc import Grounder
from open_cloc.labelling.detectors.common import base_provenance
from open_cloc.labelling.hub import find_checkpoint, read_model_type
from open_cloc.labelling.recipe import DetectorConfig
from open_cloc.model.load import load_model
from open_cloc.model.search import VERSION


class CycleScorer:
    """Scores regions with a CLOC model.

    Args:
        weights: Folder or hub id of the model.
        device: Where it runs; None takes a GPU if there is one, else the CPU.

    Attributes:
        provenance: Which model it is; JSON types only.

    Raises:
        MissingFileError: If there are no such weights.
        UserError: If they are not a CLOC model's.
    """

    def __init__(self, weights: str, device: str | torch.device | None = None) -> None:
        checkpoint = find_checkpoint(weights)
        model_type = read_model_type(checkpoint)
        if model_type != "cloc":
            raise UserError(f"cycle_weights must be a CLOC model; {weights} holds a {model_type} model")
        self.grounder = Grounder(load_model(checkpoint.folder, choose_device(device)))
        base = base_provenance(DetectorConfig(kind="cloc", weights=weights), checkpoint, "cloc")
        names = ("weights", "revision", "sha256", "torch")
        self.provenance: Mapping[str, object] = {name: base[name] for name in names} | {"grounding": VERSION}

    def __call__(self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Score each phrase of each picture.

        Args:
            images: Pictures (H, W, 3) uint8.
            phrases: The phrases of each picture, N of them, also repeated ones.

        Returns:
            The scores of each picture's phrases, (N,) float32.
        """
        with torch.inference_mode():
            return [self._score(*own) for own in zip(images, phrases, strict=True)]

    def _score(self, image: np.ndarray, phrases: Sequence[str]) -> np.ndarray:
        if not len(phrases):
            return np.zeros(0, np.float32)
        unique = list(dict.fromkeys(phrases))
        found = self.grounder.ground(image, [self.grounder.shorten(phrase)[0] for phrase in unique])
        scores = (found.regions * found.texts).sum(-1).float().cpu().numpy()
        return scores[[unique.index(phrase) for phrase in phrases]]
