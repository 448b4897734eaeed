"""Phrases as prompts: what the text tower makes of one, projected to the width of the Prompter's layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from open_cloc.model.prompter import PrompterConfig
from open_cloc.model.prompts import PromptedImage, PromptTokens


class TextPrompt(nn.Module):
    """One token per phrase: its pooled and projected CLIP text feature, mapped to the layer's width.

    It is both the question and what the token carries, and it has no place in the image.
    """

    def __init__(self, width: int, embed_dim: int, config: PrompterConfig) -> None:
        super().__init__()
        self.project = nn.Linear(embed_dim, width)

    def forward(self, features: Tensor, image: PromptedImage, kinds: Mapping[str, Any]) -> PromptTokens:
        """Text features (B, R, D) of any length -> their tokens, one each."""
        code = self.code(features)
        return PromptTokens(code, code)

    def code(self, features: Tensor) -> Tensor:
        """Text features (B, R, D) of any length -> (B, R, 1, C)."""
        # Unit vectors times sqrt(D) have entries of size 1, what a linear layer is initialised for.
        scaled = F.normalize(features, dim=-1) * features.shape[-1] ** 0.5
        return self.project(scaled).unsqueeze(-2)
