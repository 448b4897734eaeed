"""Geometry: pixels and boxes move together, and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from open_cloc.boxes import denormalize_boxes
from open_cloc.canvas import Geometry
from open_cloc.data.augment import AugmentConfig, random_geometry, visible_boxes

SIZES = st.integers(1, 2000)
EXTREMES = [(1, 2000), (2000, 1), (1, 1), (2000, 2000), (3, 1999), (1999, 3)]


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    source = draw(st.one_of(st.tuples(SIZES, SIZES), st.sampled_from(EXTREMES)))
    target = draw(st.tuples(st.integers(1, 512), st.integers(1, 512)))
    geometry = Geometry.fit(source, target, draw(st.sampled_from(["longest", "squash"])))
    if draw(st.booleans()):
        x, y = draw(st.floats(0, 0.9)), draw(st.floats(0, 0.9))
        geometry = geometry.crop((x, y, draw(st.floats(x + 0.05, 1)), draw(st.floats(y + 0.05, 1))))
    return geometry.flip() if draw(st.booleans()) else geometry


@st.composite
def box_arrays(draw: st.DrawFn) -> np.ndarray:
    unit = st.floats(0, 1)
    rows = draw(st.lists(st.tuples(unit, unit, unit, unit), max_size=5))
    corners = np.array(rows, np.float64).reshape(-1, 2, 2)
    return np.sort(corners, axis=1).reshape(-1, 4)


@settings(max_examples=300, deadline=None)
@given(geometries(), box_arrays(), st.sampled_from(["float32", "float64", "torch"]))
def test_boxes_come_back_within_half_a_pixel(geometry: Geometry, boxes: np.ndarray, kind: str) -> None:
    given_boxes = torch.from_numpy(boxes).float() if kind == "torch" else boxes.astype(kind)
    back = geometry.from_canvas(geometry.to_canvas(given_boxes))
    assert back.dtype == given_boxes.dtype
    error = denormalize_boxes(np.asarray(back, np.float64) - boxes, geometry.source_hw)
    assert np.abs(error).max(initial=0) < 0.5


@settings(max_examples=200, deadline=None)
@given(geometries())
def test_the_window_lands_exactly_on_the_content_box(geometry: Geometry) -> None:
    height, width = geometry.source_hw
    window = np.array([geometry.window], float) / [width, height, width, height]
    np.testing.assert_allclose(geometry.to_canvas(window)[0], geometry.content_box, atol=1e-12)
    assert min(geometry.content_box) >= 0
    assert max(geometry.content_box) <= 1
    left, top, right, bottom = geometry.content
    if geometry.mode == "longest":  # each side is the exact one, rounded to the nearest whole pixel
        x1, y1, x2, y2 = geometry.window
        zoom = min(geometry.target_hw[0] / (y2 - y1), geometry.target_hw[1] / (x2 - x1))
        assert abs(right - left - max(1, (x2 - x1) * zoom)) <= 0.5 + 1e-9
        assert abs(bottom - top - max(1, (y2 - y1) * zoom)) <= 0.5 + 1e-9
    else:
        assert (bottom, right) == geometry.target_hw


@pytest.mark.parametrize("mode", ["longest", "squash"])
@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("crop", [None, (0.1, 0.2, 0.9, 1.0)])
@pytest.mark.parametrize("source_hw", [(200, 300), (300, 110), (64, 64)])
def test_a_drawn_rectangle_is_where_its_box_says(
    mode: str, flipped: bool, crop: tuple[float, ...] | None, source_hw: tuple[int, int]
) -> None:
    height, width = source_hw
    box = np.array([[0.25, 0.4, 0.6, 0.75]])
    x1, y1, x2, y2 = denormalize_boxes(box, source_hw)[0].round().astype(int)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y1:y2, x1:x2] = 255
    geometry = Geometry.fit(source_hw, (128, 160), mode)
    geometry = geometry.crop(crop) if crop else geometry
    geometry = geometry.flip() if flipped else geometry
    bright = geometry.draw(pixels)[..., 0] > 127
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    exact = np.array([[x1 / width, y1 / height, x2 / width, y2 / height]])
    expected = denormalize_boxes(geometry.to_canvas(exact), (128, 160))[0]
    np.testing.assert_allclose(found, expected, atol=1.01)  # a bright pixel starts at most one pixel off


@pytest.mark.parametrize("source_hw", EXTREMES)
def test_extreme_pictures_keep_their_colour_and_padding(source_hw: tuple[int, int]) -> None:
    geometry = Geometry.fit(source_hw, (32, 48))
    canvas = geometry.draw(np.full((*source_hw, 3), 200, np.uint8), fill=(1, 2, 3))
    x1, y1, x2, y2 = geometry.content
    assert canvas.shape == (32, 48, 3)
    assert (canvas[y1:y2, x1:x2] == 200).all()
    outside = np.ones((32, 48), bool)
    outside[y1:y2, x1:x2] = False
    assert (canvas[outside] == [1, 2, 3]).all()


def test_longest_is_centred_and_touches_both_ends_of_the_long_side() -> None:
    assert Geometry.fit((100, 200), (64, 64)).content == (0, 16, 64, 48)
    assert Geometry.fit((200, 100), (64, 64)).content == (16, 0, 48, 64)
    assert Geometry.fit((200, 100), (64, 64), "squash").content == (0, 0, 64, 64)


def test_flipping_twice_changes_nothing_and_once_mirrors_odd_padding() -> None:
    geometry = Geometry.fit((10, 3), (10, 6))  # one column of padding left, two right
    assert geometry.flip().flip() == geometry
    pixels = np.full((10, 3, 3), 9, np.uint8)
    np.testing.assert_array_equal(geometry.flip().draw(pixels), geometry.draw(pixels)[:, ::-1])
    assert geometry.flip().content_box == pytest.approx((2 / 6, 0, 5 / 6, 1))


def test_visible_share_of_cropped_boxes() -> None:
    geometry = Geometry.fit((100, 100), (50, 50)).crop((0.5, 0.0, 1.0, 1.0))
    boxes = np.array([[0.0, 0.0, 0.4, 1.0], [0.4, 0.0, 0.6, 1.0], [0.6, 0.2, 0.8, 0.4]])
    clipped, share = visible_boxes(boxes, geometry)
    np.testing.assert_allclose(share, [0, 0.5, 1], atol=1e-9)
    np.testing.assert_allclose(geometry.from_canvas(clipped)[1:], [[0.5, 0, 0.6, 1], boxes[2]], atol=1e-9)


def test_random_geometry_keeps_the_area_and_never_mirrors_a_named_side() -> None:
    rng = np.random.default_rng(0)
    fitted = Geometry.fit((480, 640), (64, 64))
    augment = AugmentConfig(flip=1.0, min_crop_scale=0.3)
    for _ in range(50):
        geometry = random_geometry(fitted, augment, ["a cat"], rng)
        x1, y1, x2, y2 = geometry.window
        assert geometry.flipped
        assert (x2 - x1) * (y2 - y1) >= 0.3 * 480 * 640 * 0.98  # rounded to whole pixels
    assert not random_geometry(fitted, augment, ["a cat", "the dog on the Left"], rng).flipped
    assert random_geometry(fitted, AugmentConfig(), ["a cat"], rng) == fitted


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match="unknown resize mode 'crop'; expected one of longest, squash"):
        Geometry.fit((2, 2), (2, 2), "crop")
    with pytest.raises(ValueError, match=r"source size must be at least 1 x 1; got .*\(0, 3\)"):
        Geometry.fit((0, 3), (2, 2))
    with pytest.raises(
        ValueError, match=r"must be \(H, W, 3\) uint8 of size \(2, 3\); got uint8 \(3, 2, 3\)"
    ):
        Geometry.fit((2, 3), (2, 2)).draw(np.zeros((3, 2, 3), np.uint8))
    with pytest.raises(ValueError, match="unknown interpolation 'cubic'"):
        Geometry.fit((2, 3), (2, 2)).draw(np.zeros((2, 3, 3), np.uint8), interpolation="cubic")
    with pytest.raises(ValueError, match="min_crop_scale must lie in"):
        AugmentConfig(min_crop_scale=0)
