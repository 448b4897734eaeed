"""Annotations as a file gives them, and the one door through which they become samples.

A reader only says what it read (`RawSample`: the numbers, their format and unit, and where they stand).
`sound_part` converts the boxes, clips rounding errors, cleans the texts, and gives the sample that is left
together with everything that was wrong; `finish` is its strict form. `open-cloc data check` looks at the same
raw samples, so that it can name every wrong box and guess its real format.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from open_cloc.boxes import EMPTY, OK, OUTSIDE, PROBLEMS, box_problems, convert_boxes, normalize_boxes
from open_cloc.errors import SampleError
from open_cloc.masks import Mask
from open_cloc.pictures import read_header
from open_cloc.samples import Region, RegionSample, Text
from open_cloc.texts import is_odd, sound_text


class SampleDataset(Protocol):
    """What every reader is: samples by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> RegionSample: ...


class Problem(NamedTuple):
    """An entry of a file that cannot be used.

    Attributes:
        cause: A few words for the kind of fault, by which entries are counted.
        message: What is wrong, what was expected, and where.
    """

    cause: str
    message: str


@dataclass(frozen=True)
class RawRegion:
    """A box as the file has it.

    Attributes:
        box: The file's four numbers.
        text: The phrase or class name.
        where: Where the box stands inside its sample, such as `annotation 912`.
        score: Confidence in [0, 1]; 1 for human annotations.
        source: Who made the region.
        span: Characters of the first caption, as in `Region`.
        cycle: Cosine of text and box, as in `Region`.
        texts: Further texts with roles, as in `Region`.
        mask: The outline, as in `Region`.
        crowd: The box is around many things, as in `Region`.
    """

    box: tuple[float, ...]
    text: str
    where: str
    score: float = 1.0
    source: str = ""
    span: tuple[int, int] | None = None
    cycle: float | None = None
    texts: tuple[Text, ...] = ()
    mask: Mask | None = None
    crowd: bool = False


@dataclass(frozen=True)
class RawSample:
    """A sample whose boxes have not been looked at yet.

    Attributes:
        key: The sample's name, as in `RegionSample`.
        image: The picture, as in `RegionSample`.
        size_hw: Declared (height, width) of the picture; None where nothing says it.
        where: The file, for messages.
        captions: Texts of the whole picture, as in `RegionSample`.
        regions: Boxes and texts as read.
        box_format: What the boxes' numbers mean: `xyxy`, `xywh` or `cxcywh`.
        normalized: Whether the boxes are in [0, 1] instead of pixels.
        metadata: Whatever else the file says, as in `RegionSample`.
        texts: Further texts with roles, as in `RegionSample`.
        problems: Entries of the sample that could not be read at all.
    """

    key: str
    image: bytes | Path | np.ndarray
    size_hw: tuple[int, int] | None
    where: str
    captions: tuple[str, ...] = ()
    regions: tuple[RawRegion, ...] = ()
    box_format: str = "xyxy"
    normalized: bool = True
    metadata: Mapping[str, Any] = field(default_factory=dict)
    texts: tuple[Text, ...] = ()
    problems: tuple[Problem, ...] = ()

    def numbers(self) -> np.ndarray:
        """The boxes' numbers as read, (R, 4) float64."""
        boxes = [region.box for region in self.regions]
        try:
            return np.array(boxes, np.float64).reshape(-1, 4)
        except OverflowError:  # integers of hundreds of digits, which no box check would pass either
            finite = [[n if abs(n) <= 1e300 else math.inf for n in box] for box in boxes]
            return np.array(finite, np.float64)

    def measured(self) -> RawSample:
        """The same with the picture's size, where pixel boxes need one and nothing declares it.

        Raises:
            SampleError: If the picture is not there, or is none.
        """
        return self if self.size_hw or self.normalized or not self.regions else self._with_size()

    def _with_size(self) -> RawSample:
        header = read_header(self.image, f"image of sample {self.key!r}")
        return replace(self, size_hw=header.size_hw)

    def judged(self) -> tuple[np.ndarray, np.ndarray]:
        """The boxes as by `normalize`, and what `box_problems` says of each: (R, 4) and (R,).

        Where normalised boxes leave the picture, its size is measured: a pixel is allowed, and of what.

        Raises:
            SampleError: If the size is needed, and the picture is not there, or is none.
        """
        if not self.regions:  # captions alone, in half the time
            return np.empty((0, 4)), np.empty(0, np.int64)
        boxes = self.normalize()
        codes = box_problems(boxes, self.size_hw)
        if self.size_hw is None and OUTSIDE in codes:
            codes = box_problems(boxes, self._with_size().size_hw)
        return boxes, codes

    def normalize(self) -> np.ndarray:
        """The boxes as normalised `xyxy`, (R, 4) float64, neither checked nor clipped.

        Raises:
            ValueError: If they are in pixels and nothing says the size: see `measured`.
        """
        with np.errstate(invalid="ignore"):  # what is not finite is found as such
            boxes = convert_boxes(self.numbers(), self.box_format)
        if self.normalized or not len(boxes):
            return boxes
        if self.size_hw is None:
            raise ValueError(f"pixel boxes need the picture's size; got none ({self.where})")
        return normalize_boxes(boxes, self.size_hw)


