"""Boxes in another form than the declared one: every form that fits them is named, and no other alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from open_cloc.boxes import convert_boxes
from open_cloc.data.box_forms import ORDERS, UNITS, Boxes, guess_format

DECLARED = [("xywh", "pixels"), ("cxcywh", "[0, 1]"), ("xyxy", "[0, 1]")]


def random_boxes(order: str, unit: str, declared: tuple[str, str], seed: int = 0, side: int = 640) -> Boxes:
    """True boxes of a picture of `side` x 480, written in one form and declared as another."""
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, 1, (40, 2, 2)), axis=1)
    corners[:, 1] = np.minimum(corners[:, 1] + 0.05, 1)
    scale = {"pixels": [side, 480, side, 480], "[0, 1]": 1, "[0, 100]": 100, "[0, 1000]": 1000}[unit]
    columns, box_format = ORDERS[order]
    sorted_numbers = convert_boxes(corners.reshape(-1, 4) * scale, "xyxy", box_format)
    numbers = np.empty_like(sorted_numbers)
    numbers[:, columns] = sorted_numbers
    return Boxes(numbers, (480, side), *declared)


def is_hidden(order: str, unit: str, declared: tuple[str, str]) -> bool:
    """Whether numbers of a form look right in the declared one: nothing can be found out then."""
    alike = {"yxyx": "xyxy", "yxhw": "xywh", "cycxhw": "cxcywh"}  # both sides reach from 0 to 1
    same = unit == declared[1] == "[0, 1]" and alike.get(order, order) == declared[0]
    return same or (order, unit) == declared or (unit == "[0, 100]" and declared[1] == "pixels")


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("declared", DECLARED)
def test_the_real_form_of_wrong_boxes_is_among_those_named(order: str, unit: str, declared: Any) -> None:
    sentence = guess_format([random_boxes(order, unit, declared, seed) for seed in range(5)])
    if is_hidden(order, unit, declared):
        assert sentence == ""
    else:
        assert "of 200 boxes are wrong or tiny as " + " in ".join(declared) in sentence
        likely = sentence.partition("these look like ")[2].partition(";")[0]
        assert f"{order} in {unit} (0% wrong)" in likely


@pytest.mark.parametrize(("order", "twin"), [("xyxy", "yxyx"), ("yxhw", "xywh"), ("cycxhw", "cxcywh")])
def test_nothing_tells_the_axes_of_a_square_apart(order: str, twin: str) -> None:
    declared = ("xxyy", "pixels")
    sentence = guess_format([random_boxes(order, "pixels", declared, seed, side=480) for seed in range(5)])
    for name in (order, twin):
        assert f"{name} in pixels (0% wrong)" in sentence


def test_what_fits_in_a_corner_alone_stands_apart() -> None:
    sentence = guess_format([random_boxes("xyxy", "[0, 100]", ("cxcywh", "[0, 1]"))])
    likely, _, corner = sentence.partition("; in a corner of the pictures also ")
    assert "xyxy in [0, 100]" in likely
    assert "pixels" not in likely
    assert "xyxy in pixels" in corner


def test_boxes_that_fit_no_form_are_given_none() -> None:
    boxes = Boxes(np.full((9, 4), 5e6), (480, 640), "xywh", "pixels")
    assert guess_format([boxes]) == (
        "100% of 9 boxes are wrong or tiny as xywh in pixels; none of 27 other forms fits them"
    )


def test_a_single_wrong_box_is_no_reason_to_guess() -> None:
    good = random_boxes("xywh", "pixels", ("xywh", "pixels"))
    good.numbers[0] = [600, 10, 630, 40]  # right as xyxy only
    assert guess_format([good]) == ""
    assert guess_format([]) == ""
