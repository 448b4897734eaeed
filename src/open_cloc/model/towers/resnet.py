"""CLIP's own ResNet, which pools with attention."""

from __future__ import annotations

import logging
import math
from typing import Any

from torch import Tensor
from torch.func import functional_call

from open_cloc.model.towers.positions import resize_positions
from open_cloc.model.towers.tower import TowerOutput

logger = logging.getLogger(__name__)


class ResNetTower:
    """Adapter of `open_clip.modified_resnet.ModifiedResNet`."""

    def __init__(self, visual: Any) -> None:
        self.visual = visual

    @property
    def token_width(self) -> int:
        return self.visual.attnpool.c_proj.in_features

    def encode(self, images: Tensor) -> TowerOutput:
        visual = self.visual
        x = visual.stem(images)
        for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            x = layer(x)  # (B, C, rows, columns)
        return TowerOutput(self._pool(x), x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3]))

    def _pool(self, feature_map: Tensor) -> Tensor:
        """(B, C, rows, columns) -> (B, D), the pooling's position embedding resized to the grid."""
        pool = self.visual.attnpool
        side = math.isqrt(len(pool.positional_embedding) - 1)
        rows, columns = feature_map.shape[2:]
        positions = resize_positions(pool.positional_embedding, (side, side), (rows, columns))
        return functional_call(pool, {"positional_embedding": positions}, (feature_map,))

    def project_pooled(self, pooled: Tensor) -> Tensor:
        side = math.isqrt(pooled.shape[1])
        return self._pool(pooled.transpose(1, 2).unflatten(2, (side, side)))

    def own_projection(self) -> Tensor | None:
        return None

    def set_grad_checkpointing(self, enable: bool) -> None:
        if enable:
            logger.warning(
                "this image tower (CLIP-ResNet) has no gradient checkpointing: it keeps activations"
            )
