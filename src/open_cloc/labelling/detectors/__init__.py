"""Detectors: from a picture and its phrases to raw boxes with a score for each phrase."""

from __future__ import annotations

from collections.abc import Callable

import torch

from open_cloc.labelling.detectors import grounding_dino, owl
from open_cloc.labelling.detectors.checkpoint import (
    Checkpoint,
    check_config,
    find_checkpoint,
    read_model_type,
)
from open_cloc.labelling.detectors.cloc import ClocDetector
from open_cloc.labelling.recipe import DetectorConfig
from open_cloc.labelling.types import Detector
from open_cloc.model.load import choose_device

KINDS = ("transformers", "cloc")
# By transformers' name of the architecture.
TRANSFORMERS: dict[str, Callable[[DetectorConfig, Checkpoint, torch.device], Detector]] = {
    **dict.fromkeys(owl.TYPES, owl.OwlDetector),
    **dict.fromkeys(grounding_dino.TYPES, grounding_dino.GroundingDinoDetector),
}


def open_detector(config: DetectorConfig, device: str | torch.device | None = None) -> Detector:
    """Load a detector.

    Args:
        config: Which one, and what it keeps.
        device: None takes a GPU if there is one, else the CPU.

    Raises:
        FileNotFoundError: If there are no such weights.
        ValueError: If they are of another kind of model than `kind` says, or a setting is out of range.
    """
    check_config(config)
    if config.kind not in KINDS:
        raise ValueError(f"unknown detect.kind {config.kind!r}; expected one of {', '.join(KINDS)}")
    target = choose_device(device)
    checkpoint = find_checkpoint(config.weights, config.revision)
    model_type = read_model_type(checkpoint)
    _check_type(model_type, config, checkpoint)
    if config.kind == "cloc":
        return ClocDetector(config, checkpoint, target)
    return TRANSFORMERS[model_type](config, checkpoint, target)


def _check_type(model_type: str, config: DetectorConfig, checkpoint: Checkpoint) -> None:
    known = {"cloc"} if config.kind == "cloc" else set(TRANSFORMERS)
    if model_type in known:
        return
    hint = "; set detect.kind to cloc" if model_type == "cloc" else ""
    raise ValueError(
        f"{config.weights} holds a {model_type} model; a detector of kind {config.kind} is one of "
        f"{', '.join(sorted(known))}{hint}"
    )
