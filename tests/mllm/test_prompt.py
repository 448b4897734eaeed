"""Boxes as text and back, and everything that points becomes a box."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from open_cloc.errors import UserError
from open_cloc.mllm.prompt import box_text, boxes_in, step_texts, token_ids, write_boxes
from open_cloc.mllm.referring import POINT_SIDE, boxes_of, in_pixels
from open_cloc.mllm.small import SmallLM, word_tokenizer

SIZE = (50, 90)


@pytest.mark.parametrize("bins", [10, 32, 100, 1000])
def test_a_box_comes_back_to_half_a_step(bins: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        box = np.sort(rng.random((2, 2)), axis=0).ravel()
        back = boxes_in(f"it is {box_text(box, bins)} .", bins)
        assert back.shape == (1, 4)
        np.testing.assert_allclose(back[0], box, atol=0.5 / bins + 1e-9)


def test_numbers_are_as_long_as_the_last() -> None:
    assert box_text([0, 0.071, 0.5, 1.0], 100) == "[00 07 50 99]"
    assert box_text([-0.2, 0, 1.3, 0.05], 1000) == "[000 000 999 050]"
    assert step_texts(12) == ["00", "01", "02", "03", "04", "05", "06", "07", "08", "09", "10", "11"]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("[ 0 1 , 0 2 , 5 0 , 9 9 ]", 1),
        ("[01, 02, 50, 99] and [00 00 10 10]", 2),
        ("[01 02 50]", 0),
        ("[1 2 50 99]", 0),
        ("[50 02 01 99]", 0),
        ("[01 02 50 99 99]", 0),
        ("[]", 0),
        ("no box", 0),
        ("[" + "9" * 5000 + "]", 0),
    ],
)
def test_what_counts_as_a_box(text: str, count: int) -> None:
    assert len(boxes_in(text, 100)) == count


def test_steps_past_the_last_are_no_box() -> None:
    assert len(boxes_in("[00 00 11 11]", 12)) == 1
    assert len(boxes_in("[00 00 11 12]", 12)) == 0


def test_boxes_are_written_in_order() -> None:
    assert write_boxes("is <region> in <region> ?", ["[1]", "[2]"]) == "is [1] in [2] ?"


def test_ids_of_a_prompt() -> None:
    tokenizer = word_tokenizer(["what is in it ?"])
    ids = token_ids("<image>\nwhat is<region>?", tokenizer)
    start = tokenizer.bos_token_id
    assert ids == [start, -1, *tokenizer("what is")["input_ids"], -2, *tokenizer("?")["input_ids"]]
    tokenizer.bos_token = None
    assert token_ids("<image>", tokenizer) == [-1]


def test_all_that_points_becomes_a_box() -> None:
    mask = np.zeros(SIZE, bool)
    mask[10:20, 30:60] = True
    boxes = in_pixels(boxes_of([[1, 2, 30, 40], [45, 25], [[10, 10], [30, 40], [20, 20]], mask], SIZE), SIZE)
    half = POINT_SIDE * 50 / 2
    expected = [
        [1, 2, 30, 40],
        [45 - half, 25 - half, 45 + half, 25 + half],
        [10, 10, 30, 40],
        [30, 10, 60, 20],
    ]
    np.testing.assert_allclose(boxes, expected, atol=1e-9)


def test_a_flat_scribble_and_a_point_in_the_corner() -> None:
    half = POINT_SIDE * 50 / 2
    boxes = in_pixels(boxes_of([[[10, 20], [40, 20]], [0, 50]], SIZE), SIZE)
    np.testing.assert_allclose(boxes, [[10, 20 - half, 40, 20 + half], [0, 50 - half, half, 50]], atol=1e-9)


def test_no_regions() -> None:
    assert boxes_of([], SIZE).shape == (0, 4)


@pytest.mark.parametrize(
    ("region", "said"),
    [
        ([1, 2, 3], "must be a box"),
        ("here", "must be a box"),
        ([[1, 2, 3]], "must be a box"),
        ([[1, 2], [3]], "must be a box"),
        (np.zeros((0, 2)), "must be a box"),
        ([10, 10, 95, 20], "must lie inside"),
        ([91, 3], "must lie in the picture of 90 x 50 pixels"),
        ([float("nan"), 3], "must lie in the picture"),
        ([[1, 1], [3, -4]], "must lie in the picture"),
        (np.zeros(SIZE, bool), "empty"),
        (np.ones((4, 4), bool), "masks must be"),
    ],
)
def test_what_points_nowhere(region: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        boxes_of([region], SIZE)


def test_regions_are_a_list() -> None:
    with pytest.raises(UserError, match="must be a list"):
        boxes_of(np.zeros((2, 3, 4)), SIZE)


def test_sizes_of_the_small_language_model() -> None:
    with pytest.raises(UserError, match="multiple of twice its heads"):
        SmallLM(width=30, heads=4)
