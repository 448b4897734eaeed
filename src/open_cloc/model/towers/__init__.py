"""The CLIP that CLOC wraps, behind one interface for all kinds of towers.

An adapter wraps a module of open_clip and is no part of the model: it holds no weights of its own and is made
anew where it is used, so that names of weights stay open_clip's and replaced modules are seen. A new kind of
tower is one file and one line of `IMAGE_TOWERS` or `TEXT_TOWERS`.

Shapes: B images, N image tokens, C tower width, D shared embedding, H W pixels, U texts, T text tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import nn

from open_cloc.model.towers import small  # noqa: F401 (registers them with timm)
from open_cloc.model.towers.half import HalfImageTower, HalfTextTower
from open_cloc.model.towers.resnet import ResNetTower
from open_cloc.model.towers.text_tower import HuggingFaceTextTower, OpenClipTextTower
from open_cloc.model.towers.timm import TimmTower
from open_cloc.model.towers.tower import ImageTower, TextTower, no_grid
from open_cloc.model.towers.vit import VitTower

IMAGE_TOWERS: dict[type[nn.Module], Callable[[Any], ImageTower]] = {
    VisionTransformer: VitTower,
    TimmModel: TimmTower,
    ModifiedResNet: ResNetTower,
}
TEXT_TOWERS: dict[type[nn.Module], Callable[[Any], TextTower]] = {
    TextTransformer: OpenClipTextTower,
    HFTextEncoder: HuggingFaceTextTower,
}


def image_tower_of(visual: Any) -> ImageTower:
    """The adapter of an image tower, as the module is now; weights of 16 bits take and give float32.

    Raises:
        UserError: If the tower gives no grid of image tokens.
    """
    wrap = _by_type(IMAGE_TOWERS, visual)
    if wrap is None:
        raise no_grid(visual)
    dtype = _weights_dtype(visual)
    return wrap(visual) if dtype == torch.float32 else HalfImageTower(wrap(visual), dtype)


def text_tower_of(text: Any) -> TextTower:
    """The adapter of a text tower, as the module is now; weights of 16 bits give float32.

    Raises:
        TypeError: If open_clip has made a tower of a kind that is not in `TEXT_TOWERS`.
    """
    wrap = _by_type(TEXT_TOWERS, text)
    if wrap is None:
        raise TypeError(f"no adapter for text towers of type {type(text).__name__}")
    return wrap(text) if _weights_dtype(text) == torch.float32 else HalfTextTower(wrap(text))


def _by_type(table: Mapping[type[nn.Module], Callable[[Any], Any]], module: nn.Module) -> Any:
    return next((wrap for kind, wrap in table.items() if isinstance(module, kind)), None)


def _weights_dtype(module: nn.Module) -> torch.dtype:
    return next((p.dtype for p in module.parameters()), torch.float32)
