"""Boxes as a file gives them become regions, or are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_cloc.boxes import EMPTY, INVERTED, NOT_FINITE, OK, OUTSIDE, box_problems
from open_cloc.data.annotations import RawRegion, RawSample, finish


def test_box_problems_by_hand() -> None:
    boxes = np.array(
        [
            [0.1, 0.1, 0.2, 0.2],
            [np.nan, 0, 1, 1],
            [0.5, 0.1, 0.4, 0.2],
            [0.5, 0.1, 1.2, 0.2],
            [-0.0009, 0, 1.0009, 1],
            [-0.009, 0, 1, 1],
            [0.3, 0.3, 0.3, 0.6],
            [1.0, 0.2, 1.0005, 0.4],
        ]
    )
    expected = [OK, NOT_FINITE, INVERTED, OUTSIDE, OK, OUTSIDE, EMPTY, EMPTY]
    assert box_problems(boxes).tolist() == expected
    assert box_problems(boxes, (100, 100)).tolist() == [*expected[:5], OK, *expected[6:]]  # within a pixel
    assert box_problems(np.empty((0, 4))).tolist() == []


@settings(deadline=None)
@given(
    st.tuples(*[st.floats(0, 90)] * 2, *[st.floats(1, 10)] * 2),
    st.sampled_from(["xyxy", "xywh", "cxcywh"]),
    st.booleans(),
)
def test_every_declared_format_gives_the_same_region(xywh: tuple, box_format: str, normalized: bool) -> None:
    x, y, w, h = xywh
    forms = {"xyxy": (x, y, x + w, y + h), "xywh": xywh, "cxcywh": (x + w / 2, y + h / 2, w, h)}
    box = np.array(forms[box_format]) / (100 if normalized else 1)
    region = RawRegion(tuple(box), "t", "row 0")
    raw = RawSample("k", b"", (100, 100), "f", (), (region,), box_format, normalized)
    expected = (x / 100, y / 100, (x + w) / 100, (y + h) / 100)
    assert finish(raw).regions[0].box == pytest.approx(expected, abs=1e-9)


def test_a_pixel_outside_is_rounding_for_normalised_boxes_too() -> None:
    image = np.zeros((50, 100, 3), np.uint8)
    within = RawSample("k", image, None, "f", (), (RawRegion((0.2, 0.2, 1.009, 1.019), "t", "line 1"),))
    assert finish(within).regions[0].box == (0.2, 0.2, 1, 1)
    beyond = RawSample("k", image, None, "f", (), (RawRegion((0.2, 0.2, 1.011, 1), "t", "line 1"),))
    with pytest.raises(ValueError, match=r"outside the picture.*\(f, line 1\)"):
        finish(beyond)
