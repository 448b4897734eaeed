"""The Prompter: one transformer layer that turns image tokens and a prompt into an embedding (METHOD 3).

Shapes: B images, R prompts per image, N image tokens, K tokens per prompt, C tower width, D shared embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from open_cloc.boxes import convert_boxes, denormalize_boxes, grid_cells, overlap_fraction
from open_cloc.errors import UserError
from open_cloc.model.prompt_layer import ImageTerms, PromptLayer, select
from open_cloc.model.prompts import BoxPrompt, TextPrompt

ROI_SIZE = 7  # RoIAlign's output grid, the field's usual value
PROMPTS_AT_ONCE = 256  # without gradients, so that memory does not grow with the number of prompts


@dataclass(frozen=True)
class PrompterConfig:
    """How prompts are read out of image tokens. The defaults are the paper's reading.

    Attributes:
        regions: `prompter`, or `roialign`: region embeddings pooled by RoIAlign, without attention (the
            paper's ablation, row 9). Phrases are grounded by the Prompter either way.
        readout: `mean` over all of the layer's outputs (the paper), or `prompt`: the prompt tokens' outputs
            only, so that one more region costs next to nothing.
        patch_positions: Add each patch centre's sinusoidal code to the keys.
        box_prior: Add `a * log(overlap of patch and box + eps)` to a box prompt's attention; a, eps learned.
        box_content: What a box prompt carries besides its question: its `code` (the paper), or `none`: a
            learned token, so that a box's place cannot be learned by heart.
        pooled_residual: Add the projected mean of the image tokens under the box to a region's embedding. The
            layer's own projection starts at zero: training starts as RoI pooling and learns what to add.
        width: Of the layer; 0 takes the tower's. For convolutional towers, whose last map is very wide.
        mlp_ratio: Hidden width of the layer's MLP over the layer's width.
        dropout: On the attention's and the MLP's output, during training.
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


@dataclass(frozen=True)
class PromptedImage:
    """What the Prompter needs of an image, computed once and shared by all of its prompts.

    Attributes:
        tower_tokens: (B, N, tower width) image tokens as they come.
        layer: The layer's share.
        grid_size: Rows and columns of the N tokens.
    """

    tower_tokens: Tensor
    layer: ImageTerms
    grid_size: tuple[int, int]

    def select(self, index: Tensor | slice) -> PromptedImage:
        """The same for some of the images."""
        return select(self, index)


class Prompter(nn.Module):
    """Prompts, one transformer layer with its pooler, and projections to an embedding and to a box.

    The final LayerNorm stands after the pooling, which lets the `mean` read-out be factored exactly.
    """

    def __init__(self, tower_width: int, embed_dim: int, config: PrompterConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width or tower_width
        self.enter = nn.Linear(tower_width, width) if config.width else nn.Identity()
        self.box_prompt = BoxPrompt(width)
        self.text_prompt = TextPrompt(embed_dim, width)
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
            mask: (B, N) True where a token sees the picture; all by default.
        """
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        mask = mask | ~mask.any(1, keepdim=True)  # a canvas without a picture counts as one
        positions = None
        if self.config.patch_positions:
            cells = grid_cells(grid_size, tokens.device)
            positions = self.box_prompt.position((cells[:, :2] + cells[:, 2:]) / 2)  # (N, C)
        return PromptedImage(tokens, self.layer.prepare(self.enter(tokens), mask, positions), grid_size)

    def embed_boxes(self, image: PromptedImage, boxes: Tensor) -> Tensor:
        """Region embeddings: boxes (B, R, 4) normalised `xyxy` of the canvas -> (B, R, D)."""
        return _in_parts(self._embed_boxes, image, boxes)

    def _embed_boxes(self, image: PromptedImage, boxes: Tensor) -> Tensor:
        if self.config.regions == "roialign":
            return self.project_pooled(pool_boxes(image.tower_tokens, image.grid_size, boxes).mean(-2))
        code = self.box_prompt(boxes)  # (B, R, K, C)
        content = code if self.config.box_content == "code" else self.box_token.expand_as(code)
        cells = grid_cells(image.grid_size, boxes.device)
        overlap = overlap_fraction(boxes.float(), cells)  # (B, R, N)
        prior = None
        if self.config.box_prior:
            weight = F.softplus(self.prior_weight) / math.log(2)
            prior = weight * (overlap + self.prior_log_eps.exp()).log()
        embedding = self.project(self.norm_out(self.layer(image.layer, code, content, prior)))
        if not self.config.pooled_residual:
            return embedding
        kept = F.dropout(torch.ones_like(embedding[..., :1]), self.config.layer_drop, self.training)
        return self.project_pooled(_mean_under(image, overlap)) + kept * embedding

    def ground(self, image: PromptedImage, text_features: Tensor) -> Tensor:
        """The box of each phrase: (B, R, D) text features -> (B, R, 4) normalised `xyxy` of the canvas."""
        return _in_parts(self._ground, image, text_features)

    def _ground(self, image: PromptedImage, text_features: Tensor) -> Tensor:
        prompt = self.text_prompt(text_features)  # (B, R, 1, C)
        pooled = self.norm_out(self.layer(image.layer, prompt, prompt, None))  # (B, R, C)
        cxcywh = self.box_head(pooled).float().sigmoid()
        return convert_boxes(cxcywh, "cxcywh")


def _in_parts(
    run: Callable[[PromptedImage, Tensor], Tensor], image: PromptedImage, prompts: Tensor
) -> Tensor:
    """Run prompts (B, R, ...), a bounded number at once where no gradient keeps all of them anyway."""
    if torch.is_grad_enabled() or prompts.shape[1] <= PROMPTS_AT_ONCE:
        return run(image, prompts)
    return torch.cat([run(image, part) for part in prompts.split(PROMPTS_AT_ONCE, dim=1)], dim=1)


def _mean_under(image: PromptedImage, overlap: Tensor) -> Tensor:
    """Mean of the tower's tokens weighted by overlap (B, R, N), padding left out: (B, R, tower width).

    A box that covers nothing of the picture gets the whole picture's mean: an embedding of zero could not be
    normalised, and its gradient would drown all others.
    """
    weights = (overlap + 1e-8) * image.layer.mask[:, None]
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)
    return weights.to(image.tower_tokens.dtype) @ image.tower_tokens


def pool_boxes(tokens: Tensor, grid_size: tuple[int, int], boxes: Tensor) -> Tensor:
    """RoIAlign of image tokens (torchvision's, `aligned=True`).

    Args:
        tokens: (B, N, C).
        grid_size: (rows, columns) of the N tokens.
        boxes: (B, R, 4) normalised `xyxy`.

    Returns:
        (B, R, 49, C), the 7 x 7 samples of each box, row by row.
    """
    rows, columns = grid_size
    feature_map = tokens.transpose(1, 2).unflatten(2, (rows, columns)).float()  # (B, C, rows, columns)
    cells = denormalize_boxes(boxes.float(), grid_size)
    pooled = roi_align(feature_map, list(cells), output_size=ROI_SIZE, aligned=True)  # (B * R, C, 7, 7)
    return pooled.flatten(2).transpose(1, 2).unflatten(0, boxes.shape[:2]).to(tokens.dtype)
