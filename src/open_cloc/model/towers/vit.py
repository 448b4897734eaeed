"""open_clip's own vision transformer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from open_cloc.model.towers.positions import resize_positions
from open_cloc.model.towers.tower import TowerOutput, no_grid


class VitTower:
    """Adapter of `open_clip.transformer.VisionTransformer`.

    Raises:
        UserError: If the transformer pools with learned queries, which leaves no grid of tokens.
    """

    def __init__(self, visual: Any) -> None:
        if visual.attn_pool is not None:
            raise no_grid(visual)
        self.visual = visual

    @property
    def token_width(self) -> int:
        return self.visual.ln_post.normalized_shape[0]

    def encode(self, images: Tensor) -> TowerOutput:
        visual = self.visual
        patches = visual.conv1(images)  # (B, C, rows, columns)
        grid_size = (patches.shape[2], patches.shape[3])
        x = visual.transformer(visual.ln_pre(self._with_positions(patches, grid_size)))  # (B, 1 + N, C)
        if visual.final_ln_after_pool:
            pooled, tokens = visual._pool(x)
        else:
            pooled, tokens = visual._global_pool(visual.ln_post(x))
        if tokens.shape[1] > grid_size[0] * grid_size[1]:  # pool_type "none" keeps the class token
            tokens = tokens[:, 1:]
        return TowerOutput(self._project(pooled), tokens, grid_size)

    def _with_positions(self, patches: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """Patches (B, C, rows, columns) -> (B, 1 + N, C), the class token first."""
        visual = self.visual
        x = patches.flatten(2).transpose(1, 2)  # (B, N, C)
        x = torch.cat([visual.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1), x], dim=1)
        positions = resize_positions(visual.positional_embedding, visual.grid_size, grid_size)
        return x + positions.to(x.dtype)

    def _project(self, pooled: Tensor) -> Tensor:
        return pooled @ self.visual.proj if self.visual.proj is not None else pooled

    def project_pooled(self, pooled: Tensor) -> Tensor:
        mean = pooled.mean(1)  # (X, C)
        return self._project(self.visual.ln_post(mean) if self.visual.final_ln_after_pool else mean)

    def own_projection(self) -> Tensor | None:
        return None if self.visual.proj is None else self.visual.proj.detach().T

    def set_grad_checkpointing(self, enable: bool) -> None:
        self.visual.set_grad_checkpointing(enable)
