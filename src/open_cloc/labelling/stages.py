"""The stages that change batches: re-caption, phrases, detect, cycle score. None of them knows Ray.

Each imports what it needs when it is made: its process may need nothing else. A stage that raises stops the
run; what is wrong with one picture becomes its `failure`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np

from open_cloc.errors import UserError
from open_cloc.labelling.recipe import OWN, CaptionConfig, DetectorConfig, PhraseConfig
from open_cloc.labelling.types import Batch, Failure, Picture
from open_cloc.pictures import read_pixels

Made = TypeVar("Made")


class Stage(Protocol):
    """One step of the pipeline."""

    def __call__(self, batch: Batch) -> Batch: ...


class CaptionStage:
    """Gives each picture the caption that its phrases come from."""

    def __init__(self, config: CaptionConfig, device: str) -> None:
        from open_cloc.labelling.captioners import open_captioner

        self.captioner = open_captioner(config, device)

    def __call__(self, batch: Batch) -> Batch:
        def caption(pictures: Sequence[Picture]) -> list[Any]:
            return self.captioner([p.image for p in pictures], [p.given for p in pictures])

        return _step(batch, "caption", self.captioner.provenance, caption, lambda p, c: replace(p, caption=c))


class PhraseStage:
    """Finds the phrases of captions."""

    def __init__(self, config: PhraseConfig) -> None:
        from open_cloc.labelling.phrases import open_phrase_rules

        self.rules = open_phrase_rules(config)

    def __call__(self, batch: Batch) -> Batch:
        def find(pictures: Sequence[Picture]) -> list[Any]:
            return self.rules([p.caption.text if p.caption else "" for p in pictures])

        return _step(
            batch, "phrases", self.rules.provenance, find, lambda p, found: replace(p, phrases=found)
        )


class DetectStage:
    """Decodes pictures, finds the phrases in them, and has a CLOC model look again if asked to.

    Pictures end here: what goes on is small.
    """

    def __init__(self, config: DetectorConfig, cycle_weights: str, device: str) -> None:
        from open_cloc.labelling.detectors import open_detector

        self.detector = open_detector(config, device)
        self.own_cycle = cycle_weights == OWN
        self.cycle: Any = None
        if cycle_weights and not self.own_cycle:
            from open_cloc.labelling.cycle import CycleScorer

            self.cycle = CycleScorer(cycle_weights, device)

    def __call__(self, batch: Batch) -> Batch:
        pixels = {p.index: _decoded(p) for p in batch.pictures if p.failure is None}
        decoded = [_or_failed(p, pixels.get(p.index)) for p in batch.pictures]
        batch = self._detect(replace(batch, pictures=tuple(decoded)), pixels)
        batch = self._look_again(batch, pixels)
        return replace(batch, pictures=tuple(replace(p, image=b"") for p in batch.pictures))

    def _detect(self, batch: Batch, pixels: Mapping[int, Any]) -> Batch:
        def detect(pictures: Sequence[Picture]) -> list[Any]:
            return self.detector([pixels[p.index] for p in pictures], [_texts(p) for p in pictures])

        return _step(batch, "detect", self.detector.provenance, detect, lambda p, d: replace(p, detections=d))

    def _look_again(self, batch: Batch, pixels: Mapping[int, Any]) -> Batch:
        if self.own_cycle:
            return replace(batch, pictures=tuple(_with_own_cycle(p) for p in batch.pictures))
        if self.cycle is None:
            return batch

        def score(pictures: Sequence[Picture]) -> list[Any]:
            return self.cycle([pixels[p.index] for p in pictures], [_best_texts(p) for p in pictures])

        return _step(batch, "cycle", self.cycle.provenance, score, lambda p, scores: replace(p, cycle=scores))


def _step(
    batch: Batch,
    name: str,
    provenance: Any,
    make: Callable[[Sequence[Picture]], list[Made | Failure]],
    put: Callable[[Picture, Made], Picture],
) -> Batch:
    """Have a stage look at the pictures that have not failed, all of them together."""
    going = [p for p in batch.pictures if p.failure is None]
    made = dict(zip((p.index for p in going), make(going) if going else []))
    pictures = []
    for picture in batch.pictures:
        result = made.get(picture.index)
        if isinstance(result, Failure):
            pictures.append(picture.failed(result))
        else:
            pictures.append(picture if result is None else put(picture, result))
    return replace(batch, pictures=tuple(pictures), made_by={**batch.made_by, name: dict(provenance)})


def _decoded(picture: Picture) -> np.ndarray | Failure:
    try:
        return read_pixels(picture.image, f"image of sample {picture.key!r}")
    except UserError as error:
        return Failure("unreadable picture", str(error))


def _or_failed(picture: Picture, pixels: np.ndarray | Failure | None) -> Picture:
    return picture.failed(pixels) if isinstance(pixels, Failure) else picture


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
