"""What a prompt becomes before it meets the image: sinusoidal codes for boxes, a projection for phrases.

Shapes: B images, R regions per image, K tokens per prompt, C tower width, D shared embedding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from open_cloc.errors import UserError

TOKENS_PER_BOX = 2  # top-left and bottom-right corner


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
        with torch.autocast(
            points.device.type, enabled=False
        ):  # bfloat16 rounds a place to 1 / 256 of the image
            angles = 2 * math.pi * ((2 * points.float() - 1) @ self.frequencies.float())
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class BoxPrompt(nn.Module):
    """Two tokens per box: the codes of its corners, each marked as first or second (METHOD 3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.position = PositionCode(width)
        self.corner = nn.Parameter(torch.randn(TOKENS_PER_BOX, width) * 0.02)

    def forward(self, boxes: Tensor) -> Tensor:
        """Boxes (B, R, 4) normalised `xyxy` -> (B, R, K, C)."""
        corners = boxes.unflatten(-1, (TOKENS_PER_BOX, 2))  # (B, R, K, 2)
        return self.position(corners) + self.corner


class TextPrompt(nn.Module):
    """One token per phrase: its pooled and projected CLIP text feature, mapped to the tower's width."""

    def __init__(self, embed_dim: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(embed_dim, width)

    def forward(self, text_features: Tensor) -> Tensor:
        """Text features (B, R, D) of any length -> (B, R, 1, C)."""
        # Unit vectors times sqrt(D) have entries of size 1, what a linear layer is initialised for.
        features = F.normalize(text_features, dim=-1) * text_features.shape[-1] ** 0.5
        return self.project(features).unsqueeze(-2)
