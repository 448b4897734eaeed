"""What stands between CLOC and a language model: an MLP for each kind of token, and a code of places.

Shapes: N image tokens, W width of the language model's embeddings.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from open_cloc.boxes import grid_cells

OCTAVES = 6  # of the code of places: the finest tells 1/64 of a side apart


class Projector(nn.Sequential):
    """Two layers with GELU between them, as in LLaVA-1.5; towers differ in scale, so a norm stands first."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__(
            nn.LayerNorm(width_in),
            nn.Linear(width_in, width_out),
            nn.GELU(),
            nn.Linear(width_out, width_out),
        )


def place_codes(grid_size: tuple[int, int], device: torch.device) -> Tensor:
    """Sines and cosines of each patch centre's x and y, in octaves from half a wave a side: (N, 24)."""
    cells = grid_cells(grid_size, device)  # (N, 4)
    centres = (cells[:, :2] + cells[:, 2:]) / 2  # (N, 2)
    waves = math.pi * 2.0 ** torch.arange(OCTAVES, device=device)
    angles = (centres[..., None] * waves).flatten(1)  # (N, 2 * octaves)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
