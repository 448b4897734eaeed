"""Several boxes as one prompt: they cover what any of them covers, with the code of the box around all.

No parameters of its own: every trained CLOC answers them, and one box alone is that box.

Shapes: B images, R prompts per image, P boxes of each, N image tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from open_cloc.boxes import grid_cells, overlap_fraction
from open_cloc.model.prompter import PrompterConfig
from open_cloc.model.prompts import PromptedImage, PromptTokens


class BoxesPrompt(nn.Module):
    """The tokens of the box around them, with the coverage of all."""

    def __init__(self, width: int, embed_dim: int, config: PrompterConfig) -> None:
        super().__init__()

    def forward(self, boxes: Tensor, image: PromptedImage, kinds: Mapping[str, Any]) -> PromptTokens:
        """Sets of boxes -> their tokens.

        Args:
            boxes: (B, R, P, 4) normalised `xyxy` of the canvas; a prompt of fewer boxes repeats one.
            image: The B images that they lie on.
            kinds: All kinds by name; the box's code is borrowed.
        """
        around = torch.cat([boxes[..., :2].amin(2), boxes[..., 2:].amax(2)], dim=-1)  # (B, R, 4)
        cells = grid_cells(image.grid_size, boxes.device)
        coverage = overlap_fraction(boxes.float(), cells).amax(2)  # (B, R, N)
        return replace(kinds["box"](around, image, kinds), coverage=coverage, pooled=None)
