"""What tests of several areas share: models of a few milliseconds, and pictures of noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from open_cloc.model.cloc import CLOC
from open_cloc.model.create import ModelConfig, build_model
from open_cloc.model.prompter import PrompterConfig

TOWERS: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32},
    "text_cfg": {"width": 32, "heads": 2, "layers": 2, "context_length": 16},
}

PROMPTERS = {
    "mean": PrompterConfig(),
    "prompt": PrompterConfig(
        readout="prompt", patch_positions=True, box_prior=True, box_content="none", pooled_residual=True
    ),
    "roialign": PrompterConfig(regions="roialign"),
}

# Pixels of a picture of 50 x 90.
BOXES = [[0, 0, 10, 20], [5.5, 3, 60, 40], [0, 0, 90, 50]]


def tiny_model(prompter: str = "prompt", **changes: Any) -> CLOC:
    """A seeded model with one of `PROMPTERS`; changes are to open_clip's config."""
    torch.manual_seed(0)
    return build_model(ModelConfig(towers=TOWERS | changes, prompter=PROMPTERS[prompter])).eval()


def picture(height: int = 50, width: int = 90, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 of noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
