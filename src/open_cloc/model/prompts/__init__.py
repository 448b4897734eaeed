"""What a prompt becomes before it meets the image: tokens, and the share of each patch that it covers.

A kind of prompt is one file here and one line in `PROMPTS`. The Prompter knows `PromptTokens` and no kind.

Shapes: B images, R prompts per image, N image tokens, K tokens per prompt, C width of the Prompter's layer,
D shared embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from open_cloc.model.prompt_layer import ImageTerms, select

# Each is called with (C, D, the Prompter's config) and makes a module that is a `PromptKind`. They are made
# in this order, which decides what random numbers a new model starts from: a new kind goes to the end.
PROMPTS = {
    "box": "open_cloc.model.prompts.box:BoxPrompt",
    "text": "open_cloc.model.prompts.text:TextPrompt",
    "mask": "open_cloc.model.prompts.mask:MaskPrompt",
    "points": "open_cloc.model.prompts.points:PointsPrompt",
    "boxes": "open_cloc.model.prompts.boxes:BoxesPrompt",
}


@dataclass(frozen=True)
class PromptTokens:
    """Prompts as the Prompter reads them.

    Attributes:
        ask: (B, R, K, C) what the tokens put into their query and key, beside their content; the same tensor
            as `content` where a token asks with what it carries.
        content: (B, R, K, C) what the tokens carry into their value and their output. None takes the
            Prompter's learned blank token, which it has under `box_content="none"`: then the prompt is in the
            question and nowhere else.
        coverage: (B, R, N) share of each patch that the prompt covers, in [0, 1]; None for prompts that have
            no place in the image, or where the Prompter asks for none.
        pooled: (B, R, tower width) image tokens as the kind pools them; None takes the mean of the tower's
            tokens under the coverage.
    """

    ask: Tensor
    content: Tensor | None = None
    coverage: Tensor | None = None
    pooled: Tensor | None = None


@dataclass(frozen=True)
class PromptedImage:
    """What the Prompter needs of an image, computed once and shared by all of its prompts.

    Attributes:
        tower_tokens: (B, N, tower width) image tokens as they come.
        layer: What the Prompter's layer has made of them.
        grid_size: Rows and columns of the N tokens.
    """

    tower_tokens: Tensor
    layer: ImageTerms
    grid_size: tuple[int, int]

    def select(self, index: Tensor | slice) -> PromptedImage:
        """The same for some of the images."""
        return select(self, index)


class PromptKind(Protocol):
    """Turns what a user gives into tokens."""

    def __call__(self, given: Tensor, image: PromptedImage, kinds: Mapping[str, Any]) -> PromptTokens:
        """Make tokens.

        Args:
            given: (B, R, ...) prompts; what stands behind R is the kind's own affair.
            image: The B images that they are asked of.
            kinds: All kinds by name: one may speak through another's parameters.
        """
        ...
