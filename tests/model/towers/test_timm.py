"""timm's towers: features equal the library's, for inputs of other sizes too."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
from torch import nn

from open_cloc.model.towers import image_tower_of
from open_cloc.model.towers.build import build_clip
from open_cloc.model.towers.timm import allow_any_image_size
from tests.model.towers.tower_cases import TIMM_TOWERS, build, randomized, small_cfg, timm_cfg

timm_towers = pytest.mark.parametrize("name", TIMM_TOWERS)


@timm_towers
@torch.no_grad()
def test_timm_image_features_are_equal(name: str) -> None:
    clip = build(timm_cfg(name))
    size, stride = TIMM_TOWERS[name][0], TIMM_TOWERS[name][3]
    images = torch.randn(1, 3, size, size)
    output = image_tower_of(clip.visual).encode(images)
    torch.testing.assert_close(output.image_features, clip.encode_image(images), rtol=1e-4, atol=1e-5)
    side = size // stride
    assert output.grid_size == (side, side)
    width = image_tower_of(clip.visual).token_width
    assert output.image_tokens.shape == (1, side * side, width)
    assert output.image_features.shape == (1, timm_cfg(name)["embed_dim"])
    pooled = image_tower_of(clip.visual).project_pooled(torch.randn(3, 49, width))
    assert pooled.shape == (3, timm_cfg(name)["embed_dim"])


@timm_towers
@torch.no_grad()
def test_timm_takes_other_sizes(name: str) -> None:
    """Non-square and larger: equal to the tower that timm itself builds for inputs of any size."""
    clip = build(timm_cfg(name))
    size, stride = TIMM_TOWERS[name][0], TIMM_TOWERS[name][3]
    height, width = (size + 2 * stride, size - stride) if size > 100 else (2 * size, size + stride)
    images = torch.randn(1, 3, height, width)
    output = image_tower_of(clip.visual).encode(images)
    assert output.grid_size == (math.ceil(height / stride), math.ceil(width / stride))
    trunk = _any_size_trunk(name, clip.visual.trunk)
    torch.testing.assert_close(output.image_features, clip.visual.head(trunk(images)), rtol=1e-4, atol=1e-5)


def _any_size_trunk(name: str, like: nn.Module) -> nn.Module:
    """timm's own tower for inputs of any size, with the weights of another."""
    _, pool, proj, _ = TIMM_TOWERS[name]
    kwargs: dict[str, Any] = {"dynamic_img_size": True} if hasattr(like, "dynamic_img_size") else {}
    if proj == "linear":
        trunk = timm.create_model(name, **kwargs)
        trunk.reset_classifier(0, **({"global_pool": pool} if pool else {}))
    else:
        classes = {"": 24, "none": 0, "mlp": 0}[proj]
        trunk = timm.create_model(name, num_classes=classes, global_pool=pool, **kwargs)
    trunk.load_state_dict(like.state_dict())
    return trunk.eval()


@torch.no_grad()
def test_swin_takes_other_sizes() -> None:
    """Its shifted windows are masked by the size of the input, not by that of training."""
    name, window = "swin_tiny_patch4_window7_224", {"depths": (1, 1, 2, 1), "embed_dim": 12}
    clip = build_clip(small_cfg({"image_size": 224, "timm_model_name": name, "timm_pool": ""}))
    small = timm.create_model(name, num_classes=0, **window)
    clip.visual.trunk, clip.visual.head = small, nn.Identity()
    randomized(small)
    allow_any_image_size(clip.visual)
    for height, width in ((224, 224), (224, 448), (336, 224)):
        images = torch.randn(1, 3, height, width)
        output = image_tower_of(clip.visual).encode(images)
        reference = timm.create_model(name, num_classes=0, strict_img_size=False, **window).eval()
        reference.load_state_dict(small.state_dict())
        torch.testing.assert_close(output.image_features, reference(images), rtol=1e-4, atol=1e-5)
        assert output.grid_size == (math.ceil(height / 32), math.ceil(width / 32))


def test_a_size_that_a_tower_cannot_take_is_one_sentence() -> None:
    visual = build_clip(small_cfg({"image_size": 160, "timm_model_name": "test_maxvit"})).visual
    with pytest.raises(ValueError, match=r"MaxxVit takes no images of 128 x 160"):
        image_tower_of(visual).encode(torch.zeros(1, 3, 128, 160))
