"""A stage at work on a batch: what fails for one picture is its failure, what fails for all stops the run.

Where a batch fails, each of its pictures is tried alone. Where one fails alone, the stage is asked about a
plain picture: if that fails too, the stage is broken and the run stops with its error; if not, the picture is
at fault, and so it is at every start.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from open_cloc.errors import RunError, SampleError, UserError, WorkerDiedError
from open_cloc.labelling.types import Caption, Detections, Failure, Phrase, Phrases, Picture
from open_cloc.texts import sound_text

Made = TypeVar("Made")

# What a stage is asked about to see whether it works at all.
PLAIN_INDEX = -1
PLAIN_PIXELS = np.full((96, 128, 3), 127, np.uint8)
PLAIN_CAPTION = "a red square on a grey wall"
PLAIN_PHRASE = Phrase("a red square", 0, 12)

# Cosines are computed in floats, which may lie a little outside.
ROUNDING = 1e-3


@dataclass(frozen=True)
class Attempt(Generic[Made]):
    """A stage's work on pictures.

    Attributes:
        name: The stage, for causes of failure, such as `detect`.
        make: Makes something of each of some pictures, or a `Failure`.
        check: What was made of a picture, as later stages may rely on it; raises where it is something else.
        plain: A picture that nothing can be wrong with.
    """

    name: str
    make: Callable[[Sequence[Picture]], Sequence[Any]]
    check: Callable[[Picture, Any], Made]
    plain: Picture

    def __call__(self, pictures: Sequence[Picture]) -> list[Made | Failure]:
        """What the stage makes of each picture.

        Raises:
            RunError: If the stage says that the run cannot go on, or does not answer for each picture.
            Exception: What the stage raises, if it fails on a plain picture as well.
        """
        if not pictures:
            return []
        try:
            made = list(self.make(pictures))
        except RunError:
            raise
        except Exception as error:  # a model or rules from elsewhere, and pictures of any kind
            if len(pictures) > 1:
                return [result for picture in pictures for result in self([picture])]
            if self._is_broken():
                raise
            return [self._failure(error)]
        if len(made) != len(pictures):
            raise WorkerDiedError(
                f"the stage {self.name} gave {len(made)} results for {len(pictures)} pictures"
            )
        return [self._checked(picture, result) for picture, result in zip(pictures, made)]

    def _is_broken(self) -> bool:
        try:
            self.make([self.plain])
        except Exception:
            return True
        return False

    def _checked(self, picture: Picture, result: Any) -> Made | Failure:
        try:
            return result if isinstance(result, Failure) else self.check(picture, result)
        except Exception as error:  # a result of any form
            return self._failure(error)

    def _failure(self, error: Exception) -> Failure:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        cause = error.cause if isinstance(error, SampleError) else f"{self.name} failed"
        return Failure(cause, " ".join(f"{kind}{error}".split()))


def plain_provenance(stage: Any, name: str) -> dict[str, Any]:
    """What a stage says of itself, as it can be written.

    Raises:
        UserError: If it is nothing that JSON knows.
    """
    try:
        own = dict(stage.provenance)
        return json.loads(json.dumps(own, allow_nan=False, ensure_ascii=False).encode())
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{name}: {type(stage).__name__}.provenance must be a table that JSON can hold; {error}"
        ) from error


def check_caption(picture: Picture, made: Any) -> Caption:
    """A captioner's answer with a text that can be written anywhere."""
    _require(isinstance(made, Caption), "a Caption", made)
    _require(isinstance(made.text, str) and isinstance(made.source, str), "a Caption of texts", made)
    text = sound_text(made.text)
    if not text.strip():
        raise SampleError("the caption has no text", "empty caption")
    return Caption(text, sound_text(made.source), bool(made.is_cut))


def check_phrases(picture: Picture, made: Any) -> Phrases:
    """Phrases whose spans lie in the picture's caption."""
    _require(isinstance(made, Phrases), "Phrases", made)
    caption = picture.caption.text if picture.caption else ""
    kept = []
    for text, start, end in made.kept:
        _require(isinstance(text, str) and bool(text.strip()), "phrases with a text", text)
        span = int(start), int(end)
        _require(0 <= span[0] <= span[1] <= len(caption), f"spans within {len(caption)} characters", span)
        kept.append(Phrase(sound_text(text), *span))
    return Phrases(tuple(kept), _counts(made.dropped))


def check_detections(picture: Picture, made: Any) -> Detections:
    """Boxes inside the picture, with scores in [0, 1] for each phrase."""
    _require(isinstance(made, Detections), "Detections", made)
    phrases = len(picture.phrases.kept) if picture.phrases else 0
    boxes, scores = np.asarray(made.boxes, np.float32), np.asarray(made.scores, np.float32)
    _require(boxes.ndim == 2 and boxes.shape[1] == 4, "boxes (N, 4)", boxes.shape)
    _require(scores.shape == (len(boxes), phrases), f"scores ({len(boxes)}, {phrases})", scores.shape)
    for name, values in (("boxes", boxes), ("scores", scores)):
        inside = (values >= 0) & (values <= 1)  # nan is not
        _require(bool(inside.all()), f"{name} in [0, 1]", values[~inside][:1].tolist())
    cycle = None if made.cycle is None else check_cosines(made.cycle, phrases)
    return Detections(boxes, scores, _counts(made.dropped), cycle)


def check_cosines(made: Any, count: int) -> np.ndarray:
    """So many cosines, clipped to what they may be."""
    cosines = np.asarray(made, np.float32)
    _require(cosines.shape == (count,), f"{count} cosines", cosines.shape)
    _require(bool((np.abs(cosines) <= 1 + ROUNDING).all()), "cosines in [-1, 1]", cosines.tolist())
    return cosines.clip(-1, 1)


def _counts(dropped: Mapping[str, int]) -> dict[str, int]:
    return {sound_text(str(cause)): int(count) for cause, count in dropped.items()}


def _require(good: bool, expected: str, got: Any) -> None:
    if not good:
        raise ValueError(f"expected {expected}; got {type(got).__name__} {got!r:.80}")
