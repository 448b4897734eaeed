"""Detectors: from a picture and its phrases to raw boxes with a score for each phrase."""

from __future__ import annotations

import torch

from open_cloc.config import import_object
from open_cloc.errors import UserError
from open_cloc.labelling.detectors.canvas import OWL_SIZES
from open_cloc.labelling.detectors.common import check_config
from open_cloc.labelling.hub import Checkpoint, find_checkpoint, read_model_type
from open_cloc.labelling.recipe import DetectorConfig
from open_cloc.labelling.types import Detector
from open_cloc.model.load import choose_device

KINDS = ("transformers", "cloc")
_HERE = "open_cloc.labelling.detectors"
# transformers' name of the architecture, or `cloc` -> `module:class`. Imported only when used.
DETECTORS = {
    "owlv2": f"{_HERE}.owl:OwlDetector",
    "owlvit": f"{_HERE}.owl:OwlDetector",
    "grounding-dino": f"{_HERE}.grounding_dino:GroundingDinoDetector",
    "mm-grounding-dino": f"{_HERE}.grounding_dino:GroundingDinoDetector",
    "cloc": f"{_HERE}.cloc:ClocDetector",
}


def open_detector(config: DetectorConfig, device: str | torch.device | None = None) -> Detector:
    """Load a detector.

    Args:
        config: Which one, and what it keeps; its `kind` is one of `KINDS`, or `package.module:Name` of a
            callable of the same two arguments.
        device: None takes a GPU if there is one, else the CPU.

    Raises:
        MissingFileError: If there are no such weights.
        UserError: If they are of another kind of model than `kind` says, or a setting is out of range.
    """
    check_config(config)
    if ":" in config.kind:
        return import_object(config.kind, "detector")(config, device)
    if config.kind not in KINDS:
        raise UserError(f"unknown detect.kind {config.kind!r}; expected one of {', '.join(KINDS)}")
    target = choose_device(device)
    checkpoint = find_checkpoint(config.weights, config.revision)
    model_type = read_model_type(checkpoint)
    _check_type(model_type, config, checkpoint)
    if config.image_size and model_type not in OWL_SIZES:
        raise UserError(f"detect.image_size is for OWL models; {config.weights} holds a {model_type} model")
    return import_object(DETECTORS[model_type], "detector")(config, checkpoint, target)


def _check_type(model_type: str, config: DetectorConfig, checkpoint: Checkpoint) -> None:
    known = {"cloc"} if config.kind == "cloc" else DETECTORS.keys() - {"cloc"}
    if model_type in known:
        return
    hint = "; set detect.kind to cloc" if model_type == "cloc" else ""
    raise UserError(
        f"{config.weights} holds a {model_type} model; a detector of kind {config.kind} is one of "
        f"{', '.join(sorted(known))}{hint}"
    )
