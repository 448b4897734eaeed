"""Training that asks for some regions by several boxes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from open_cloc.canvas import Geometry, mask_cells
from open_cloc.data.augment import AugmentConfig
from open_cloc.data.collate import LoaderConfig
from open_cloc.data.loader import RegionLoader
from open_cloc.data.prompts import MOST_BOXES, draw_box_sets
from open_cloc.errors import UserError
from open_cloc.masks import Mask
from open_cloc.model.cloc import CLOC
from open_cloc.samples import Region, RegionSample

WHOLE = Geometry.fit((64, 64), (64, 64))
NONE = np.zeros((0, 4))  # no other region of the text


def random_regions(count: int, rng: np.random.Generator) -> tuple[list[Region], np.ndarray]:
    low = rng.uniform(0, 0.5, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.1, 0.5, (count, 2))], 1)
    return [Region(tuple(box), f"thing {row}") for row, box in enumerate(boxes.tolist())], boxes


def areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def test_parts_span_their_box_and_leave_some_of_it_out() -> None:
    rng = np.random.default_rng(0)
    regions, boxes = random_regions(500, rng)
    chosen = rng.random(500) < 0.5
    sets = draw_box_sets(regions, boxes, [boxes[:0]] * 500, WHOLE, chosen, rng)
    assert sets.shape == (500, MOST_BOXES, 4)
    assert (np.isnan(sets).all((1, 2)) == ~chosen).all()
    assert (np.isnan(sets).any((1, 2)) == ~chosen).all()
    own, around = sets[chosen], boxes[chosen]
    spanned = np.concatenate([own[..., :2].min(1), own[..., 2:].max(1)], 1)
    np.testing.assert_allclose(spanned, around, atol=1e-6)
    kept = [areas(np.unique(row, axis=0)).sum() for row in own] / areas(around)  # quarters do not overlap
    assert kept.max() < 1 - 0.25**2 + 1e-5
    assert kept.min() > 2 * 0.25 * 0.25
    assert {len(np.unique(row, axis=0)) for row in own} == {2, 3}


@pytest.mark.parametrize("num_regions", [1, 3])
def test_regions_of_one_text_are_asked_for_together(model: CLOC, num_regions: int) -> None:
    """Those of the picture whose text is the same as the model reads it, also where one alone is drawn."""
    rng = np.random.default_rng(0)
    regions, boxes = random_regions(6, rng)
    texts = ("Dog", "dog", "cat", "CAT", "cat", "cat")
    named = tuple(replace(region, text=text) for region, text in zip(regions, texts))
    picture = rng.integers(0, 256, (64, 48, 3), dtype=np.uint8)
    data = [RegionSample(f"s{i}", picture, ("a picture",), named) for i in range(40)]
    config = LoaderConfig(num_regions=num_regions, workers=0, box_sets=1)
    loader = RegionLoader(data, model.preprocess, model.tokenize, config, batch_size=40, num_samples=40)
    batch = next(iter(loader))
    assert batch.box_sets is not None
    seen = set()
    for own, sets in zip(batch.boxes.flatten(0, 1).numpy(), batch.box_sets.flatten(0, 1).numpy()):
        np.testing.assert_allclose(sets[0], own, atol=1e-6)
        rows = {int(np.abs(boxes - member).sum(1).argmin()) for member in sets}
        assert np.abs(boxes[list(rows)] - np.unique(sets, axis=0)[:, None]).sum(-1).min(0).max() < 1e-5
        assert rows == {0, 1} if rows & {0, 1} else len(rows) == 3
        seen.add(tuple(sorted(rows)))
    assert len(seen) == 5  # which of the four cats is drawn


@pytest.mark.parametrize("change", ["whole", "flipped", "cropped"])
def test_parts_lie_tight_around_the_outline(change: str) -> None:
    """Of a thing that fills a strip of its box: against a slow search of its pixels."""
    rng = np.random.default_rng(0)
    pixels = np.zeros((64, 64), bool)
    pixels[10:50, 12:18] = True  # the left and
    pixels[10:50, 40:44] = True  # the right side of a frame
    box = np.array([[12 / 64, 10 / 64, 44 / 64, 50 / 64]])
    geometry = {"whole": WHOLE, "flipped": WHOLE.flip(), "cropped": WHOLE.crop((0.125, 0, 1, 0.75))}[change]
    on_canvas = np.clip(geometry.to_canvas(box), 0, 1)
    region = Region(tuple(box[0].tolist()), "a frame", mask=Mask.of(pixels))
    covered = geometry.masks_to_canvas(pixels[None], mask_cells((64, 64)))[0] > 0
    for _ in range(50):
        (members,) = draw_box_sets([region], on_canvas, [NONE], geometry, np.ones(1, bool), rng)
        for x1, y1, x2, y2 in members:
            assert x1 >= on_canvas[0, 0] - 1e-6
            assert x2 <= on_canvas[0, 2] + 1e-6
            inner = covered[
                int(y1 * 32) : int(np.ceil(y2 * 32 - 1e-6)), int(x1 * 32) : int(np.ceil(x2 * 32 - 1e-6))
            ]
            assert inner[:, 0].any()  # every side touches the thing
            assert inner[:, -1].any()
            assert inner[0].any()
            assert inner[-1].any()
        assert areas(np.unique(members, axis=0)).sum() < 0.7 * areas(on_canvas)[0]


def test_an_outline_out_of_view_leaves_the_parts_of_the_box() -> None:
    pixels = np.zeros((64, 64), bool)
    pixels[0, 0] = True
    region = Region((0, 0, 1, 1), "a thing", mask=Mask.of(pixels))
    geometry = WHOLE.crop((0.5, 0.5, 1, 1))
    (members,) = draw_box_sets(
        [region],
        np.array([[0.0, 0.0, 1.0, 1.0]]),
        [NONE],
        geometry,
        np.ones(1, bool),
        np.random.default_rng(0),
    )
    assert members[:, :2].min() == 0
    assert members[:, 2:].max() == 1


def test_training_asks_by_them(model: CLOC) -> None:
    """The kinds have shares that exclude each other, and what is asked so is embedded so."""
    rng = np.random.default_rng(0)
    regions, _ = random_regions(3, rng)
    data = [
        RegionSample(
            f"s{i}", rng.integers(0, 256, (40, 70, 3), dtype=np.uint8), ("a picture",), tuple(regions)
        )
        for i in range(8)
    ]
    config = LoaderConfig(
        num_regions=4,
        workers=0,
        box_sets=0.4,
        points=0.3,
        augment=AugmentConfig(flip=0.5, min_crop_scale=0.5),
    )
    loader = RegionLoader(data, model.preprocess, model.tokenize, config, batch_size=8, num_samples=8)
    batch = next(iter(loader))
    assert batch.box_sets is not None
    assert batch.points is not None
    assert batch.masks is None
    assert batch.box_sets.shape == (8, 4, MOST_BOXES, 4)
    by_sets, by_points = ~batch.box_sets[..., 0, 0].isnan(), ~batch.points[..., 0, 0].isnan()
    assert not (by_sets & (by_points | ~batch.region_mask)).any()
    assert by_sets.any()
    assert by_points.any()
    assert (batch.region_mask & ~by_sets & ~by_points).any()
    features = model(batch, {"region_features"}).region_features
    state = model.encode_image(batch.images, batch.content_boxes)
    asked = model.encode_regions(state, {"boxes": batch.box_sets.nan_to_num(0.5)})
    boxes = model.encode_regions(state, {"box": batch.boxes})
    torch.testing.assert_close(features[by_sets], asked[by_sets])
    rest = ~by_sets & ~by_points
    torch.testing.assert_close(features[rest], boxes[rest])
    assert (features[by_sets] - boxes[by_sets]).abs().max() > 1e-3
    features.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_shares_are_checked() -> None:
    with pytest.raises(UserError, match=r"loader box_sets must lie in \[0, 1\]; got 2"):
        LoaderConfig(box_sets=2)
    with pytest.raises(UserError, match=r"masks, points, box_sets are at most 1 together; got 1\.2"):
        LoaderConfig(box_sets=0.6, points=0.6)
