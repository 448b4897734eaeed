"""Detectors: from a picture and its phrases to raw boxes with a score for each phrase."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from open_cloc.config import lookup
from open_cloc.devices import choose_device
from open_cloc.errors import UserError
from open_cloc.labelling.checks import check_detector
from open_cloc.labelling.hub import find_checkpoint, read_model_type
from open_cloc.labelling.recipe import AUTO, DetectorConfig
from open_cloc.labelling.types import Detector
from open_cloc.precision import decide

__all__ = ["DETECTORS", "open_detector"]

# Architecture, as its weights name it -> `module:class` of a detector made from (config, device).
DETECTORS = {
    "owlv2": "open_cloc.labelling.detectors.owl:OwlDetector",
    "owlvit": "open_cloc.labelling.detectors.owl:OwlDetector",
    "grounding-dino": "open_cloc.labelling.detectors.grounding_dino:GroundingDinoDetector",
    "mm-grounding-dino": "open_cloc.labelling.detectors.grounding_dino:GroundingDinoDetector",
    "omdet-turbo": "open_cloc.labelling.detectors.omdet_turbo:OmDetTurboDetector",
    "cloc": "open_cloc.labelling.detectors.cloc:ClocDetector",
}


def open_detector(config: DetectorConfig, device: str | torch.device | None = None) -> Detector:
    """Load a detector.

    Args:
        config: Which one, and what it keeps; its `kind` is `auto`, a key of `DETECTORS`, or
            `package.module:Name` of a callable of the same two arguments.
        device: Where it runs; None takes a GPU if there is one, else the CPU.

    Raises:
        MissingFileError: If there are no such weights.
        UserError: If they are of another kind of model than `kind` says, or a setting is out of range.
    """
    check_detector(config)
    where = choose_device(device)
    config = replace(config, precision=decide(config.precision, where))
    kind = _named_by_weights(config) if config.kind == AUTO else config.kind
    return lookup(DETECTORS, kind, "detect.kind")(config, where)


def open_scaling(config: DetectorConfig) -> Callable[[np.ndarray], np.ndarray] | None:
    """How pictures can be made smaller before a detector sees them, without a change to what it says.

    Returns:
        A function of a picture (H, W, 3) uint8; None where the detector knows of none: it says so by a static
        method `scaling(config)`.

    Raises:
        MissingFileError: If there are no such weights.
        UserError: If they are of another kind of model than `kind` says.
    """
    kind = _named_by_weights(config) if config.kind == AUTO else config.kind
    scaling = getattr(lookup(DETECTORS, kind, "detect.kind"), "scaling", None)
    return None if scaling is None else scaling(config)


def _named_by_weights(config: DetectorConfig) -> str:
    kind = read_model_type(find_checkpoint(config.weights, config.revision))
    if kind not in DETECTORS:
        known = ", ".join(sorted(DETECTORS))
        raise UserError(f"{config.weights} holds a {kind} model; a detector is one of {known}")
    return kind
