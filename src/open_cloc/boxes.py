"""The one box form used inside the package, and the conversions to and from every other.

Inside: float32 `xyxy`, normalised to [0, 1] of the image as it is now, shape (..., 4). Coordinates are
continuous (a box covers x1 to x2, no "+1"). Everything else is converted here, at the border, by name.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch

from open_cloc.errors import UserError

BOX_FORMATS = ("xyxy", "xywh", "cxcywh")

OK, NOT_FINITE, INVERTED, OUTSIDE, EMPTY = range(5)
PROBLEMS = ("", "not finite", "inverted", "outside the picture", "without area")
SLACK = 1e-3  # of the side: rounding by the annotator, not a wrong format
MIN_SIDE = 1e-6  # of the side: below this a box has no area

Array = TypeVar("Array", np.ndarray, torch.Tensor)


def convert_boxes(boxes: Array, source: str, target: str = "xyxy") -> Array:
    """Convert boxes between formats.

    Args:
        boxes: (..., 4) in any unit.
        source: The format they have: `xyxy` (corners), `xywh` (top-left corner and size, as in COCO) or
            `cxcywh` (centre and size).
        target: The format that is wanted, by the same names.

    Returns:
        (..., 4) in the same unit.

    Raises:
        UserError: On an unknown format, or if the last dimension is not 4.
    """
    for name in (source, target):
        if name not in BOX_FORMATS:
            raise UserError(f"unknown box format {name!r}; expected one of {', '.join(BOX_FORMATS)}")
    if boxes.shape[-1:] != (4,):
        raise UserError(f"boxes must have 4 numbers each; got shape {tuple(boxes.shape)}")
    a, b, c, d = (boxes[..., i] for i in range(4))
    if source == "xywh":
        a, b, c, d = a, b, a + c, b + d
    elif source == "cxcywh":
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    if target == "xywh":
        a, b, c, d = a, b, c - a, d - b
    elif target == "cxcywh":
        a, b, c, d = (a + c) / 2, (b + d) / 2, c - a, d - b
    return _stack([a, b, c, d], boxes)


def normalize_boxes(boxes_px: Array, size_hw: tuple[int, int]) -> Array:
    """Divide pixel `xyxy` boxes (..., 4) by an image's (height, width)."""
    height, width = size_hw
    a, b, c, d = (boxes_px[..., i] for i in range(4))
    return _stack([a / width, b / height, c / width, d / height], boxes_px)


def denormalize_boxes(boxes: Array, size_hw: tuple[int, int]) -> Array:
    """Turn normalised `xyxy` boxes (..., 4) into pixels of an image of (height, width)."""
    height, width = size_hw
    a, b, c, d = (boxes[..., i] for i in range(4))
    return _stack([a * width, b * height, c * width, d * height], boxes)


def slack(size_hw: tuple[int, int] | None = None) -> np.ndarray:
    """How far a box may leave the picture, as annotators round: a pixel or 0.1 % of the side, what is more.

    Args:
        size_hw: The picture's (height, width), where it is known.

    Returns:
        (2,) shares of width and height.
    """
    height, width = size_hw or (np.inf, np.inf)
    return np.maximum(SLACK, 1 / np.array([width, height])) + 1e-9  # a pixel, however its share is rounded


