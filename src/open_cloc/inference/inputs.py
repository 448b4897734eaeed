"""What users give about a picture, checked: boxes and masks in its own pixels, lists of texts.

Shapes: H W pixels of the picture, R regions.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor

from open_cloc.boxes import convert_boxes, denormalize_boxes, normalize_boxes, validate_boxes_px
from open_cloc.errors import UserError
from open_cloc.pictures import by_decoder, read_file


def boxes_of_picture(
    boxes: ArrayLike, size_hw: tuple[int, int], box_format: str = "xyxy", normalized: bool = False
) -> np.ndarray:
    """Check and clip a user's boxes.

    Args:
        boxes: (R, 4) numbers, any number of boxes.
        size_hw: (height, width) of the picture in pixels.
        box_format: `xyxy`, `xywh` or `cxcywh`.
        normalized: Whether the boxes are in [0, 1] of the picture's width and height instead of pixels.

    Returns:
        (R, 4) float64 normalised `xyxy` of the picture.

    Raises:
        UserError: If they are not numbers, not (R, 4), not finite, inverted or outside the picture.
    """
    try:
        array = np.asarray(boxes, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"boxes must be (R, 4) numbers; got {boxes!r:.80}") from None
    if array.size == 0:
        array = array.reshape(0, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise UserError(f"boxes must be (R, 4), a row of 4 numbers per box; got shape {array.shape}")
    xyxy = convert_boxes(array, box_format)
    boxes_px = denormalize_boxes(xyxy, size_hw) if normalized else xyxy
    form = f"normalised {box_format}" if normalized else f"{box_format} pixels"
    validate_boxes_px(boxes_px, size_hw, form, given=array)
    return normalize_boxes(boxes_px, size_hw).clip(0, 1)


def masks_of_picture(masks: ArrayLike, size_hw: tuple[int, int]) -> np.ndarray:
    """Check a user's masks.

    Args:
        masks: (R, H, W) bool, any number of masks.
        size_hw: (height, width) of the picture in pixels.

    Returns:
        The same as an array.

    Raises:
        UserError: If they are not bool, not of the picture's size, or one is empty.
    """
    try:
        array = np.asarray(masks)
    except ValueError:
        raise UserError("masks must be (R, H, W) bool, all of one size") from None
    if array.size == 0 and array.ndim == 1:
        return np.zeros((0, *size_hw), bool)
    if array.ndim != 3 or array.dtype != bool or array.shape[1:] != tuple(size_hw):
        height, width = size_hw
        raise UserError(
            f"masks must be (R, {height}, {width}) bool, of the picture's height and width; "
            f"got {array.dtype} {array.shape}"
        )
    empty = ~np.any(array, axis=(1, 2))
    if empty.any():
        raise UserError(f"masks must cover something; got an empty one in row {int(empty.argmax())}")
    return array


def read_mask(file: Path, size_hw: tuple[int, int]) -> np.ndarray:
    """A mask that was kept as a picture: what is not black belongs to it.

    Args:
        file: PNG, TIFF or BMP, which keep what they are given; grey, of numbers, or of colours.
        size_hw: (height, width) of the picture that it is of.

    Returns:
        (H, W) bool.

    Raises:
        MissingPictureError: If the file is not there.
        UserError: If it is no such picture, is partly transparent, of another size, or all black.
    """
    what = f"mask {file}"
    mask = by_decoder(_not_black, read_file(file, "mask"), file, "mask, which must be PNG, TIFF or BMP,")
    if mask.shape != tuple(size_hw):
        (height, width), (own_height, own_width) = size_hw, mask.shape
        raise UserError(
            f"{what} must be as large as the picture, {width} x {height}; got {own_width} x {own_height}"
        )
    if not mask.any():
        raise UserError(f"{what} must cover something; it is all black")
    return mask


def _not_black(encoded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(encoded), formats=("PNG", "TIFF", "BMP")) as picture:
        if "A" in picture.getbands() or "transparency" in picture.info:
            raise UserError("it is partly transparent; a mask must be black and another colour")
        values = np.array(picture)
    return np.asarray(values.reshape(*values.shape[:2], -1).any(2))


def points_of_picture(points: ArrayLike, size_hw: tuple[int, int], normalized: bool) -> np.ndarray:
    """Check a user's points.

    Args:
        points: (R, P, 2) `xy`, P of each of R things; as lists, things may have different numbers.
        size_hw: (height, width) of the picture.
        normalized: Whether they are in [0, 1] of its width and height.

    Returns:
        (R, P, 2) float64 normalised, P the most that a thing has: one of fewer repeats its first.

    Raises:
        UserError: If they are of another shape, or one does not lie in the picture.
    """
    array = _even(points, 2, "points must be (R, P, 2), P `xy` for each of R things")
    own = array if normalized else array / np.array(size_hw[::-1])
    outside = ~((own >= 0) & (own <= 1)).all(-1)  # this way round, NaN is outside
    if outside.any():
        row, place = (int(index[0]) for index in np.nonzero(outside))
        got = ", ".join(f"{value:g}" for value in array[row, place])
        raise UserError(f"points must lie in the picture; got ({got}) in row {row}")
    return own


def sets_of_boxes(boxes: ArrayLike | None) -> np.ndarray | None:
    """What a user gives as boxes, if it is several boxes for each region: (R, P, 4); None for anything else.

    As lists, regions may have different numbers of boxes; one of fewer repeats its first.

    Raises:
        UserError: If a region has no box.
    """
    if boxes is None or isinstance(boxes, (str, bytes)) or _depth(boxes) != 3:
        return None
    return _even(boxes, 4, "boxes must be (R, 4), or (R, P, 4) for P boxes of each of R regions")


def _depth(values: Any) -> int:
    """How deep lists lie in lists, by the first of each."""
    if isinstance(values, np.ndarray) or hasattr(values, "ndim"):
        return int(values.ndim)
    if not isinstance(values, (list, tuple)):
        return 0
    return 1 + max(map(_depth, values), default=0)


def _even(values: Any, width: int, expected: str) -> np.ndarray:
    """Rows of points or boxes (R, P, width), filled up to one number by repeating the first of each.

    Raises:
        UserError: If they are something else, or a row is empty.
    """
    try:
        rows = [np.asarray(row, np.float64) for row in values]
    except (TypeError, ValueError):
        raise UserError(f"{expected}; got {values!r:.80}") from None
    if not rows:
        return np.empty((0, 1, width))
    for number, row in enumerate(rows):
        if row.ndim != 2 or row.shape[1] != width or not len(row):
            raise UserError(f"{expected}; got {row.shape} in row {number}")
    most = max(map(len, rows))
    return np.stack([np.concatenate([row, row[:1].repeat(most - len(row), 0)]) for row in rows])


def around(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The boxes (R, 4) around P corners (R, P, 2) each, lower ones and upper ones."""
    return np.concatenate([low.min(1), high.max(1)], -1)