def finish(raw: RawSample) -> RegionSample:
    """A raw sample's boxes checked, clipped and normalised, its texts cleaned.

    Boxes without area are left out.

    Raises:
        SampleError: If anything is wrong with it; names the first entry that is.
    """
    sample, problems = sound_part(raw)
    if problems:
        first, *others = problems
        more = f"; {len(others)} more entries of this sample are wrong" if others else ""
        raise SampleError(f"{first.message}{more}", first.cause)
    return sample


def sound_part(raw: RawSample) -> tuple[RegionSample, list[Problem]]:
    """What of a raw sample can be used, and what was wrong with the rest.

    A wrong box costs the region, and so does a region's text that is none.

    Raises:
        SampleError: If the picture's size is needed and cannot be told.
    """
    raw = raw.measured()
    boxes, codes = raw.judged()
    problems = [*raw.problems]
    regions = []
    for row, (box, region, code) in enumerate(zip(np.clip(boxes, 0, 1), raw.regions, codes.tolist())):
        if code == OK:
            regions.append(Region(_as_box(box), *_beside_the_box(region)))
        elif code != EMPTY:
            problems.append(Problem(f"box {PROBLEMS[code]}", describe_problem(raw, row, code)))
    measured_on = None if raw.normalized else raw.size_hw
    sample = RegionSample(
        raw.key, raw.image, raw.captions, tuple(regions), raw.metadata, raw.texts, size_hw=measured_on
    )
    return clean_sample(sample), problems


def clean_sample(sample: RegionSample) -> RegionSample:
    """A sample whose texts can be written and tokenized anywhere, by `texts.sound_text`; usually itself.

    Numbers in the metadata that JSON does not know become None.

    Raises:
        SampleError: If what should be text is not.
    """
    if _is_sound(sample):
        return sample
    captions = tuple(_sound(text, sample, "caption") for text in sample.captions)
    # Spans count characters of the first caption as it was.
    moved = sample.captions[:1] != captions[:1]
    regions = tuple(_clean_region(region, sample, moved) for region in sample.regions)
    texts = tuple(replace(text, text=_sound(text.text, sample, "text")) for text in sample.texts)
    metadata = sound_json(sample.metadata)
    return replace(sample, captions=captions, regions=regions, texts=texts, metadata=metadata)


