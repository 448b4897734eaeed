"""What detectors share: opening their checkpoints, and what each says of itself."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from open_cloc.errors import UserError
from open_cloc.labelling.hub import Checkpoint, find_checkpoint, load_safetensors, read_model_type
from open_cloc.labelling.recipe import DetectorConfig
from open_cloc.model.foreign import open_safely


def open_checkpoint(
    config: DetectorConfig, architectures: Collection[str], any_image_size: bool = False
) -> tuple[Checkpoint, str]:
    """Find a detector's checkpoint and its architecture.

    Args:
        config: Names the weights.
        architectures: What the detector can open.
        any_image_size: Whether it takes pictures of another size than its checkpoint says.

    Raises:
        MissingFileError: If there are no such weights.
        UserError: If they are of another architecture, or a size is asked for that the detector cannot take.
    """
    checkpoint = find_checkpoint(config.weights, config.revision)
    own = read_model_type(checkpoint)
    if own not in architectures:
        raise UserError(
            f"{config.weights} holds a {own} model; detect.kind {config.kind} is for "
            f"{', '.join(sorted(architectures))}"
        )
    if config.image_size and not any_image_size:
        raise UserError(f"detect.image_size is for OWL models; {config.weights} holds a {own} model")
    return checkpoint, own


def load_transformers(checkpoint: Checkpoint, device: torch.device) -> tuple[Any, Any]:
    """Open transformers' zero-shot detector, in float32, and its tokenizer; errors as `load_safetensors`."""
    from transformers import AutoModelForZeroShotObjectDetection, AutoTokenizer

    model = load_safetensors(AutoModelForZeroShotObjectDetection, checkpoint)
    return model.float().to(device).eval(), open_safely(AutoTokenizer, checkpoint.folder)


def read_config(checkpoint: Checkpoint) -> Any:
    """transformers' config of a checkpoint, without its weights."""
    from transformers import AutoConfig

    return open_safely(AutoConfig, checkpoint.folder)


def base_provenance(config: DetectorConfig, checkpoint: Checkpoint, kind: str) -> dict[str, Any]:
    """What every detector says of itself; `kind` is `transformers` for models of that library, or `cloc`."""
    import transformers

    return {
        "kind": kind,
        "weights": config.weights,
        "revision": checkpoint.revision,
        "sha256": checkpoint.sha256,
        "prompt": config.prompt,
        "raw_score": config.raw_score,
        "max_boxes": config.max_boxes,
        "precision": config.precision,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
