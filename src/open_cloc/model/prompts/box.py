"""Boxes as prompts: sinusoidal codes of two corners, and RoIAlign for those who want no attention.

Shapes: B images, R boxes per image, N image tokens, K tokens per prompt, C width of the Prompter's layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from open_cloc.boxes import denormalize_boxes, grid_cells, overlap_fraction
from open_cloc.errors import UserError
from open_cloc.model.prompter import PrompterConfig
from open_cloc.model.prompts import PromptedImage, PromptTokens

TOKENS_PER_BOX = 2  # top-left and bottom-right corner

# Rows and columns of RoIAlign's samples, the field's usual number.
ROI_SIZE = 7


class PositionCode(nn.Module):
    """Sinusoidal code of points with random frequencies, as in Segment Anything's prompt encoder.

    The frequencies are drawn once and saved with the weights.
    """

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        if width % 2:
            raise UserError(f"the position code needs an even width; got {width}")
        self.register_buffer("frequencies", torch.randn(2, width // 2))

    def forward(self, points: Tensor) -> Tensor:
        """Points (..., 2) as (x, y) in [0, 1] -> (..., C)."""
        # bfloat16 would round a place to 1 / 256 of the image.
        with torch.autocast(points.device.type, enabled=False):
            angles = 2 * math.pi * ((2 * points.float() - 1) @ self.frequencies.float())
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class BoxPrompt(nn.Module):
    """Two tokens per box: the codes of its corners, each marked as first or second (the paper's Prompter)."""

    def __init__(self, width: int, embed_dim: int, config: PrompterConfig) -> None:
        super().__init__()
        self.position = PositionCode(width)
        self.corner = nn.Parameter(torch.randn(TOKENS_PER_BOX, width) * 0.02)
        self.carries_code = config.box_content == "code"
        self.pools = config.regions == "roialign"
        self.covers = config.box_prior or config.pooled_residual

    def forward(self, boxes: Tensor, image: PromptedImage, kinds: Mapping[str, Any]) -> PromptTokens:
        """Boxes (B, R, 4) normalised `xyxy` of the canvas -> their tokens."""
        code = self.code(boxes)
        coverage = None
        if self.covers:
            coverage = overlap_fraction(boxes.float(), grid_cells(image.grid_size, boxes.device))
        pooled = pool_boxes(image.tower_tokens, image.grid_size, boxes).mean(-2) if self.pools else None
        return PromptTokens(code, code if self.carries_code else None, coverage, pooled)

    def code(self, boxes: Tensor) -> Tensor:
        """Boxes (B, R, 4) normalised `xyxy` -> (B, R, K, C)."""
        corners = boxes.unflatten(-1, (TOKENS_PER_BOX, 2))  # (B, R, K, 2)
        return self.position(corners) + self.corner


def pool_boxes(tokens: Tensor, grid_size: tuple[int, int], boxes: Tensor, size: int = ROI_SIZE) -> Tensor:
    """RoIAlign of image tokens (torchvision's, `aligned=True`).

    Args:
        tokens: (B, N, width) image tokens.
        grid_size: (rows, columns) of the N tokens.
        boxes: (B, R, 4) normalised `xyxy` of the canvas.
        size: Bins a side.

    Returns:
        (B, R, size * size, width), the bins of each box, row by row.
    """
    rows, columns = grid_size
    feature_map = tokens.transpose(1, 2).unflatten(2, (rows, columns)).float()  # (B, width, rows, columns)
    cells = denormalize_boxes(boxes.float(), grid_size)
    pooled = roi_align(feature_map, list(cells), output_size=size, aligned=True)  # (B * R, width, size, size)
    return pooled.flatten(2).transpose(1, 2).unflatten(0, boxes.shape[:2]).to(tokens.dtype)
