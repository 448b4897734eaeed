"""The types that flow through labelling: units of the input, their batches, and what the stages make of them.

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
        cause: The kind of failure, such as `unreadable picture`; failures are counted by it.
        message: What is wrong with this picture, in one line.
    """

    cause: str
    message: str


class Caption(NamedTuple):
    """A text of a whole picture.

    Attributes:
        text: The caption, never empty.
        source: Who wrote it: `given`, or a captioner's name and model.
        is_cut: Whether a captioner was stopped before its end; the text is what it said in whole sentences.
    """

    text: str
    source: str
    is_cut: bool = False


class Phrase(NamedTuple):
    """A part of a caption that is looked for in the picture.

    Attributes:
        text: The phrase as the detector is asked for it, in lower case.
        start: The caption's character where it begins.
        end: The caption's character after it: it comes from `caption[start:end]`.
    """

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Phrases:
    """The phrases of a caption.

    Attributes:
        kept: Phrases to look for, in the caption's order.
        dropped: Number of phrases left out, by rule.
    """

    kept: tuple[Phrase, ...]
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Detections:
    """Boxes found in a picture, the raw result.

    Attributes:
        boxes: Boxes (N, 4), float32 normalised `xyxy` of the whole picture, inside it.
        scores: How well each box fits each of the picture's phrases: (N, P) float32 in [0, 1].
        dropped: Number of things left out, by cause: boxes (`not finite`), or phrases that lost words because
            they were too long for the detector.
        cycle: Cosine of each phrase and the box that was found for it, from a CLOC model: (P,) float32.
    """

    boxes: np.ndarray
    scores: np.ndarray
    dropped: Mapping[str, int] = field(default_factory=dict)
    cycle: np.ndarray | None = None


class Captioner(Protocol):
    """Writes captions.

    Attributes:
        provenance: What makes the captions: name, weights, revision, prompt, versions; JSON types only.
    """

    provenance: Mapping[str, object]

    def __call__(self, images: Sequence[bytes], captions: Sequence[Sequence[str]]) -> list[Caption | Failure]:
        """Write a caption for each picture.

        Args:
            images: Encoded pictures.
            captions: The captions that came with each picture, possibly none.
        """
        ...


class PhraseRules(Protocol):
    """Finds phrases in captions. Attribute `provenance` as in `Captioner`."""

    provenance: Mapping[str, object]

    def __call__(self, captions: Sequence[str]) -> list[Phrases]:
        """Find the phrases of each caption, whatever the other captions are."""
        ...


class Detector(Protocol):
    """Finds phrases in pictures. Attribute `provenance` as in `Captioner`.

    What it says of a picture does not depend on the other pictures of the batch.
    """

    provenance: Mapping[str, object]

    def __call__(
        self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]
    ) -> list[Detections | Failure]:
        """Find each picture's phrases in it.

        Args:
            images: Pictures (H, W, 3) uint8.
            phrases: The phrases of each picture, possibly none.
        """
        ...


@dataclass(frozen=True)
class Unit:
    """A part of the input that becomes one output shard.

    Attributes:
        name: Name of the shard, such as `00012`.
        spec: FORMAT:PATH of the dataset that holds it.
        start: Number of its first sample in that dataset.
        stop: Number after its last sample; None for the dataset's end.
    """

    name: str
    spec: str
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class UnreadUnit:
    """A unit that could not be opened: the others go on without it, and the next start tries it again.

    Attributes:
        unit: Name of the unit.
        message: What is wrong with it, in one line.
    """

    unit: str
    message: str


@dataclass(frozen=True)
class Picture:
    """A picture on its way through the stages.

    Attributes:
        index: Number of its sample in the dataset.
        key: Key of its sample.
        image: The encoded picture; empty once it is no longer needed.
        given: Captions that came with it.
        caption: Text that phrases are taken from.
        phrases: Phrases of the caption.
        detections: Boxes that were found for the phrases.
        cycle: Cosine of each box's best phrase and the box that is found for it, (N,); None if nobody asked.
        failure: Why it goes no further; None while it does.
        pixels: (H, W, 3) uint8, where a stage of its own has decoded it.
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
    pixels: np.ndarray | None = None

    def failed(self, failure: Failure) -> Picture:
        """The picture as it leaves the way; its bytes are no longer needed."""
        return replace(self, failure=failure, image=b"", pixels=None)


@dataclass(frozen=True)
class Batch:
    """Pictures that share a forward pass.

    Attributes:
        unit: Name of their unit.
        number: Place among the unit's batches, from 0.
        of: Number of batches that the unit has.
        pictures: The pictures in the input's order.
        made_by: What each stage says of itself, by the stage's name.
        not_read: Entries of the unit's shard that are no samples, counted by cause; in its first batch.
    """

    unit: str
    number: int
    of: int
    pictures: tuple[Picture, ...]
    made_by: dict[str, dict] = field(default_factory=dict)
    not_read: Mapping[str, int] = field(default_factory=dict)
