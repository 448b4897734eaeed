"""The stages that change batches: re-caption, phrases, detect, cycle score. None of them knows Ray.

Each imports what it needs when it is made: its process may need nothing else. What is wrong with one picture
becomes its `failure`; a stage that raises is broken, and stops the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from threading import Lock
from typing import Any, Protocol, TypeVar

import numpy as np

from open_cloc.data.bad_samples import problem_of
from open_cloc.labelling.attempts import (
    PLAIN_CAPTION,
    PLAIN_INDEX,
    PLAIN_PHRASE,
    PLAIN_PIXELS,
    Attempt,
    check_caption,
    check_cosines,
    check_detections,
    check_phrases,
    plain_provenance,
)
from open_cloc.labelling.recipe import OWN, CaptionConfig, DetectorConfig, PhraseConfig
from open_cloc.labelling.types import Batch, Caption, Detections, Failure, Phrases, Picture
from open_cloc.pictures import read_pixels

Made = TypeVar("Made")


class Stage(Protocol):
    """One step of the pipeline."""

    def __call__(self, batch: Batch) -> Batch: ...


class CaptionStage:
    """Gives each picture the caption that its phrases come from."""

    def __init__(self, config: CaptionConfig, device: str) -> None:
        from open_cloc.data.shards.write import Storage, encode_picture
        from open_cloc.labelling.captioners import open_captioner

        self.captioner = open_captioner(config, device)
        self.provenance = plain_provenance(self.captioner, "caption.kind")
        image = encode_picture(PLAIN_PIXELS, Storage())[1]
        plain = Picture(PLAIN_INDEX, "plain", image, (PLAIN_CAPTION,))
        self.attempt = Attempt("caption", self._caption, check_caption, plain)

    def __call__(self, batch: Batch) -> Batch:
        return _step(batch, self.attempt, self.provenance, lambda p, caption: replace(p, caption=caption))

    def _caption(self, pictures: Sequence[Picture]) -> Sequence[Any]:
        return self.captioner([p.image for p in pictures], [p.given for p in pictures])


class PhraseStage:
    """Finds the phrases of captions."""

    def __init__(self, config: PhraseConfig) -> None:
        from open_cloc.labelling.phrases import open_phrase_rules

        self.rules = open_phrase_rules(config)
        self.provenance = plain_provenance(self.rules, "phrases.kind")
        plain = Picture(PLAIN_INDEX, "plain", caption=Caption(PLAIN_CAPTION, "given"))
        self.attempt = Attempt("phrases", self._find, check_phrases, plain)

    def __call__(self, batch: Batch) -> Batch:
        return _step(batch, self.attempt, self.provenance, lambda p, phrases: replace(p, phrases=phrases))

    def _find(self, pictures: Sequence[Picture]) -> Sequence[Any]:
        return self.rules([p.caption.text if p.caption else "" for p in pictures])


class DecodeStage:
    """Decodes pictures and scales them as the detector will: a CPU's work, beside a detector on a GPU.

    Args:
        config: The detector's; None leaves pictures as large as they are, for who else looks at them.
    """

    def __init__(self, config: DetectorConfig | None) -> None:
        from open_cloc.labelling.detectors import open_scaling

        self.scale = None if config is None else open_scaling(config)

    def __call__(self, batch: Batch) -> Batch:
        return replace(batch, pictures=tuple(self._decode(picture) for picture in batch.pictures))

    def _decode(self, picture: Picture) -> Picture:
        if picture.failure is not None:
            return picture
        pixels = _decoded(picture)
        if isinstance(pixels, Failure):
            return picture.failed(pixels)
        return replace(picture, image=b"", pixels=pixels if self.scale is None else self.scale(pixels))


class DetectStage:
    """Finds phrases in pictures, and has a CLOC model look again if asked to; decodes what is not decoded.

    Pictures end here: what goes on is small.
    """

    def __init__(self, config: DetectorConfig, cycle_weights: str, device: str) -> None:
        from open_cloc.labelling.detectors import open_detector

        self.detector = open_detector(config, device)
        self.provenance = plain_provenance(self.detector, "detect.kind")
        self.one_at_a_time = Lock()  # threads may have a batch each
        self.own_cycle = cycle_weights == OWN
        self.cycle: Any = None
        if cycle_weights and not self.own_cycle:
            from open_cloc.labelling.cycle import CycleScorer

            self.cycle = CycleScorer(cycle_weights, device)

    def __call__(self, batch: Batch) -> Batch:
        pixels = {p.index: _decoded(p) for p in batch.pictures if p.failure is None}
        decoded = [_or_failed(p, pixels.get(p.index)) for p in batch.pictures]
        pixels[PLAIN_INDEX] = PLAIN_PIXELS
        with self.one_at_a_time:
            batch = self._detect(replace(batch, pictures=tuple(decoded)), pixels)
            batch = self._look_again(batch, pixels)
        return replace(batch, pictures=tuple(replace(p, image=b"", pixels=None) for p in batch.pictures))

    def _detect(self, batch: Batch, pixels: Mapping[int, Any]) -> Batch:
        def detect(pictures: Sequence[Picture]) -> Sequence[Any]:
            return self.detector([pixels[p.index] for p in pictures], [_texts(p) for p in pictures])

        attempt = Attempt("detect", detect, check_detections, _plain_to_detect())
        return _step(batch, attempt, self.provenance, lambda p, found: replace(p, detections=found))

    def _look_again(self, batch: Batch, pixels: Mapping[int, Any]) -> Batch:
        if self.own_cycle:
            return replace(batch, pictures=tuple(_with_own_cycle(p) for p in batch.pictures))
        if self.cycle is None:
            return batch

        def score(pictures: Sequence[Picture]) -> Sequence[Any]:
            return self.cycle([pixels[p.index] for p in pictures], [_best_texts(p) for p in pictures])

        attempt = Attempt("cycle", score, _check_cycle, _plain_to_detect())
        return _step(batch, attempt, self.cycle.provenance, lambda p, cosines: replace(p, cycle=cosines))


def _step(
    batch: Batch,
    attempt: Attempt[Made],
    provenance: Mapping[str, Any],
    put: Callable[[Picture, Made], Picture],
) -> Batch:
    """Have a stage look at the pictures that have not failed, all of them together."""
    going = [p for p in batch.pictures if p.failure is None]
    made = dict(zip((p.index for p in going), attempt(going)))
    pictures = []
    for picture in batch.pictures:
        if picture.index not in made:
            pictures.append(picture)
            continue
        result = made[picture.index]
        pictures.append(picture.failed(result) if isinstance(result, Failure) else put(picture, result))
    made_by = {**batch.made_by, attempt.name: dict(provenance)}
    return replace(batch, pictures=tuple(pictures), made_by=made_by)


def _decoded(picture: Picture) -> np.ndarray | Failure:
    if picture.pixels is not None:
        return picture.pixels
    try:
        return read_pixels(picture.image, f"image of sample {picture.key!r}")
    except Exception as error:  # a picture of any kind
        return Failure("unreadable picture", problem_of(error).message)


def _or_failed(picture: Picture, pixels: np.ndarray | Failure | None) -> Picture:
    return picture.failed(pixels) if isinstance(pixels, Failure) else picture


def _plain_to_detect() -> Picture:
    """What a detector, and after it a model that looks again, must find no fault with."""
    whole = Detections(np.array([[0, 0, 1, 1]], np.float32), np.ones((1, 1), np.float32))
    caption = Caption(PLAIN_CAPTION, "given")
    return Picture(PLAIN_INDEX, "plain", caption=caption, phrases=Phrases((PLAIN_PHRASE,)), detections=whole)


def _check_cycle(picture: Picture, made: Any) -> np.ndarray:
    return check_cosines(made, len(picture.detections.boxes) if picture.detections else 0)


def _with_own_cycle(picture: Picture) -> Picture:
    """A CLOC detector has looked for each phrase already."""
    found = picture.detections
    if found is None or found.cycle is None:
        return picture
    return replace(picture, cycle=found.cycle[found.scores.argmax(1)] if len(found.boxes) else None)


def _texts(picture: Picture) -> list[str]:
    return [phrase.text for phrase in picture.phrases.kept] if picture.phrases else []


def _best_texts(picture: Picture) -> list[str]:
    """The most confident phrase of each raw box."""
    texts, found = _texts(picture), picture.detections
    return [texts[i] for i in found.scores.argmax(1)] if found is not None and len(found.boxes) else []
