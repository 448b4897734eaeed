"""Any timm network that gives a grid of tokens: ViTs, convolutional networks, and what lies between."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers import Format
from torch import Tensor, nn

from open_cloc.errors import UserError
from open_cloc.model.towers.tower import TowerOutput, no_grid


class TimmTower:
    """Adapter of `open_clip.timm_model.TimmModel`: a timm network as `trunk`, a projection as `head`."""

    def __init__(self, visual: Any) -> None:
        self.visual = visual

    @property
    def token_width(self) -> int:
        return self.visual.trunk.num_features

    def encode(self, images: Tensor) -> TowerOutput:
        trunk = self.visual.trunk
        x = self._run(images)
        features = self.visual.head(trunk.forward_head(x))
        if x.ndim == 4:
            feature_map = x.permute(0, 3, 1, 2) if _channels_last(trunk) else x
            grid_size = (feature_map.shape[2], feature_map.shape[3])
            return TowerOutput(features, feature_map.flatten(2).transpose(1, 2), grid_size)
        tokens = x[:, getattr(trunk, "num_prefix_tokens", 0) :]
        rows, columns = _grid_of_patches(trunk, images)
        if rows * columns != tokens.shape[1]:
            raise no_grid(trunk)
        return TowerOutput(features, tokens, (rows, columns))

    def _run(self, images: Tensor) -> Tensor:
        """The trunk's features before pooling: (B, tokens, C) or a map of four dimensions."""
        trunk = self.visual.trunk
        try:
            return trunk.forward_features(_whole_patches(trunk, images))
        except AssertionError as error:  # how timm refuses a size
            height, width = images.shape[2:]
            raise UserError(
                f"image tower {type(trunk).__name__} takes no images of {height} x {width}: {error}"
            ) from error

    def project_pooled(self, pooled: Tensor) -> Tensor:
        trunk, side = self.visual.trunk, math.isqrt(pooled.shape[1])
        if hasattr(trunk, "num_prefix_tokens"):
            # A ViT pools its class token or its patches: the region's mean stands for either.
            prefix = pooled.mean(1, keepdim=True).expand(-1, trunk.num_prefix_tokens, -1)
            return self.visual.head(trunk.forward_head(torch.cat([prefix, pooled], dim=1)))
        feature_map = pooled.unflatten(1, (side, side))  # (X, side, side, C)
        if not _channels_last(trunk):
            feature_map = feature_map.permute(0, 3, 1, 2)
        return self.visual.head(trunk.forward_head(feature_map))

    def own_projection(self) -> Tensor | None:
        projection = getattr(self.visual.head, "proj", None)
        return projection.weight.detach() if isinstance(projection, nn.Linear) else None

    def set_grad_checkpointing(self, enable: bool) -> None:
        # open_clip itself warns of a network that cannot.
        self.visual.set_grad_checkpointing(enable)


def _channels_last(trunk: Any) -> bool:
    """Some networks (Swin) give (B, rows, columns, C); they say so in `output_fmt`."""
    return getattr(trunk, "output_fmt", "NCHW") == "NHWC"


def _grid_of_patches(trunk: Any, images: Tensor) -> tuple[int, int]:
    """(rows, columns) of a ViT's patches; zeros for a network without patches."""
    patches: Any = getattr(trunk, "patch_embed", None)
    if not hasattr(patches, "dynamic_feat_size"):
        return 0, 0
    height, width = images.shape[2:]
    return patches.dynamic_feat_size((height, width))


def _whole_patches(trunk: Any, images: Tensor) -> Tensor:
    """Cut off the rest of a last patch, which the patches' convolution leaves out as well."""
    patches: Any = getattr(trunk, "patch_embed", None)
    if not hasattr(patches, "dynamic_feat_size") or patches.dynamic_img_pad:
        return images
    rows, columns = _grid_of_patches(trunk, images)
    patch_h, patch_w = patches.feat_ratio(as_scalar=False)
    return images[..., : rows * patch_h, : columns * patch_w]


def allow_any_image_size(visual: nn.Module) -> None:
    """Make a timm transformer as timm builds it for inputs of any size (`dynamic_img_size`).

    open_clip's wrapper cannot pass that on, so its effects are set afterwards.
    """
    trunk: Any = getattr(visual, "trunk", None)
    if trunk is None or not hasattr(trunk, "dynamic_img_size") or trunk.dynamic_img_size:
        return
    trunk.dynamic_img_size = True
    trunk.patch_embed.strict_img_size = False
    trunk.patch_embed.flatten = False
    trunk.patch_embed.output_fmt = Format.NHWC
    for module in trunk.modules():
        # Swin: masks of the shifted windows, else those of the training size.
        if hasattr(module, "dynamic_mask"):
            module.dynamic_mask = True
        # EVA: rotary positions, likewise.
        if hasattr(module, "_use_cached_embed"):
            module._use_cached_embed = False


def fit_projection(visual: nn.Module) -> None:
    """Project from the width of a timm network's pooled output, which MobileNetV3's feature map has not."""
    trunk: Any = getattr(visual, "trunk", None)
    head: Any = getattr(visual, "head", None)
    width = getattr(trunk, "head_hidden_size", None)
    old = getattr(head, "proj", None)
    if width and isinstance(old, nn.Linear) and old.in_features != width:
        head.proj = nn.Linear(width, old.out_features, bias=old.bias is not None)
