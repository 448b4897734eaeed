"""Outlines: COCO's run lengths, and what is refused where pycocotools would read wild memory or hang."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_masks

from open_cloc.errors import SampleError, UserError
from open_cloc.masks import Mask, mask_of_polygons


def blobs(seed: int, size_hw: tuple[int, int]) -> np.ndarray:
    """A mask of ragged rows."""
    rng = np.random.default_rng(seed)
    return np.repeat(rng.random((size_hw[0], -(-size_hw[1] // 3))) < rng.random(), 3, axis=1)[:, : size_hw[1]]


@pytest.mark.parametrize("size_hw", [(1, 1), (7, 5), (64, 3), (480, 640)])
def test_masks_are_those_of_pycocotools(size_hw: tuple[int, int]) -> None:
    pictures = [blobs(seed, size_hw) for seed in range(20)]
    for pixels in [*pictures, np.zeros(size_hw, bool), np.ones(size_hw, bool)]:
        theirs = coco_masks.encode(np.asfortranarray(pixels.astype(np.uint8)))
        mask = Mask.of(pixels)
        assert mask.counts.encode() == theirs["counts"]
        assert (mask.pixels() == pixels).all()
        assert Mask.of_runs(size_hw, mask.runs()) == mask


def test_boxes_of_masks_are_tight() -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        pixels = np.zeros((int(rng.integers(1, 9)), int(rng.integers(1, 9))), bool)
        y, x = rng.integers(0, pixels.shape[0], 2), rng.integers(0, pixels.shape[1], 2)
        pixels[min(y) : max(y) + 1, min(x) : max(x) + 1] = rng.random() < 0.9
        pixels &= rng.random(pixels.shape) < 0.7
        rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
        found = Mask.of(pixels).box()
        if not len(rows):
            assert found is None
            continue
        height, width = pixels.shape
        expected = (columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height)
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("pixels", [[True], np.zeros((2, 2, 2)), np.zeros((0, 3))])
def test_what_is_no_mask_is_refused(pixels: Any) -> None:
    with pytest.raises(UserError, match=r"a mask must be \(H, W\)"):
        Mask.of(pixels)
    assert Mask.of([[True, False]]).size_hw == (1, 2)  # type: ignore[arg-type]


def test_polygons_are_filled_as_coco_fills_them() -> None:
    polygons = [[10.5, 3.2, 40.1, 8.0, 22.0, 39.9], [30, 30, 47.9, 30, 47.9, 44.5, 30, 44.5]]
    mask = mask_of_polygons(polygons, (48, 48))
    theirs = coco_masks.merge(coco_masks.frPyObjects(polygons, 48, 48))
    assert (mask.pixels() == coco_masks.decode(theirs).astype(bool)).all()


@pytest.mark.parametrize(
    ("size_hw", "counts"),
    [
        ((400, 400), "1"),  # too few: pycocotools gives what the memory held before
        ((4, 4), "zzzz"),
        ((4, 4), "P"),  # says that more follows
        ((4, 4), ""),
        ((4, 4), "0é"),
        ((4, 4), "\ud800"),
        ((20_000, 20_000), "0"),
        ((4, 4), "o" * 4000),
        ((0, 4), "0"),
    ],
)
def test_run_lengths_that_do_not_fill_the_grid_are_refused(size_hw: tuple[int, int], counts: str) -> None:
    with pytest.raises(SampleError, match=r"run lengths|outline"):
        Mask(size_hw, counts).pixels()


@pytest.mark.parametrize("runs", [[-5, 21], [0, 2**40], [], [15]])
def test_runs_that_do_not_fill_the_grid_are_refused(runs: list[int]) -> None:
    with pytest.raises(SampleError, match="do not fill"):
        Mask.of_runs((4, 4), runs)


@pytest.mark.parametrize(
    "polygon",
    [[float("nan"), 1, 2, 3, 4, 5], [1e9, 1, 2, 3, 4, 5], [1, 2, 3, 4], [1, 2, 3, 4, 5], [0, 0, 3, 9, 9, 60]],
)
def test_polygons_outside_are_refused(polygon: list[float]) -> None:
    with pytest.raises(SampleError, match="corner"):
        mask_of_polygons([polygon], (48, 48))