def _is_sound(sample: RegionSample) -> bool:
    """Whether nothing has to be cleaned; the usual case, told in a few microseconds."""
    texts = [*sample.captions, *(region.text for region in sample.regions), *sample.metadata]
    texts += [text.text for text in sample.texts]
    texts += [text.text for region in sample.regions for text in region.texts]
    try:
        joined = "\n".join(texts)
    except TypeError:
        return False
    return not is_odd(joined) and all(map(_is_sound_scalar, sample.metadata.values()))


def _is_sound_scalar(value: Any) -> bool:
    if type(value) is str:
        return not is_odd(value)
    return value is None or type(value) in (int, bool) or (type(value) is float and math.isfinite(value))


def _clean_region(region: Region, sample: RegionSample, moved: bool) -> Region:
    text = _sound(region.text, sample, "region text")
    texts = tuple(replace(own, text=_sound(own.text, sample, "text")) for own in region.texts)
    if text is region.text and texts == region.texts and not (moved and region.span):
        return region
    return replace(region, text=text, texts=texts, span=None if moved else region.span)


def _sound(text: Any, sample: RegionSample, what: str) -> str:
    if not isinstance(text, str):
        kind = type(text).__name__
        raise SampleError(f"{what} must be text; got {kind} (sample {sample.key!r})", "text of another type")
    return sound_text(text)


def sound_json(value: Any) -> Any:
    """A value of a sample's metadata with texts as they can be written, and None for nan and infinity."""
    if isinstance(value, str):
        return sound_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {sound_json(name): sound_json(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [sound_json(part) for part in value]
    return value


def _beside_the_box(region: Region | RawRegion) -> tuple[Any, ...]:
    """What `Region` and `RawRegion` have in common, in the order in which both take it."""
    one = region
    return one.text, one.score, one.source, one.span, one.cycle, one.texts, one.mask, one.crowd


def checked_boxes(sample: RegionSample) -> np.ndarray:
    """Boxes of a finished sample as (R, 4) float64, clipped to the picture.

    Datasets from elsewhere may hold pixels or another format; nothing later would notice.

    Raises:
        SampleError: If a box is not finite, inverted or outside the picture.
    """
    boxes = np.array([region.box for region in sample.regions], np.float64).reshape(-1, 4)
    problems = box_problems(boxes)
    for row in np.flatnonzero((problems != OK) & (problems != EMPTY))[:1]:
        raise SampleError(
            f"box is {PROBLEMS[problems[row]]}: got {boxes[row].tolist()}, expected xyxy normalised to "
            f"[0, 1] (sample {sample.key!r}, region {row})",
            f"box {PROBLEMS[problems[row]]}",
        )
    return np.clip(boxes, 0, 1)


def describe_problem(raw: RawSample, row: int, problem: int) -> str:
    """One sentence on a wrong box: what, got, expected, where."""
    region = raw.regions[row]
    numbers = ", ".join(f"{number:g}" for number in raw.numbers()[row].tolist())
    unit = "normalised to [0, 1]" if raw.normalized else "in pixels"
    picture = f" of a {raw.size_hw[1]} x {raw.size_hw[0]} picture" if raw.size_hw else ""
    return (
        f"box is {PROBLEMS[problem]}: got [{numbers}], expected {raw.box_format} {unit}{picture} "
        f"({raw.where}, {region.where})"
    )


def raw_sample(dataset: SampleDataset, index: int) -> RawSample:
    """A sample before its boxes are checked, from a reader that keeps them or from any other dataset."""
    if hasattr(dataset, "raw"):
        return dataset.raw(index)
    sample = dataset[index]
    regions = tuple(
        RawRegion(region.box, region.text, f"region {row}", *_beside_the_box(region)[1:])
        for row, region in enumerate(sample.regions)
    )
    where = f"sample {sample.key!r}"
    return RawSample(
        sample.key,
        sample.image,
        None,
        where,
        sample.captions,
        regions,
        metadata=sample.metadata,
        texts=sample.texts,
    )


def _as_box(box: Sequence[float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (float(number) for number in box)
    return (x1, y1, x2, y2)