def boxes_of_masks(masks: np.ndarray) -> np.ndarray:
    """The boxes around masks (R, H, W), none of them empty: (R, 4) float64 normalised `xyxy`."""
    ends = []
    for profile in (np.any(masks, axis=1), np.any(masks, axis=2)):  # (R, W), (R, H)
        length = profile.shape[1]
        ends.append((profile.argmax(1) / length, 1 - profile[:, ::-1].argmax(1) / length))
    (x1, x2), (y1, y2) = ends
    return np.stack([x1, y1, x2, y2], axis=-1)


def check_texts(texts: Sequence[str], what: str, clean: Callable[[str], str]) -> None:
    """Refuse an empty list, texts that say nothing, and one string where a list belongs.

    Args:
        texts: What the user gave.
        what: What the texts are, for the message, such as `labels`.
        clean: A text as the model reads it.

    Raises:
        UserError: Names the first text that is wrong.
    """
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise UserError(f"{what} must be a list of strings; got {type(texts).__name__}")
    if not texts:
        raise UserError(f"{what} must hold at least one text; got none")
    for row, text in enumerate(texts):
        if not isinstance(text, str) or not clean(text):
            raise UserError(f"{what} must be non-empty strings; got {text!r} in row {row}")


def check_told_apart(labels: Sequence[str], token_ids: Tensor) -> None:
    """Refuse labels that differ only in their ends, past what the model reads.

    Args:
        labels: What the user gave, all different.
        token_ids: (T, tokens) what the model reads of each.

    Raises:
        UserError: Names the first two that are the same to it.
    """
    known: dict[bytes, str] = {}
    for label, row in zip(labels, token_ids.cpu().numpy()):
        other = known.setdefault(row.tobytes(), label)
        if other != label:
            raise UserError(
                f"labels must differ in what the model reads of them; of {other!r:.80} and {label!r:.80} it "
                "reads the same: their ends are past its context"
            )


def check_distinct(labels: Sequence[str], clean: Callable[[str], str]) -> None:
    """Refuse labels of which two are the same to the model: they would share one answer's score.

    Args:
        labels: What the user gave.
        clean: A text as the model reads it.

    Raises:
        UserError: Names the first one that is repeated.
    """
    known: dict[str, str] = {}
    for label in labels:
        other = known.setdefault(clean(label), label)
        if other != label:
            raise UserError(f"labels must be distinct; this model reads {other!r} and {label!r} alike")
    if len(known) < len(labels):
        repeated = next(label for label in labels if list(labels).count(label) > 1)
        raise UserError(f"labels must be distinct; got {repeated!r} more than once")