def box_problems(boxes: np.ndarray, size_hw: tuple[int, int] | None = None) -> np.ndarray:
    """Classify normalised `xyxy` boxes, wherever they come from: files or users.

    Args:
        boxes: (R, 4) normalised `xyxy`, not clipped.
        size_hw: The picture's (height, width), where it is known.

    Returns:
        (R,) codes: `OK`, `NOT_FINITE`, `INVERTED`, `OUTSIDE` (by more than `slack`) or `EMPTY` (no area
        inside the picture).
    """
    inside = (boxes >= 0).all() and (boxes <= 1).all()
    # The usual case, in a fifth of the time.
    if inside and (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all():
        return np.full(len(boxes), OK)
    allowed = slack(size_hw)
    with np.errstate(invalid="ignore"):
        clipped = np.clip(boxes, 0, 1)
        sides = clipped[:, 2:] - clipped[:, :2]
        rules = [
            (~np.isfinite(boxes).all(1), NOT_FINITE),
            ((boxes[:, 2:] < boxes[:, :2]).any(1), INVERTED),
            ((boxes[:, :2] < -allowed).any(1) | (boxes[:, 2:] > 1 + allowed).any(1), OUTSIDE),
            ((sides < MIN_SIDE).any(1), EMPTY),
        ]
    return np.select([hit for hit, _ in rules], [code for _, code in rules], OK)


def validate_boxes_px(
    boxes_px: np.ndarray, size_hw: tuple[int, int], where: str = "", given: np.ndarray | None = None
) -> None:
    """Raise if any pixel `xyxy` box is one that `box_problems` finds wrong, or has no area.

    Args:
        boxes_px: (R, 4) pixels.
        size_hw: The picture's (height, width).
        where: Where the boxes come from, for the message.
        given: (R, 4) the numbers as the user knows them, for the message; the pixels unless told.

    Raises:
        UserError: If a box is wrong; names the first such row, what is wrong with it, and the likely cause.
    """
    suffix = f" ({where})" if where else ""
    if boxes_px.ndim != 2 or boxes_px.shape[1] != 4:
        raise UserError(f"boxes must be (R, 4); got shape {tuple(boxes_px.shape)}{suffix}")
    codes = box_problems(normalize_boxes(boxes_px.astype(np.float64), size_hw), size_hw)
    for row in np.flatnonzero(codes != OK)[:1].tolist():
        x1, y1, x2, y2 = boxes_px[row].tolist()
        numbers = (boxes_px if given is None else given)[row].tolist()
        box = f"[{', '.join(f'{number:g}' for number in numbers)}] in row {row}"
        if codes[row] == NOT_FINITE:
            raise UserError(f"boxes must be finite; got {box}{suffix}")
        if x2 <= x1 or y2 <= y1:
            raise UserError(
                f"boxes must have x1 < x2 and y1 < y2; got {box}{suffix}: if these are x, y, width, height, "
                "say so by box_format='xywh' (--box-format xywh)"
            )
        size = "{1} x {0}".format(*size_hw)
        raise UserError(f"boxes must lie inside the picture of {size} pixels; got {box}{suffix}")


def box_areas(boxes: Array) -> Array:
    """Areas (...,) of `xyxy` boxes (..., 4); negative for inverted ones."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def distinct_boxes(boxes: np.ndarray, classes: np.ndarray, most_iou: float) -> np.ndarray:
    """Non-maximum suppression within each class, as torchvision's `batched_nms`.

    Args:
        boxes: (N, 4) `xyxy` in any unit, best first.
        classes: (N,) of any type.
        most_iou: A box goes if it overlaps a better one of its class, which stays, by more than this.

    Returns:
        (N,) bool, whether a box stays.
    """
    x1, y1, x2, y2 = boxes.astype(np.float64).T
    width = np.minimum.outer(x2, x2) - np.maximum.outer(x1, x1)
    height = np.minimum.outer(y2, y2) - np.maximum.outer(y1, y1)
    shared = width.clip(min=0) * height.clip(min=0)
    areas = (x2 - x1) * (y2 - y1)
    over = (shared > most_iou * (np.add.outer(areas, areas) - shared)) & np.equal.outer(classes, classes)
    stays = np.ones(len(boxes), bool)
    for row in np.flatnonzero(np.triu(over, 1).any(1)):  # those without an effect need no look
        if stays[row]:
            stays[row + 1 :] &= ~over[row, row + 1 :]
    return stays


def iou(boxes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Intersection over union, pair by pair; torchvision's `box_iou` pairs all with all of one image.

    Args:
        boxes: (..., 4) `xyxy` in any unit.
        others: (..., 4) in the same unit; the leading dimensions broadcast.

    Returns:
        (...,) in [0, 1]; 0 where neither box has an area.
    """
    low = torch.maximum(boxes[..., :2], others[..., :2])
    high = torch.minimum(boxes[..., 2:], others[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(b[..., 2:] - b[..., :2]).prod(-1) for b in (boxes, others)]
    return shared / (areas[0] + areas[1] - shared).clamp(min=1e-12)


def judged_overlaps(found: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Overlaps that thresholds are held against: boxes of whole pixels that share a half share 0.5 exactly.

    Shares of a side carry rounding of their own, some 1e-13 of an overlap. Two overlaps of boxes of whole
    pixels differ by more than the ninth decimal, to which these are rounded. A model's float32 knows no more
    than the sixth.

    Args:
        found: (K, 4) normalised `xyxy`, float64 where they are of a file.
        true: (G, 4) float64 of the same picture.

    Returns:
        (K, G) float64 in [0, 1].
    """
    decimals = 9 if found.dtype == torch.float64 else 6
    return iou(found.double()[:, None], true).round(decimals=decimals)


def whole_pixels(boxes: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Normalised boxes (..., 4) in pixels of (height, width), free of the rounding of shares: to 1e-6."""
    return denormalize_boxes(boxes, size_hw).round(6)


def overlap_fraction(boxes: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Share of each cell's area that a box covers.

    Args:
        boxes: (..., R, 4) normalised `xyxy`.
        cells: (N, 4) normalised `xyxy`, such as the patches of an image.

    Returns:
        (..., R, N) in [0, 1].
    """
    low = torch.maximum(boxes[..., None, :2], cells[:, :2])  # (..., R, N, 2)
    high = torch.minimum(boxes[..., None, 2:], cells[:, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    return shared / (cells[:, 2:] - cells[:, :2]).prod(-1)


def grid_cells(grid_size: tuple[int, int], device: torch.device | None = None) -> torch.Tensor:
    """Boxes of the cells of a (rows, columns) grid over the image, row by row: (rows * columns, 4)."""
    rows, columns = grid_size
    y = torch.arange(rows, device=device, dtype=torch.float32)
    x = torch.arange(columns, device=device, dtype=torch.float32)
    yy, xx = torch.meshgrid(y, x, indexing="ij")
    corners = [xx / columns, yy / rows, (xx + 1) / columns, (yy + 1) / rows]
    return torch.stack(corners, dim=-1).reshape(-1, 4)


def _stack(columns: list[Array], like: Array) -> Array:
    """Columns (...,) side by side (..., n), as what `like` is."""
    if isinstance(like, torch.Tensor):
        return torch.stack(columns, dim=-1)
    return np.stack(columns, axis=-1)
