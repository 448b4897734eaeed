"""What detectors share: opening transformers' ones, and what each says of itself."""

from __future__ import annotations

from typing import Any

import torch

from open_cloc.errors import UserError
from open_cloc.labelling.hub import Checkpoint, load_safetensors
from open_cloc.labelling.recipe import DetectorConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_transformers(checkpoint: Checkpoint, device: torch.device) -> tuple[Any, Any]:
    """Open transformers' zero-shot detector, in float32, and its tokenizer; errors as `load_safetensors`."""
    from transformers import AutoModelForZeroShotObjectDetection, AutoTokenizer

    model = load_safetensors(AutoModelForZeroShotObjectDetection, checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(
        checkpoint.folder, trust_remote_code=False, local_files_only=True
    )
    return model.float().to(device).eval(), tokenizer


def base_provenance(config: DetectorConfig, checkpoint: Checkpoint, kind: str) -> dict[str, Any]:
    """What every detector says of itself."""
    import transformers

    return {
        "kind": kind,
        "weights": config.weights,
        "revision": checkpoint.revision,
        "sha256": checkpoint.sha256,
        "prompt": config.prompt,
        "raw_score": config.raw_score,
        "max_boxes": config.max_boxes,
        "dtype": config.dtype,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def check_config(config: DetectorConfig) -> None:
    """Refuse what cannot be meant.

    Raises:
        UserError: On a value out of range.
    """
    if config.dtype not in DTYPES:
        raise UserError(f"detect.dtype must be one of {', '.join(DTYPES)}; got {config.dtype!r}")
    if config.prompt.count("{}") != 1:
        raise UserError(f"detect.prompt must hold {{}} once, for the phrase; got {config.prompt!r}")
    if not 0 <= config.raw_score <= 1:
        raise UserError(f"detect.raw_score must lie in [0, 1]; got {config.raw_score}")
    if config.max_boxes < 1:
        raise UserError(f"detect.max_boxes must be at least 1; got {config.max_boxes}")
    if config.image_size < 0:
        raise UserError(f"detect.image_size must be a number of pixels, or 0; got {config.image_size}")
