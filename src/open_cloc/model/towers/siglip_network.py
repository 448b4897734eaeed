"""The image tower of any SigLIP as a network of timm, which has those of released sizes alone.

A network of another size is registered by a name that says all of it, when a config asks for that name.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import timm
from timm.layers import GELU, GELUTanh
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

# GELU's `approximate` -> timm's name of that activation.
ACTIVATIONS = {"none": "gelu", "tanh": "gelu_tanh"}
NAME = re.compile(r"cloc_siglip_(\d+)_patch(\d+)_width(\d+)_layers(\d+)_heads(\d+)_mlp(\d+)_(gelu|gelu_tanh)")


class SiglipShape(NamedTuple):
    """All that tells SigLIP's image towers apart.

    Attributes:
        pixels: A side of the pictures that its positions are for; others are resampled.
        patch: Pixels of a patch's side.
        width: C.
        layers: Blocks.
        heads: Of the blocks and of the pooling.
        hidden: Width inside of an MLP.
        approximate: GELU's: `none` or `tanh`.
    """

    pixels: int
    patch: int
    width: int
    layers: int
    heads: int
    hidden: int
    approximate: str


# Of timm's own those of the commonest sizes, so that open_clip alone can open what is saved of them.
NETWORKS = {
    SiglipShape(224, 16, 768, 12, 12, 3072, "none"): "vit_base_patch16_siglip_224",
    SiglipShape(256, 32, 768, 12, 12, 3072, "tanh"): "vit_base_patch32_siglip_256",
    SiglipShape(256, 16, 1024, 24, 16, 4096, "none"): "vit_large_patch16_siglip_256",
    SiglipShape(224, 14, 1152, 27, 16, 4304, "none"): "vit_so400m_patch14_siglip_224",
    SiglipShape(256, 16, 1152, 27, 16, 4304, "tanh"): "vit_so400m_patch16_siglip_256",
    SiglipShape(256, 16, 1536, 40, 16, 6144, "tanh"): "vit_giantopt_patch16_siglip_256",
}


def network_of(shape: SiglipShape) -> str:
    """timm's name of a network, or one that `register_named` understands."""
    pixels, patch, width, layers, heads, hidden, approximate = shape
    own = f"cloc_siglip_{pixels}_patch{patch}_width{width}_layers{layers}_heads{heads}_mlp{hidden}"
    return NETWORKS.get(shape, f"{own}_{ACTIVATIONS[approximate]}")


def register_named(name: str) -> None:
    """Let timm know a network of `network_of`; other names, and known ones, are left alone."""
    found = NAME.fullmatch(name)
    if found is None or timm.is_model(name):
        return
    *sizes, activation = found.groups()
    pixels, patch, width, layers, heads, hidden = map(int, sizes)

    def build(pretrained: bool = False, **options: Any) -> VisionTransformer:
        taken = {key: options[key] for key in ("img_size", "num_classes", "global_pool") if key in options}
        return VisionTransformer(
            **{"img_size": pixels, "global_pool": "map"} | taken,
            patch_size=patch,
            embed_dim=width,
            depth=layers,
            num_heads=heads,
            mlp_ratio=ratio_of(hidden, width),
            class_token=False,
            act_layer=activation,
        )

    build.__name__ = build.__qualname__ = name
    register_model(build)


def approximation(activation: Any) -> str | None:
    """How a layer approximates GELU, `none` or `tanh`; None for one that is no GELU."""
    if isinstance(activation, GELUTanh):
        return "tanh"
    return (
        str(getattr(activation, "approximate", "none")) if isinstance(activation, (nn.GELU, GELU)) else None
    )


def ratio_of(hidden: int, width: int) -> float:
    """What a width is multiplied by and cut to whole numbers to give an MLP's."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width
