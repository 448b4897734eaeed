"""open_clip's own towers: features equal the library's, for inputs of other sizes too."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from timm.layers import resample_abs_pos_embed

from open_cloc.model.towers import image_tower_of
from open_cloc.model.towers.build import build_clip
from open_cloc.model.towers.positions import resize_positions
from tests.model.towers.tower_cases import OPEN_CLIP_TOWERS, VIT, build, small_cfg


def _size_hw(visual: Any) -> tuple[int, int]:
    size = visual.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


@pytest.mark.parametrize("name", OPEN_CLIP_TOWERS)
@pytest.mark.parametrize("quick_gelu", [False, True])
@torch.no_grad()
def test_open_clip_image_features_are_equal(name: str, quick_gelu: bool) -> None:
    clip = build({**small_cfg({**VIT, **OPEN_CLIP_TOWERS[name]}), "quick_gelu": quick_gelu})
    height, width = _size_hw(clip.visual)
    images = torch.randn(2, 3, height, width)
    output = image_tower_of(clip.visual).encode(images)
    torch.testing.assert_close(output.image_features, clip.encode_image(images), rtol=1e-4, atol=1e-5)
    rows, columns = output.grid_size
    stride = 32 if name == "resnet" else 16
    assert (rows, columns) == (height // stride, width // stride)
    assert output.image_tokens.shape == (2, rows * columns, image_tower_of(clip.visual).token_width)
    pooled = image_tower_of(clip.visual).project_pooled(
        torch.randn(3, 49, image_tower_of(clip.visual).token_width)
    )
    assert pooled.shape == (3, 24)


@torch.no_grad()
def test_quick_gelu_changes_the_features() -> None:
    images = torch.randn(1, 3, 64, 64)
    plain, quick = (build_clip({**small_cfg(VIT), "quick_gelu": quick}).eval() for quick in (False, True))
    quick.load_state_dict(plain.state_dict())
    one, other = (image_tower_of(clip.visual).encode(images).image_features for clip in (plain, quick))
    assert not torch.allclose(one, other)


@torch.no_grad()
def test_vit_takes_other_sizes() -> None:
    """Equal to open_clip's own tower built for that size, its position embedding resized by hand."""
    cfg = small_cfg(VIT)
    clip = build(cfg)
    for height, width in ((64, 128), (96, 48), (128, 128)):
        larger = deepcopy(cfg)
        larger["vision_cfg"]["image_size"] = (height, width)
        reference = build_clip(larger).eval()
        state = clip.state_dict()
        state["visual.positional_embedding"] = resample_abs_pos_embed(
            state["visual.positional_embedding"][None],
            new_size=[height // 16, width // 16],
            old_size=[4, 4],
            num_prefix_tokens=1,
        )[0]
        reference.load_state_dict(state)
        images = torch.randn(2, 3, height, width)
        output = image_tower_of(clip.visual).encode(images)
        torch.testing.assert_close(
            output.image_features, reference.encode_image(images), rtol=1e-4, atol=1e-5
        )
        assert output.grid_size == (height // 16, width // 16)


def test_positions_stay_as_they_are_at_the_training_size() -> None:
    embedding = torch.randn(17, 8)
    assert resize_positions(embedding, (4, 4), (4, 4)) is embedding
    # The same number of patches in another shape is another grid.
    other = resize_positions(embedding, (4, 4), (2, 8))
    assert other.shape == (17, 8)
    assert torch.equal(other[0], embedding[0])
    assert not torch.allclose(other, embedding)


@torch.no_grad()
def test_resnet_takes_other_sizes() -> None:
    clip = build(small_cfg({**VIT, **OPEN_CLIP_TOWERS["resnet"]}))
    output = image_tower_of(clip.visual).encode(torch.randn(2, 3, 96, 64))
    assert output.grid_size == (3, 2)
    assert output.image_features.shape == (2, 24)
    assert output.image_features.isfinite().all()
