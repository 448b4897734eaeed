"""Masks as prompts: they cover what they cover, and speak through the code of the box around them.

No parameters of its own: every trained CLOC answers masks. A mask that fills a box is that box.

Shapes: B images, R masks per image, N image tokens, H W pixels of the canvas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from open_cloc.model.prompter import PrompterConfig
from open_cloc.model.prompts import PromptedImage, PromptTokens


class MaskPrompt(nn.Module):
    """The tokens of the tight box, with the mask's own coverage."""

    def __init__(self, width: int, embed_dim: int, config: PrompterConfig) -> None:
        super().__init__()

    def forward(self, masks: Tensor, image: PromptedImage, kinds: Mapping[str, Any]) -> PromptTokens:
        """Masks -> their tokens.

        Args:
            masks: (B, R, H, W) of the canvas, or (B, R, N) of the patches: bool, or the share of each pixel
                or patch that is covered, in [0, 1].
            image: The B images that they lie on.
            kinds: All kinds by name; the box's code is borrowed.
        """
        masks = masks.float()
        if masks.ndim == 3:
            masks = masks.unflatten(-1, image.grid_size)
        coverage = shares_of_patches(masks, image.grid_size)
        return replace(kinds["box"](tight_boxes(masks), image, kinds), coverage=coverage, pooled=None)


def shares_of_patches(masks: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """How much of each patch is covered: masks (..., H, W) on any grid of the canvas -> (..., N).

    By area, also where patches end within a mask's cells.
    """
    rows, columns = (
        _shares(cells, patches, masks.device) for cells, patches in zip(masks.shape[-2:], grid_size)
    )
    with torch.autocast(masks.device.type, enabled=False):  # areas are not the tower's numbers
        return (rows @ masks @ columns.T).flatten(-2)


def _shares(cells: int, patches: int, device: torch.device) -> Tensor:
    """(patches, cells): which share of a patch's side each cell fills, both in a row along the same side."""
    edges = torch.arange(patches + 1, device=device) * (cells / patches)
    firsts = torch.arange(cells, device=device)
    filled = torch.minimum(edges[1:, None], firsts + 1) - torch.maximum(edges[:-1, None], firsts)
    return filled.clamp(min=0) * (patches / cells)


def tight_boxes(masks: Tensor) -> Tensor:
    """The boxes around masks (B, R, H, W): (B, R, 4) normalised `xyxy`.

    Exact to a fraction of a pixel where the mask fills a box that ends within pixels. An empty mask has no
    box; what stands there is finite.
    """
    x1, x2 = _ends(masks.amax(-2))
    y1, y2 = _ends(masks.amax(-1))
    return torch.stack([x1, y1, x2, y2], dim=-1)


def _ends(profile: Tensor) -> tuple[Tensor, Tensor]:
    """Where what is covered begins and ends, in [0, 1], of shares (B, R, L) of L pixels in a row."""
    length = profile.shape[-1]
    covered = (profile > 0).to(torch.uint8)
    first = covered.argmax(-1)  # (B, R)
    last = length - 1 - covered.flip(-1).argmax(-1)
    gaps = [1 - profile.gather(-1, end[..., None])[..., 0] for end in (first, last)]
    side = torch.where(first == last, 0.5, 1.0)  # within a single pixel, the middle of it
    return (first + side * gaps[0]) / length, (last + 1 - side * gaps[1]) / length
