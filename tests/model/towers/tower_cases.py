"""Small towers of every kind, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from open_cloc.model.towers.build import build_clip

SMALL_TEXT = {"width": 32, "heads": 2, "layers": 1, "context_length": 8}
VIT = {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32}
OPEN_CLIP_TOWERS: dict[str, dict[str, Any]] = {
    "vit": {},
    "vit_avg": {"pool_type": "avg"},
    "vit_ln_after_pool": {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
    "vit_tok_ln_after_pool": {"final_ln_after_pool": True},
    "vit_sincos": {"pos_embed_type": "sin_cos_2d"},
    "vit_layer_scale": {"ls_init_value": 0.5},
    "vit_rectangle": {"image_size": [32, 64]},
    "resnet": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 32, "patch_size": None},
}
TEXTS = ["a dog", "two small cats on the red mat", ""]
# name -> (image size, pool, projection, expected stride)
TIMM_TOWERS: dict[str, tuple[int, str, str, int]] = {
    "test_vit": (160, "token", "linear", 16),
    "test_vit3": (160, "avg", "linear", 16),  # registers
    "test_vit4": (160, "map", "none", 16),  # attention pooling, as in SigLIP
    "test_convnext": (160, "", "linear", 32),
    "test_efficientnet": (160, "avg", "mlp", 32),
    "resnet10t": (64, "avg", "linear", 32),
    "fastvit_t8": (64, "avg", "", 32),  # MobileCLIP's kind
    "mobilenetv3_small_050": (64, "avg", "linear", 32),  # its head is wider than its feature map
    "vitamin_small_224": (64, "avg", "linear", 16),  # convolutional stem in front of a ViT
    "eva02_tiny_patch14_224": (224, "token", "", 14),  # rotary positions
    "vit_small_patch16_dinov3": (64, "avg", "linear", 16),
}


def small_cfg(vision: dict[str, Any], embed_dim: int = 24) -> dict[str, Any]:
    return {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": {"vocab_size": 100, **SMALL_TEXT}}


def timm_cfg(name: str) -> dict[str, Any]:
    size, pool, proj, _ = TIMM_TOWERS[name]
    embed_dim = 96 if proj == "none" else 24  # the tower's own width, as nothing projects it
    vision = {"image_size": size, "timm_model_name": name, "timm_pool": pool, "timm_proj": proj}
    return small_cfg(vision, embed_dim)


def randomized(module: nn.Module) -> nn.Module:
    """Away from the start, where layers that begin at zero hide what is behind them."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return module.eval()


def build(cfg: dict[str, Any]) -> Any:
    return randomized(build_clip(cfg))
