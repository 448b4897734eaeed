"""The paper's Prompter: one transformer layer that turns image tokens and a prompt into an embedding.

Shapes: B images, R prompts per image, N image tokens, K tokens per prompt, C tower width, D shared embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from open_cloc.boxes import convert_boxes, grid_cells
from open_cloc.config import lookup
from open_cloc.errors import UserError
from open_cloc.model.prompt_layer import PromptLayer
from open_cloc.model.prompts import PROMPTS, PromptedImage, PromptTokens

# Without gradients no more prompts run at once, so that memory does not grow with their number.
PROMPTS_AT_ONCE = 256

BLIND = (
    "this Prompter sees outlines and several boxes as the box around them (no box_prior, no pooled_residual)"
)


@dataclass(frozen=True)
class PrompterConfig:
    """How prompts are read out of image tokens. The defaults are the paper's reading.

    Attributes:
        regions: `prompter`, or `roialign`: region embeddings pooled by RoIAlign, without attention (the
            paper's ablation, row 9). Phrases are grounded by the Prompter either way.
        readout: `mean` over all of the layer's outputs (the paper), or `prompt`: the prompt tokens' outputs
            only, so that one more region costs next to nothing.
        patch_positions: Add each patch centre's sinusoidal code to the keys.
        box_prior: Add `a * log(share of the patch that the prompt covers + eps)` to the attention of boxes
            and other prompts with a place; a and eps are learned.
        box_content: What a box prompt carries besides its question: its `code` (the paper), or `none`: a
            learned token, so that a box's place cannot be learned by heart.
        pooled_residual: Add the projected mean of the image tokens under the box to a region's embedding. The
            layer's own projection starts at zero: training starts as RoI pooling and learns what to add.
        width: Width of the layer; 0 takes the tower's. For convolutional towers, whose last map is very wide.
        mlp_ratio: Hidden width of the layer's MLP over the layer's width.
        dropout: Chance that a number of the attention's or the MLP's output is dropped in training.
        layer_drop: With `pooled_residual`, the chance that a region does without the layer's part in a
            training step: pooling then stays good by itself, and the layer adds what generalises.
    """

    regions: Literal["prompter", "roialign"] = "prompter"
    readout: Literal["mean", "prompt"] = "mean"
    patch_positions: bool = False
    box_prior: bool = False
    box_content: Literal["code", "none"] = "code"
    pooled_residual: bool = False
    width: int = 0
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    layer_drop: float = 0.0

    @property
    def sees_outlines(self) -> bool:
        """Whether a mask says more than the box around it: the code knows nothing but corners."""
        return self.box_prior or self.pooled_residual or self.regions == "roialign"

    def __post_init__(self) -> None:
        choices = {
            "regions": ("prompter", "roialign"),
            "readout": ("mean", "prompt"),
            "box_content": ("code", "none"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"unknown prompter.{name} {getattr(self, name)!r}; expected one of {', '.join(allowed)}"
                )
        ranges = {"width": (0, 2**20), "mlp_ratio": (0.01, 100.0), "dropout": (0, 0.99), "layer_drop": (0, 1)}
        for name, (least, most) in ranges.items():
            if not least <= getattr(self, name) <= most:
                raise UserError(f"prompter.{name} must lie in [{least}, {most}]; got {getattr(self, name)}")


class Prompter(nn.Module):
    """Prompts, one transformer layer with its pooler, and projections to an embedding and to a box.

    The final LayerNorm stands after the pooling, which lets the `mean` read-out be factored exactly.
    """

    def __init__(self, tower_width: int, embed_dim: int, config: PrompterConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width or tower_width
        self.enter = nn.Linear(tower_width, width) if config.width else nn.Identity()
        self.prompts = nn.ModuleDict(
            {name: lookup(PROMPTS, name, "kind of prompt")(width, embed_dim, config) for name in PROMPTS}
        )
        self.layer = PromptLayer(width, config.mlp_ratio, config.dropout, config.readout)
        self.norm_out = nn.LayerNorm(width)
        self.project = nn.Linear(width, embed_dim, bias=False)
        self.box_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 4))
        if config.box_prior:
            self.prior_weight = nn.Parameter(torch.zeros(1))  # a = 1: attention starts as RoI pooling's
            self.prior_log_eps = nn.Parameter(torch.full((1,), math.log(0.01)))
        if config.box_content == "none":
            self.box_token = nn.Parameter(torch.randn(width) * 0.02)
        if config.pooled_residual or config.regions == "roialign":
            self.project_pooled = nn.Linear(tower_width, embed_dim, bias=False)
            nn.init.zeros_(self.project.weight)

    def prepare(
        self, tokens: Tensor, grid_size: tuple[int, int], mask: Tensor | None = None
    ) -> PromptedImage:
        """Do once per image all that does not depend on the prompt.

        Args:
            tokens: (B, N, tower width) image tokens before pooling and projection.
            grid_size: (rows, columns), N = rows * columns.
            mask: (B, N) True where a token sees the picture; None if all do.
        """
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        mask = mask | ~mask.any(1, keepdim=True)  # a canvas without a picture counts as one
        positions = None
        if self.config.patch_positions:
            cells = grid_cells(grid_size, tokens.device)
            # Patches and corners of boxes share one code, by which attention compares them.
            positions = self._kind("box").position((cells[:, :2] + cells[:, 2:]) / 2)  # (N, C)
        return PromptedImage(tokens, self.layer.prepare(self.enter(tokens), mask, positions), grid_size)

    def embed(self, image: PromptedImage, prompts: Mapping[str, Tensor]) -> Tensor:
        """Region embeddings of prompts.

        Args:
            image: What `prepare` made of B images.
            prompts: (B, R, ...) prompts by kind, a key of `PROMPTS`; each kind has its own R.

        Returns:
            (B, all the R together, D), kind after kind in the order given.

        Raises:
            UserError: If there is no such kind, or none is given.
        """
        return self._in_parts(self.run, image, prompts)

    def ground(self, image: PromptedImage, prompts: Mapping[str, Tensor]) -> Tensor:
        """Where the prompts are: given as to `embed`, boxes (B, R, 4) normalised `xyxy` of the canvas."""
        return self._in_parts(self.locate, image, prompts)

    def run(self, image: PromptedImage, tokens: PromptTokens) -> Tensor:
        """Tokens of R prompts an image -> region embeddings (B, R, D)."""
        if self.config.regions == "roialign":
            return self.project_pooled(_pooled(image, tokens))
        embedding = self.project(self._read(image, tokens))
        if not self.config.pooled_residual:
            return embedding
        kept = F.dropout(torch.ones_like(embedding[..., :1]), self.config.layer_drop, self.training)
        return self.project_pooled(_pooled(image, tokens)) + kept * embedding

    def locate(self, image: PromptedImage, tokens: PromptTokens) -> Tensor:
        """Tokens of R prompts an image -> boxes (B, R, 4) normalised `xyxy` of the canvas."""
        last: Any = self.box_head[-1]
        hidden = self.box_head[:-1](self._read(image, tokens))
        with torch.autocast(hidden.device.type, enabled=False):  # bfloat16 has 256 places along a side
            cxcywh = last(hidden.to(last.weight.dtype)).float().sigmoid()
        return convert_boxes(cxcywh, "cxcywh")

    def _read(self, image: PromptedImage, tokens: PromptTokens) -> Tensor:
        """The layer's pooled output: (B, R, C)."""
        content = self.box_token.expand_as(tokens.ask) if tokens.content is None else tokens.content
        return self.norm_out(self.layer(image.layer, tokens.ask, content, self._prior(tokens.coverage)))

    def _prior(self, coverage: Tensor | None) -> Tensor | None:
        """`a * log(coverage + eps)`, (B, R, N), where there is such a prior and the prompt has a place."""
        if coverage is None or not self.config.box_prior:
            return None
        weight = F.softplus(self.prior_weight) / math.log(2)
        return weight * (coverage + self.prior_log_eps.exp()).log()

    def _in_parts(
        self,
        run: Callable[[PromptedImage, PromptTokens], Tensor],
        image: PromptedImage,
        prompts: Mapping[str, Tensor],
    ) -> Tensor:
        """Run prompts, a bounded number at once where no gradient keeps all of them anyway."""
        parts = [
            run(image, self._kind(name)(part, image, self.prompts))
            for name, given in prompts.items()
            for part in ([given] if torch.is_grad_enabled() else given.split(PROMPTS_AT_ONCE, dim=1))
        ]
        if not parts:
            raise UserError(f"no prompts; expected some of {', '.join(self.prompts)}")
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _kind(self, name: str) -> Any:
        if name not in self.prompts:
            raise UserError(f"unknown kind of prompt {name!r}; expected one of {', '.join(self.prompts)}")
        return self.prompts[name]


def _pooled(image: PromptedImage, tokens: PromptTokens) -> Tensor:
    """The image's tokens as the prompt sees them: (B, R, tower width).

    A prompt that covers nothing of the picture gets the whole picture's mean: an embedding of zero could not
    be normalised, and its gradient would drown all others.
    """
    if tokens.pooled is not None:
        return tokens.pooled
    coverage = tokens.coverage
    if coverage is None:
        sizes = (*tokens.ask.shape[:2], image.tower_tokens.shape[1])
        coverage = torch.zeros(sizes, device=tokens.ask.device)
    # 1e-8 of a patch for each, in these units: ONNX Runtime takes an addition of 1e-8 for one of nothing.
    weights = (coverage * 1e8 + 1) * image.layer.mask[:, None]  # padding left out
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-4)
    return weights.to(image.tower_tokens.dtype) @ image.tower_tokens
