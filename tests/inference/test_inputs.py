"""What users may give about a picture, and what they are told about the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from open_cloc.inference.inputs import boxes_of_masks, boxes_of_picture, masks_of_picture
from tests.tiny import BOXES


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([0, 0, 10, 10], "shape"),
        ([[0, 0, 10]], "shape"),
        ([[0, 0, 10, "x"]], "numbers"),
        ([[0, 0, 10, 10], [1, 2]], "numbers"),
        ([[0, 0, 10, float("nan")]], "finite"),
        ([[10, 0, 5, 10]], "x1 < x2"),
        ([[0, 0, 91.5, 10]], "inside the picture of 90 x 50"),
        ([[-3, 0, 9, 10]], "inside the picture"),
    ],
)
def test_bad_boxes(boxes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        boxes_of_picture(boxes, (50, 90))


def test_unknown_box_format_and_pixels_called_normalised() -> None:
    with pytest.raises(ValueError, match="box format"):
        boxes_of_picture(BOXES, (50, 90), "yxyx")
    with pytest.raises(ValueError, match="normalised xyxy"):
        boxes_of_picture(BOXES, (50, 90), normalized=True)


@pytest.mark.parametrize(
    ("boxes", "how", "message"),
    [
        ([[0.5, 0.1, 0.2, 0.9]], {"normalized": True}, r"got \[0\.5, 0\.1, 0\.2, 0\.9\] in row 0"),
        ([[0, 0, 1, 1], [0.25, 0, 1, 7]], {"normalized": True}, r"got \[0\.25, 0, 1, 7\] in row 1"),
        ([[80, 10, 20, 9]], {"box_format": "xywh"}, r"got \[80, 10, 20, 9\] in row 0 \(xywh pixels\)"),
        ([[30, 0, 10, 20]], {}, r"got \[30, 0, 10, 20\] .*: if these are x, y, .*--box-format xywh"),
    ],
)
def test_the_numbers_are_told_as_they_were_given(boxes: Any, how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        boxes_of_picture(boxes, (50, 90), **how)


def test_rounding_at_the_border_is_clipped() -> None:
    assert boxes_of_picture([[-0.01, 0, 90.02, 50]], (50, 90)).tolist() == [[0, 0, 1, 1]]


def mask_of(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    """(50, 90) bool that fills a box."""
    mask = np.zeros((50, 90), bool)
    mask[y1:y2, x1:x2] = True
    return mask


def test_masks_and_the_boxes_around_them() -> None:
    masks = masks_of_picture(
        [mask_of(3, 5, 40, 31), mask_of(0, 0, 90, 50), mask_of(89, 49, 90, 50)], (50, 90)
    )
    boxes_px = boxes_of_masks(masks) * np.array([90, 50, 90, 50])
    np.testing.assert_allclose(boxes_px, [[3, 5, 40, 31], [0, 0, 90, 50], [89, 49, 90, 50]])
    assert boxes_of_masks(masks_of_picture([], (50, 90))).shape == (0, 4)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (mask_of(0, 0, 9, 9), r"masks must be \(R, 50, 90\) bool.*got bool \(50, 90\)"),
        (mask_of(0, 0, 9, 9)[None, ::-1, :80], r"got bool \(1, 50, 80\)"),
        (mask_of(0, 0, 9, 9)[None] * 255, r"got int64 \(1, 50, 90\)"),
        ([mask_of(0, 0, 9, 9), mask_of(5, 5, 5, 9)], "must cover something; got an empty one in row 1"),
        ([mask_of(0, 0, 9, 9), mask_of(0, 0, 9, 9)[:40]], "all of one size"),
    ],
)
def test_bad_masks(masks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        masks_of_picture(masks, (50, 90))
