"""What a stage makes of a batch in which something is wrong: the picture's failure, or the end of the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from open_cloc.errors import RunError, SampleError, UserError, WorkerDiedError
from open_cloc.labelling.attempts import (
    PLAIN_INDEX,
    Attempt,
    check_caption,
    check_cosines,
    check_detections,
    check_phrases,
    plain_provenance,
)
from open_cloc.labelling.types import Caption, Detections, Failure, Phrase, Phrases, Picture

PLAIN = Picture(PLAIN_INDEX, "plain", given=("a plain text",))
CAPTIONED = Picture(0, "a", caption=Caption("a red mug", "given"))


class Shouts:
    """A stage that makes a picture's given caption loud, and fails on those that hold a word."""

    def __init__(self, fails_on: str, error: Exception) -> None:
        self.fails_on, self.error = fails_on, error
        self.calls: list[int] = []

    def __call__(self, pictures: Sequence[Picture]) -> list[Any]:
        self.calls.append(len(pictures))
        if any(self.fails_on in picture.given[0] for picture in pictures):
            raise self.error
        return [Caption(picture.given[0].upper(), "shout") for picture in pictures]


def pictures(*captions: str) -> list[Picture]:
    return [Picture(index, f"p{index}", given=(caption,)) for index, caption in enumerate(captions)]


def test_one_picture_that_makes_a_stage_fail_is_a_failure_of_that_picture() -> None:
    stage = Shouts("odd", RuntimeError("shapes\ndo not fit"))
    made = Attempt("caption", stage, check_caption, PLAIN)(pictures("a mug", "odd one", "a hat"))
    assert [result.text for result in made if isinstance(result, Caption)] == ["A MUG", "A HAT"]
    assert made[1] == Failure("caption failed", "RuntimeError: shapes do not fit")
    assert stage.calls == [3, 1, 1, 1, 1]  # all, each alone, and a plain one where one has failed


def test_a_picture_alone_in_its_batch_does_not_stop_the_run_either() -> None:
    stage = Shouts("odd", SampleError("no colours", "grey picture"))
    made = Attempt("caption", stage, check_caption, PLAIN)(pictures("odd one"))
    assert made == [Failure("grey picture", "no colours")]


@pytest.mark.parametrize("error", [RuntimeError("out of sockets"), UserError("no such model"), KeyError("x")])
def test_a_stage_that_fails_on_a_plain_picture_too_stops_the_run(error: Exception) -> None:
    stage = Shouts("", error)
    with pytest.raises(type(error), match=str(error)):
        Attempt("caption", stage, check_caption, PLAIN)(pictures("a mug", "a hat"))
    assert stage.calls == [2, 1, 1]


def test_what_a_stage_says_of_the_run_is_not_tried_again() -> None:
    stage = Shouts("odd", RunError("no server"))
    with pytest.raises(RunError, match="no server"):
        Attempt("caption", stage, check_caption, PLAIN)(pictures("odd one", "a mug"))
    assert stage.calls == [2]


def test_a_result_for_each_picture_or_none() -> None:
    attempt = Attempt("caption", lambda pictures: [Caption("a", "b")], check_caption, PLAIN)
    with pytest.raises(WorkerDiedError, match="the stage caption gave 1 results for 2 pictures"):
        attempt(pictures("a", "b"))


@pytest.mark.parametrize(
    "made", [None, "a mug", ("a mug", "me"), Caption(" ", "me"), Caption("\ud83d", "me"), Caption(b"a", "me")]
)
def test_what_is_no_caption_is_a_failure(made: Any) -> None:
    attempt = Attempt("caption", lambda pictures: [made] * len(pictures), check_caption, PLAIN)
    (result,) = attempt(pictures("a"))
    assert isinstance(result, Failure)
    assert result.cause in ("caption failed", "empty caption")


def test_captions_and_phrases_are_cleaned_where_they_are_made() -> None:
    assert check_caption(CAPTIONED, Caption("a <b>mug</b> \ud83d", "\ud83d me")).text == "a  mug  "
    phrases = check_phrases(CAPTIONED, Phrases((Phrase("a mug\ud83d\0", 0, 9),), {"rule": 1}))
    assert phrases == Phrases((Phrase("a mug ", 0, 9),), {"rule": 1})


@pytest.mark.parametrize("phrase", [Phrase("", 0, 1), Phrase("mug", 5, 10), Phrase("mug", -1, 2), None])
def test_phrases_that_are_none_are_refused(phrase: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        check_phrases(CAPTIONED, Phrases((phrase,)))


@pytest.mark.parametrize(
    ("boxes", "scores"),
    [
        ([[0, 0, 1, 1.5]], [[0.5]]),
        ([[0, 0, np.nan, 1]], [[0.5]]),
        ([[0, 0, 1, 1]], [[1.5]]),
        ([[0, 0, 1, 1]], [[0.5, 0.5]]),
        ([[0, 0, 1]], [[0.5]]),
        ([], []),
    ],
)
def test_detections_that_cannot_be_written_are_refused(boxes: Any, scores: Any) -> None:
    one_phrase = Picture(0, "a", phrases=Phrases((Phrase("a", 0, 1),)))
    with pytest.raises(ValueError, match="expected"):
        check_detections(one_phrase, Detections(np.array(boxes), np.array(scores)))
    good = check_detections(one_phrase, Detections(np.float64([[0, 0, 1, 1]]), np.float64([[0.5]])))
    assert good.boxes.dtype == good.scores.dtype == np.float32


def test_cosines_are_cosines() -> None:
    assert check_cosines([1.0005, -0.5], 2).tolist() == [1, -0.5]
    for wrong in ([2.0], [np.nan], [0.1, 0.2]):
        with pytest.raises(ValueError, match="cosines"):
            check_cosines(wrong, 1)


class Says:
    """Something with a provenance."""

    def __init__(self, provenance: Any) -> None:
        self.provenance = provenance


@pytest.mark.parametrize(
    "provenance", [{"a": np.float32(1)}, {"a": float("nan")}, {"a": "\ud83d"}, 5, {1, 2}]
)
def test_a_provenance_that_cannot_be_written_is_refused_at_the_start(provenance: Any) -> None:
    with pytest.raises(UserError, match=r"detect\.kind: Says\.provenance must be a table that JSON can hold"):
        plain_provenance(Says(provenance), "detect.kind")
    assert plain_provenance(Says({"a": (1, 2)}), "x") == {"a": [1, 2]}
