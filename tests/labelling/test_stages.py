"""Stages on batches, without Ray: a picture that has failed goes along and is left alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from open_cloc.labelling.recipe import CaptionConfig, DetectorConfig, PhraseConfig
from open_cloc.labelling.stages import CaptionStage, DecodeStage, DetectStage, PhraseStage
from open_cloc.labelling.types import Batch, Caption, Detections, Failure, Phrase, Phrases, Picture
from tests.labelling.made import encoded

HERE = "tests.labelling.test_stages"


class Suffix:
    """A captioner that goes on writing what was given, but fails where nothing was."""

    def __init__(self, config: CaptionConfig, device: str) -> None:
        self.provenance = {"name": "suffix"}

    def __call__(self, images: Sequence[bytes], captions: Sequence[Sequence[str]]) -> list[Any]:
        return [Caption(f"{own[0]}!", "me") if own else Failure("no caption", "none") for own in captions]


class Words:
    """Phrase rules that take every word."""

    def __init__(self, config: PhraseConfig) -> None:
        self.provenance = {"name": "words"}

    def __call__(self, captions: Sequence[str]) -> list[Phrases]:
        return [Phrases(tuple(Phrase(word, 0, 1) for word in text.split())) for text in captions]


class Whole:
    """A detector that finds everything everywhere, and knows its own cycle score."""

    def __init__(self, config: DetectorConfig, device: Any) -> None:
        self.provenance = {"name": "whole"}

    def __call__(self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]) -> list[Any]:
        assert all(image.ndim == 3 for image in images)
        return [
            Detections(
                np.tile(np.float32([[0, 0, 1, 1]]), (len(own), 1)),
                np.eye(len(own), dtype=np.float32),
                cycle=np.linspace(0, 1, len(own), dtype=np.float32),
            )
            for own in phrases
        ]


def batch(*pictures: Picture) -> Batch:
    return Batch("00000", 0, 1, pictures)


GOOD = Picture(0, "good", encoded(), ("a dog",))
FAILED = Picture(1, "failed", failure=Failure("missing picture", "gone"))


def test_captions_are_put_and_failures_left_alone() -> None:
    stage = CaptionStage(CaptionConfig(kind=f"{HERE}:Suffix"), "cpu")
    made = stage(batch(GOOD, FAILED, Picture(2, "silent", b"x")))
    assert made.pictures[0].caption == Caption("a dog!", "me")
    assert made.pictures[1] == FAILED
    assert made.pictures[2].failure == Failure("no caption", "none")
    assert made.pictures[2].image == b""
    assert made.made_by == {"caption": {"name": "suffix"}}


def test_phrases_come_from_the_caption() -> None:
    captioned = Picture(0, "a", b"x", caption=Caption("red dog", "me"))
    made = PhraseStage(PhraseConfig(kind=f"{HERE}:Words"))(batch(captioned, FAILED))
    assert [phrase.text for phrase in made.pictures[0].phrases.kept] == ["red", "dog"]  # type: ignore[union-attr]
    assert made.pictures[1] == FAILED


def test_pictures_end_at_the_detector() -> None:
    phrases = Phrases((Phrase("red", 0, 3), Phrase("dog", 4, 7)))
    good = Picture(0, "good", encoded(), phrases=phrases)
    broken = Picture(1, "broken", b"no picture", phrases=phrases)
    stage = DetectStage(DetectorConfig(kind=f"{HERE}:Whole"), "detector", "cpu")
    made = stage(batch(good, broken, FAILED))
    assert [picture.image for picture in made.pictures] == [b""] * 3
    found = made.pictures[0]
    assert found.detections is not None
    np.testing.assert_array_equal(found.cycle, [0, 1])  # of each box's best phrase
    assert made.pictures[1].failure is not None
    assert made.pictures[1].failure.cause == "unreadable picture"


def test_a_batch_of_failures_goes_through() -> None:
    stage = DetectStage(DetectorConfig(kind=f"{HERE}:Whole"), "", "cpu")
    assert stage(batch(FAILED)).pictures == (FAILED,)


def test_decoding_beside_the_detector_changes_nothing() -> None:
    config = DetectorConfig(kind=f"{HERE}:Whole")
    broken = Picture(1, "broken", b"no picture", phrases=Phrases((Phrase("dog", 0, 3),)))
    failed = Picture(2, "failed", failure=Failure("no caption", "none"))
    good = replace(GOOD, phrases=Phrases((Phrase("dog", 0, 3),)))
    expected = DetectStage(config, "", "cpu")(batch(good, broken, failed))
    decoded = DecodeStage(config)(batch(good, broken, failed))
    pixels = decoded.pictures[0].pixels
    assert pixels is not None
    assert pixels.shape == (16, 24, 3)
    assert decoded.pictures[0].image == b""
    assert decoded.pictures[1].failure is not None
    assert decoded.pictures[1].failure.cause == "unreadable picture"
    assert decoded.pictures[2] == failed
    assert str(DetectStage(config, "", "cpu")(decoded)) == str(expected)
