"""Answers about a picture: tuples for Python, and one JSON form for the command, a server and a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

Box: TypeAlias = tuple[float, float, float, float]


class Label(NamedTuple):
    """A name and how well it fits.

    Attributes:
        label: The name, as it was given.
        score: Fit, in [0, 1].
    """

    label: str
    score: float

    def as_json(self) -> dict[str, Any]:
        """The answer as plain JSON types."""
        return {"label": self.label, "score": self.score}


class NamedRegion(NamedTuple):
    """A region and its best names.

    Attributes:
        box: (x1, y1, x2, y2) in pixels of the picture; of a mask, the box around it.
        labels: Names and scores, best first.
    """

    box: Box
    labels: list[Label]

    def as_json(self) -> dict[str, Any]:
        """The answer as plain JSON types."""
        return {"box": list(self.box), "labels": [label.as_json() for label in self.labels]}


class FoundPhrase(NamedTuple):
    """A phrase and its place.

    Attributes:
        phrase: What was looked for.
        box: (x1, y1, x2, y2) in pixels of the picture.
        score: Cosine similarity of the box's own region embedding and the phrase.
    """

    phrase: str
    box: Box
    score: float

    def as_json(self) -> dict[str, Any]:
        """The answer as plain JSON types."""
        return {"phrase": self.phrase, "box": list(self.box), "score": self.score}


class Answer(NamedTuple):
    """All that was asked about one picture.

    Attributes:
        size_hw: (height, width) of the picture in pixels.
        regions: Regions with their names.
        phrases: Phrases with their boxes.
    """

    size_hw: tuple[int, int]
    regions: Sequence[NamedRegion] = ()
    phrases: Sequence[FoundPhrase] = ()

    def as_json(self) -> dict[str, Any]:
        """`size` as [width, height], `regions` and `phrases`, as plain JSON types."""
        height, width = self.size_hw
        return {
            "size": [width, height],
            "regions": [region.as_json() for region in self.regions],
            "phrases": [phrase.as_json() for phrase in self.phrases],
        }
