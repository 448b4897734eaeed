"""What form boxes may really have that make no sense in the one that is declared.

Forms that fit equally well are all named: in a square picture, nothing tells `xyxy` from `yxyx`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from open_cloc.boxes import OK, box_areas, box_problems, convert_boxes

TINY_AREA = 1e-5  # share of the picture; the loader's default leaves smaller boxes out
PIXELS = "pixels"
# What each unit's numbers are divided by.
UNITS = {PIXELS: np.nan, "[0, 1]": 1.0, "[0, 100]": 100.0, "[0, 1000]": 1000.0}
# Order of the four numbers -> the form that they have once they are sorted so.
ORDERS = {
    "xyxy": ((0, 1, 2, 3), "xyxy"),
    "xywh": ((0, 1, 2, 3), "xywh"),
    "cxcywh": ((0, 1, 2, 3), "cxcywh"),
    "yxyx": ((1, 0, 3, 2), "xyxy"),
    "yxhw": ((1, 0, 3, 2), "xywh"),
    "cycxhw": ((1, 0, 3, 2), "cxcywh"),
    "xxyy": ((0, 2, 1, 3), "xyxy"),
}
# A guess at another form needs this much evidence: wrong boxes, their share, and how few the guess leaves.
MIN_WRONG, MIN_WRONG_SHARE, MAX_LEFT = 3, 0.1, 0.25
MOST_TRIED = 2_000  # samples whose boxes are read in every form
ALIKE = 0.05  # of all boxes: forms that differ by less fit as well as the best


class Boxes(NamedTuple):
    """Boxes of one sample: numbers as read (R, 4), the picture's (height, width), and the declared form."""

    numbers: np.ndarray
    size_hw: tuple[int, int] | None
    box_format: str
    unit: str


def unit_of(normalized: bool) -> str:
    """The unit that a reader declares."""
    return "[0, 1]" if normalized else PIXELS


def is_tiny(boxes: np.ndarray, size_hw: tuple[int, int] | None) -> np.ndarray:
    """Which normalised `xyxy` boxes (R, 4) are under a pixel high or wide, or a hair of the picture: (R,)."""
    height, width = size_hw or (np.inf, np.inf)
    sides = (boxes[:, 2:] - boxes[:, :2]) * [width, height]
    return (box_areas(boxes) < TINY_AREA) | (sides < 1).any(1)


class Form(NamedTuple):
    """An order and a unit of numbers, and how boxes look if they are read so.

    Attributes:
        order: One of `ORDERS`.
        unit: One of `UNITS`.
        wrong: How many make no sense.
        extent: Share of the pictures' sides that they reach into, at most.
    """

    order: str
    unit: str
    wrong: int
    extent: float

    @property
    def name(self) -> str:
        """The form in words."""
        return f"{self.order} in {self.unit}"


def guess_format(samples: Sequence[Boxes]) -> str:
    """A sentence on the forms that wrong boxes may have, or an empty text where too few are wrong.

    Every order in every unit is tried. Those are named that make nearly all wrong boxes right, and nearly as
    many as the best of them; last and apart those by which all boxes lie in a corner of the pictures.
    """
    total = sum(len(sample.numbers) for sample in samples)
    if not total:
        return ""
    wrong = _read_as(samples, *samples[0][2:]).wrong
    if wrong < max(MIN_WRONG, MIN_WRONG_SHARE * total):
        return ""
    before = f"{wrong / total:.0%} of {total} boxes are wrong or tiny as {' in '.join(samples[0][2:])}"
    tried = samples[:: -(-len(samples) // MOST_TRIED)]
    total = sum(len(sample.numbers) for sample in tried)
    forms = [_read_as(tried, order, unit) for order in ORDERS for unit in UNITS]
    declared = next(form for form in forms if (form.order, form.unit) == samples[0][2:])
    most = min(MAX_LEFT * declared.wrong, min(form.wrong for form in forms) + ALIKE * total)
    fitting = sorted(
        (form for form in forms if form.wrong <= most),
        key=lambda form: (form.unit != declared.unit, form.wrong),
    )
    if not fitting:
        is_most = declared.wrong > total / 2
        return f"{before}; none of {len(forms) - 1} other forms fits them" if is_most else ""
    widest = max(form.extent for form in fitting)
    likely = [form for form in fitting if form.extent >= widest / 2]
    corner = [form.name for form in fitting if form not in likely]
    names = " or ".join(f"{form.name} ({form.wrong / total:.0%} wrong)" for form in likely)
    apart = f"; in a corner of the pictures also {', '.join(corner)}" if corner else ""
    return f"{before}: these look like {names}{apart}"


def _read_as(samples: Sequence[Boxes], order: str, unit: str) -> Form:
    read = [_count_wrong(sample, order, unit) for sample in samples]
    return Form(order, unit, sum(wrong for wrong, _ in read), max(extent for _, extent in read))


def _count_wrong(sample: Boxes, order: str, unit: str) -> tuple[int, float]:
    """How many boxes of a sample make no sense in an order and a unit, and how far the others reach."""
    scale = np.full(4, UNITS[unit])
    if unit == PIXELS:
        if sample.size_hw is None:
            return len(sample.numbers), 0.0
        scale = np.tile(sample.size_hw[::-1], 2).astype(float)
    columns, box_format = ORDERS[order]
    with np.errstate(invalid="ignore", over="ignore"):
        boxes = convert_boxes(sample.numbers[:, columns], box_format) / scale
        wrong = (box_problems(boxes, sample.size_hw) != OK) | is_tiny(boxes, sample.size_hw)
    return int(wrong.sum()), float(boxes[~wrong, 2:].max(initial=0.0))
