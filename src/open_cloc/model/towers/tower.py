"""What CLOC asks of an image tower and of a text tower, and what a choice of both comes to.

Shapes: B images, N image tokens, S samples of one region, X regions, C tower width, D shared embedding,
H W pixels, U texts, T text tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from open_cloc.canvas import OPENAI_MEAN, OPENAI_STD
from open_cloc.errors import UserError

# Mean, standard deviation and interpolation where nothing else is known.
OPENAI_CANVAS: Mapping[str, Any] = {"mean": OPENAI_MEAN, "std": OPENAI_STD, "interpolation": "bicubic"}


@dataclass(frozen=True)
class TowerOutput:
    """An image tower's two products.

    Attributes:
        image_features: (B, D) pooled and projected, exactly the wrapped tower's output.
        image_tokens: (B, N, C) before pooling and projection, after the tower's last norm.
        grid_size: (rows, columns) of the N tokens.
    """

    image_features: Tensor
    image_tokens: Tensor
    grid_size: tuple[int, int]


class ImageTower(Protocol):
    """An image tower of any kind."""

    @property
    def token_width(self) -> int:
        """C, the width of the image tokens."""

    def encode(self, images: Tensor) -> TowerOutput:
        """Run the tower once.

        Args:
            images: (B, 3, H, W), normalised by the tower's mean and standard deviation.

        Raises:
            UserError: If the tower takes no images of this size, or gives no grid of tokens.
        """

    def project_pooled(self, pooled: Tensor) -> Tensor:
        """The tower's own pooling and projection, applied to the tokens of regions: (X, S, C) -> (X, D).

        This is how a plain CLIP embeds a region from its feature map, with S = 49 samples of RoIAlign.
        """

    def own_projection(self) -> Tensor | None:
        """The linear map from C to D as a (D, C) matrix, or None where the tower ends in something else."""

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Recompute activations in the backward pass, or not; warns where the tower cannot."""


@dataclass(frozen=True)
class TextTokens:
    """Texts and their tokens, projected alike.

    Attributes:
        features: (U, D) features of the whole texts, exactly what the tower gives without tokens.
        tokens: (U, T, D) features of the tokens.
        mask: (U, T) True for the text's own tokens: no padding, no start or end mark.
    """

    features: Tensor
    tokens: Tensor
    mask: Tensor


class TextTower(Protocol):
    """A text tower of any kind."""

    @property
    def padding_id(self) -> int | None:
        """The token that the tower may be spared, or None where padding reaches the feature."""

    def encode(self, token_ids: Tensor) -> Tensor:
        """Token ids (U, T) -> (U, D). T may be shorter than the context where that is exact."""

    @property
    def packs(self) -> bool:
        """Whether it encodes several texts in a row, each by itself."""

    def encode_packed(self, token_ids: Tensor, rows: Tensor) -> Tensor:
        """What `encode` gives, of one pass over rows of `pack_texts`; only where the tower `packs`."""

    def encode_tokens(self, token_ids: Tensor) -> TextTokens:
        """Token ids (U, T) -> the same features and those of the tokens, of one pass."""

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Recompute activations in the backward pass, or not."""


def leave_untrained(model: Any) -> None:
    """The starting weights of towers that are trained from scratch: those drawn when they were built."""


@dataclass(frozen=True)
class StartingTowers:
    """What a choice of towers (`open_clip:ViT-B-16,pretrained=openai`) comes to.

    Attributes:
        model_cfg: open_clip's config of both towers.
        canvas: What they expect of a picture: mean, standard deviation and interpolation; all of a
            `CanvasConfig` for a whole CLOC.
        load: Called with the new CLOC, puts the starting weights into it.
        is_clip: The weights come from one CLIP, so that regions may start with its image projection.
        prompter: The Prompter's config, if the choice is a whole CLOC and not only towers.
        texts: How its texts are cleaned, likewise.
    """

    model_cfg: dict[str, Any]
    canvas: Mapping[str, Any]
    load: Callable[[Any], None] = leave_untrained
    is_clip: bool = False
    prompter: Mapping[str, Any] | None = None
    texts: Mapping[str, Any] | None = None


def no_grid(visual: nn.Module) -> UserError:
    """The error for an image tower that regions cannot use."""
    return UserError(
        f"image tower {type(visual).__name__} gives no grid of image tokens that regions could use"
    )
