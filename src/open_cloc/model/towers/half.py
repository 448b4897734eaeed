"""Towers whose weights have 16 bits: float32 goes in and comes out, and the Prompter computes as ever."""

from __future__ import annotations

from torch import Tensor, dtype

from open_cloc.model.towers.tower import ImageTower, TextTokens, TextTower, TowerOutput


class HalfImageTower:
    """An image tower of 16 bits."""

    def __init__(self, tower: ImageTower, weights: dtype) -> None:
        self.tower, self.weights = tower, weights

    @property
    def token_width(self) -> int:
        return self.tower.token_width

    def encode(self, images: Tensor) -> TowerOutput:
        output = self.tower.encode(images.to(self.weights))
        return TowerOutput(output.image_features.float(), output.image_tokens.float(), output.grid_size)

    def project_pooled(self, pooled: Tensor) -> Tensor:
        return self.tower.project_pooled(pooled.to(self.weights)).float()

    def own_projection(self) -> Tensor | None:
        own = self.tower.own_projection()
        return None if own is None else own.float()

    def set_grad_checkpointing(self, enable: bool) -> None:
        self.tower.set_grad_checkpointing(enable)


class HalfTextTower:
    """A text tower of 16 bits."""

    def __init__(self, tower: TextTower) -> None:
        self.tower = tower

    @property
    def padding_id(self) -> int | None:
        return self.tower.padding_id

    def encode(self, token_ids: Tensor) -> Tensor:
        return self.tower.encode(token_ids).float()

    @property
    def packs(self) -> bool:
        return self.tower.packs

    def encode_packed(self, token_ids: Tensor, rows: Tensor) -> Tensor:
        return self.tower.encode_packed(token_ids, rows).float()

    def encode_tokens(self, token_ids: Tensor) -> TextTokens:
        output = self.tower.encode_tokens(token_ids)
        return TextTokens(output.features.float(), output.tokens.float(), output.mask)

    def set_grad_checkpointing(self, enable: bool) -> None:
        self.tower.set_grad_checkpointing(enable)
