"""Points as prompts: they cover the patches that they lie in, with the code of the box around them.

No parameters of its own: every trained CLOC answers points. One that was trained with some
(`data.loader.points`) takes a point for the thing that it lies on.

Shapes: B images, R prompts per image, P points of each, N image tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from open_cloc.boxes import grid_cells
from open_cloc.model.prompter import PrompterConfig
from open_cloc.model.prompts import PromptedImage, PromptTokens


class PointsPrompt(nn.Module):
    """The tokens of the tight box, with the coverage of the patches that hold a point."""

    def __init__(self, width: int, embed_dim: int, config: PrompterConfig) -> None:
        super().__init__()

    def forward(self, points: Tensor, image: PromptedImage, kinds: Mapping[str, Any]) -> PromptTokens:
        """Points -> their tokens.

        Args:
            points: (B, R, P, 2) normalised `xy` of the canvas; a prompt of fewer points repeats one.
            image: The B images that they lie on.
            kinds: All kinds by name; the box's code is borrowed.
        """
        boxes = torch.cat([points.amin(2), points.amax(2)], dim=-1)  # (B, R, 4)
        return replace(
            kinds["box"](boxes, image, kinds), coverage=hit_cells(points, image.grid_size), pooled=None
        )


def hit_cells(points: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """Which cells of a grid hold one of P points (B, R, P, 2): (B, R, N), 1 or 0."""
    cells = grid_cells(grid_size, points.device)  # (N, 4)
    inside = points[..., None, :].clamp(
        0, 1 - 1e-6
    )  # (B, R, P, 1, 2): the last edge belongs to the last cell
    hits = ((inside >= cells[:, :2]) & (inside < cells[:, 2:])).all(-1)
    return hits.any(2).to(points.dtype)
