"""Training that asks for some regions by their outline."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from open_cloc.canvas import Geometry, mask_cells
from open_cloc.data.augment import AugmentConfig
from open_cloc.data.collate import LoaderConfig
from open_cloc.data.loader import RegionLoader
from open_cloc.data.prompts import draw_masks
from open_cloc.errors import UserError
from open_cloc.masks import Mask
from open_cloc.model.cloc import CLOC
from open_cloc.samples import Region, RegionBatch, RegionSample

NAMES = ("a cup", "a dog", "a tree")


def samples(count: int = 8) -> list[RegionSample]:
    """Pictures with three regions, of which the last has no outline."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        boxes = [(0.1, 0.2, 0.7, 0.9), (0.4, 0.0, 1.0, 0.5), (0.0, 0.5, 0.5, 1.0)]
        masks = [Mask.of(np.zeros((40, 70), bool)) for _ in boxes]
        for row, (x1, y1, x2, y2) in enumerate(boxes):
            pixels = np.zeros((40, 70), bool)
            pixels[int(40 * y1) : int(40 * y2), int(70 * x1) : int(70 * x2)] = True
            masks[row] = Mask.of(pixels & (rng.random((40, 70)) < 0.5))
        regions = tuple(
            Region(box, text, mask=mask) for box, text, mask in zip(boxes, NAMES, (*masks[:2], None))
        )
        picture = rng.integers(0, 256, (40, 70, 3), dtype=np.uint8)
        made.append(RegionSample(f"s{number}", picture, ("a picture",), regions))
    return made


def batch_of(model: CLOC, config: LoaderConfig) -> RegionBatch:
    loader = RegionLoader(samples(), model.preprocess, model.tokenize, config, batch_size=8, num_samples=8)
    return next(iter(loader))


def test_some_regions_are_asked_for_by_their_outline(model: CLOC) -> None:
    assert batch_of(model, LoaderConfig(num_regions=3, workers=0)).masks is None
    batch = batch_of(model, LoaderConfig(num_regions=4, workers=0, masks=0.5))
    assert batch.masks is not None
    assert batch.masks.dtype == torch.uint8
    assert batch.masks.shape == (8, 4, 32, 24)
    asked = (batch.masks > 0).flatten(2).any(-1)
    assert 4 < asked.sum() < 12  # of sixteen that have one
    assert not (asked & ~batch.region_mask).any()
    features = model(batch, {"region_features"}).region_features
    state = model.encode_image(batch.images, batch.content_boxes)
    by_boxes = model.encode_regions(state, {"box": batch.boxes})
    by_masks = model.encode_regions(state, {"mask": batch.masks / 255})
    torch.testing.assert_close(features[asked], by_masks[asked])
    torch.testing.assert_close(features[~asked], by_boxes[~asked])
    features.square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_outlines_follow_crops_and_mirrors() -> None:
    (sample,) = samples(1)
    whole = Geometry.fit((40, 70), (64, 64))
    for geometry in (whole, whole.flip(), whole.crop((0.3, 0.1, 0.9, 0.8)).flip()):
        drawn = draw_masks(sample.regions, geometry, np.ones(3, bool))
        assert drawn is not None
        assert not drawn[2].any()
        for row in range(2):
            mask = sample.regions[row].mask
            assert mask is not None
            slow = geometry.masks_to_canvas(mask.pixels()[None])[0]
            cells = slow.reshape(32, 2, 32, 2).mean((1, 3))
            np.testing.assert_allclose(drawn[row] / 255, cells, atol=0.5 / 255 + 1e-6)


def test_outlines_on_a_grid_of_their_own_cover_the_same() -> None:
    """A mask may have another size than the picture."""
    geometry = Geometry.fit((40, 70), (64, 64)).crop((0.2, 0.1, 0.9, 1.0))
    fine = np.zeros((1, 40, 70), bool)
    fine[:, 10:30, 20:60] = True
    coarse = np.zeros((1, 4, 7), bool)
    coarse[:, 1:3, 2:6] = True
    np.testing.assert_allclose(geometry.masks_to_canvas(coarse), geometry.masks_to_canvas(fine), atol=1e-5)


@torch.no_grad()
def test_a_crop_that_leaves_nothing_of_the_outline_leaves_the_box(model: CLOC) -> None:
    """Outlines of one pixel, of boxes that are wide: most crops lose them and keep the box."""
    corner = np.zeros((40, 70), bool)
    corner[0, 0] = True
    data = [
        replace(s, regions=tuple(replace(r, box=(0, 0, 1, 1), mask=Mask.of(corner)) for r in s.regions))
        for s in samples()
    ]
    augment = AugmentConfig(min_crop_scale=0.3, min_visible=0.01)
    config = LoaderConfig(num_regions=3, workers=0, masks=1, augment=augment)
    loader = RegionLoader(data, model.preprocess, model.tokenize, config, batch_size=8, num_samples=8)
    batch = next(iter(loader))
    assert batch.masks is not None
    lost = batch.region_mask & ~(batch.masks > 0).flatten(2).any(-1)
    assert lost.sum() > 12
    features = model(batch, {"region_features"}).region_features
    state = model.encode_image(batch.images, batch.content_boxes)
    torch.testing.assert_close(features[lost], model.encode_regions(state, {"box": batch.boxes})[lost])


def test_no_outline_anywhere_is_no_prompt() -> None:
    regions = [Region((0, 0, 1, 1), "a thing")] * 3
    geometry = Geometry.fit((8, 8), (64, 64))
    assert draw_masks(regions, geometry, np.ones(3, bool)) is None
    assert mask_cells((64, 51)) == (32, 26)
    with pytest.raises(UserError, match=r"loader masks must lie in \[0, 1\]; got -1"):
        LoaderConfig(masks=-1)
    with pytest.raises(UserError, match=r"at most 1 together; got 1\.2"):
        LoaderConfig(masks=0.6, points=0.6)


def test_points_and_outlines_have_shares_of_their_own(model: CLOC) -> None:
    batch = batch_of(model, LoaderConfig(num_regions=2, workers=0, masks=0.5, points=0.5))
    assert batch.masks is not None
    assert batch.points is not None
    by_mask, by_points = (batch.masks > 0).flatten(2).any(-1), ~batch.points[..., 0, 0].isnan()
    assert not (by_mask & by_points).any()
    assert by_mask.any()
    assert by_points.any()
