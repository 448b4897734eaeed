"""Every way to refer to a place becomes a box, as the paper does it with Ferret's referring kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from open_cloc.boxes import denormalize_boxes
from open_cloc.errors import UserError
from open_cloc.inference.inputs import boxes_of_masks, boxes_of_picture, masks_of_picture

# (choice) The paper does not say how large a point's box is.
POINT_SIDE = 0.1  # of the picture's shorter side


def boxes_of(regions: Sequence[ArrayLike], size_hw: tuple[int, int]) -> np.ndarray:
    """Boxes of whatever points at a picture; the shape says which kind it is.

    Args:
        regions: Each a box (4,) `xyxy`, a point (2,) as x, y, a scribble (K, 2) of points, or a mask (H, W)
            bool. All but masks are pixels of the picture.
        size_hw: The picture's (height, width) in pixels.

    Returns:
        (R, 4) float64 normalised `xyxy` of the picture. Points get a square around them, and a scribble's box
        is at least as wide and high, inside the picture.

    Raises:
        UserError: If one is of another shape, not finite, empty or outside the picture.
    """
    if isinstance(regions, np.ndarray) and regions.ndim != 2:
        raise UserError(f"regions must be a list of boxes, points, scribbles or masks; got {regions.shape}")
    boxes = [_box_of(region, row, size_hw) for row, region in enumerate(regions)]
    return np.array(boxes, np.float64).reshape(-1, 4)


def _box_of(region: Any, row: int, size_hw: tuple[int, int]) -> np.ndarray:
    try:
        array = np.asarray(region)
    except ValueError:
        array = np.zeros(0)
    if array.dtype == bool and array.ndim == 2:
        return boxes_of_masks(masks_of_picture(array[None], size_hw))[0]
    is_number = np.issubdtype(array.dtype, np.number)
    if is_number and array.shape == (4,):
        return boxes_of_picture(array[None], size_hw)[0]
    if is_number and array.shape == (2,):
        return _box_around(array[None].astype(np.float64), row, size_hw)
    if is_number and array.ndim == 2 and array.shape[1] == 2 and len(array):
        return _box_around(array.astype(np.float64), row, size_hw)
    raise UserError(
        "a region must be a box (4,), a point (2,), a scribble (K, 2) or a mask (H, W) of bool; got "
        f"{array.dtype} {array.shape} in row {row}"
    )


def _box_around(points: np.ndarray, row: int, size_hw: tuple[int, int]) -> np.ndarray:
    """The box (4,) around points (K, 2) in pixels, not thinner than a point's."""
    most = np.array(size_hw[::-1], np.float64)
    if not (np.isfinite(points).all() and (points >= 0).all() and (points <= most).all()):
        height, width = size_hw
        raise UserError(
            f"points must lie in the picture of {width} x {height} pixels; got {points.tolist()!s:.60} in "
            f"row {row}"
        )
    low, high = points.min(0), points.max(0)
    half = np.maximum(high - low, POINT_SIDE * min(size_hw)) / 2
    middle = (low + high) / 2
    corners = np.concatenate([(middle - half).clip(0), np.minimum(middle + half, most)])
    height, width = size_hw
    return (corners / [width, height, width, height]).clip(0, 1)


def in_pixels(boxes: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Boxes (R, 4) normalised `xyxy` of a picture, in its pixels and inside it."""
    return denormalize_boxes(boxes.clip(0, 1), size_hw)
