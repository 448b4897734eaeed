"""The types where the stages of labelling meet.

A stage takes the pictures of one batch and returns one result per picture: what it made, or a `Failure` where
that picture cannot be used. Only what is wrong with everything (no server, no model) is raised.

Shape legend: B pictures, N boxes, P phrases of a picture, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np


class Failure(NamedTuple):
    """Why a picture goes no further.

    Attributes:
        cause: Few different ones: they are counted. Such as `unreadable picture`.
        message: One line on this picture.
    """

    cause: str
    message: str


class Caption(NamedTuple):
    """A text of a whole picture.

    Attributes:
        text: Not empty.
        source: Who wrote it: `given`, or a captioner's name and model.
    """

    text: str
    source: str


class Phrase(NamedTuple):
    """A part of a caption that is looked for in the picture.

    Attributes:
        text: As it is asked for; lower case.
        start: Where it begins in the caption, in characters.
        end: Where it ends: `caption[start:end]` is where it comes from.
    """

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Phrases:
    """The phrases of a caption.

    Attributes:
        kept: In the caption's order.
        dropped: Phrases left out, counted by rule.
    """

    kept: tuple[Phrase, ...]
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Detections:
    """Boxes found in a picture, the raw result.

    Attributes:
        boxes: (N, 4) float32 normalised `xyxy` of the whole picture, inside it.
        scores: (N, P) float32 in [0, 1]: how well each box fits each of the picture's phrases.
        dropped: What was left out, counted by cause: boxes (`not finite`), or words of phrases that were too
            long for the detector.
        cycle: (P,) float32 cosine of each phrase and the box that was found for it, from a CLOC model.
    """

    boxes: np.ndarray
    scores: np.ndarray
    dropped: Mapping[str, int] = field(default_factory=dict)
    cycle: np.ndarray | None = None


class Captioner(Protocol):
    """Writes captions.

    Attributes:
        provenance: What made the captions: name, model, revision, prompt, versions; JSON types only.
    """

    provenance: Mapping[str, object]

    def __call__(self, images: Sequence[bytes], captions: Sequence[Sequence[str]]) -> list[Caption | Failure]:
        """Encoded pictures and their given captions (possibly none) -> a new caption each."""
        ...


class PhraseRules(Protocol):
    """Finds phrases in captions. Attribute `provenance` as in `Captioner`."""

    provenance: Mapping[str, object]

    def __call__(self, captions: Sequence[str]) -> list[Phrases]: ...


class Detector(Protocol):
    """Finds phrases in pictures. Attribute `provenance` as in `Captioner`.

    What it says of a picture does not depend on the other pictures of the batch.
    """

    provenance: Mapping[str, object]

    def __call__(
        self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]
    ) -> list[Detections | Failure]:
        """(H, W, 3) uint8 pictures and the phrases of each (possibly none) -> detections each."""
        ...


@dataclass(frozen=True)
class Picture:
    """A picture on its way through the stages.

    Attributes:
        index: Of the sample in its dataset.
        key: Of the sample.
        image: Encoded; empty once it is no longer needed.
        given: The captions that came with it.
        caption: The text that phrases are taken from.
        phrases: Of the caption.
        detections: Of the phrases.
        cycle: (N,) cosine of each box's best phrase and the box that is found for it; None if nobody asked.
        failure: Why it goes no further.
    """

    index: int
    key: str
    image: bytes = b""
    given: tuple[str, ...] = ()
    caption: Caption | None = None
    phrases: Phrases | None = None
    detections: Detections | None = None
    cycle: np.ndarray | None = None
    failure: Failure | None = None

    def failed(self, failure: Failure) -> Picture:
        return replace(self, failure=failure, image=b"")


@dataclass(frozen=True)
class Batch:
    """Pictures that share a forward pass.

    Attributes:
        unit: Name of their unit.
        number: Which of the unit's batches this is.
        of: How many the unit has.
        pictures: In the input's order.
        made_by: What each stage says of itself, by stage.
    """

    unit: str
    number: int
    of: int
    pictures: tuple[Picture, ...]
    made_by: dict[str, dict] = field(default_factory=dict)
