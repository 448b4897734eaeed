"""Values of files from elsewhere, judged by type."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_cloc.data.fields import FieldError, as_box, as_flag, as_id, as_number, as_text, as_whole

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(ANYTHING)
@pytest.mark.parametrize("read", [as_box, as_flag, as_id, as_number, as_text, as_whole])
def test_any_value_is_read_or_refused_in_words(read: Any, value: Any) -> None:
    with contextlib.suppress(FieldError):
        read(value, "field")


def test_ids_match_by_their_digits() -> None:
    assert as_id(7, "id") == as_id("7", "id") == as_id(7.0, "id") != as_id("007", "id")
    for wrong in (True, None, 7.5, float("nan"), [7], ""):
        with pytest.raises(FieldError, match="must be a whole number or text"):
            as_id(wrong, "id")


@pytest.mark.parametrize("wrong", [None, 7, True, ["mug"], {"a": 1}, " "])
def test_nothing_but_text_is_text(wrong: Any) -> None:
    with pytest.raises(FieldError):
        as_text(wrong, "name")


def test_whole_numbers_may_be_floats_of_no_fraction() -> None:
    assert as_whole(64.0, "width") == 64
    for wrong in ("64", 64.5, True, float("inf"), -1):
        with pytest.raises(FieldError, match="width must be"):
            as_whole(wrong, "width")


def test_flags_are_no_texts() -> None:
    assert [as_flag(value, "iscrowd") for value in (0, 1, False, True, 0.0)] == [
        False,
        True,
        False,
        True,
        False,
    ]
    for wrong in ("0", None, 2, [0]):
        with pytest.raises(FieldError, match="must be 0, 1, true or false"):
            as_flag(wrong, "iscrowd")
