"""Look at every sample of a dataset as it lies on disk and say what is wrong or suspicious."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from open_cloc.boxes import EMPTY, OK, PROBLEMS, box_areas, box_problems, iou
from open_cloc.data.annotations import RawSample, SampleDataset, describe_problem, raw_sample
from open_cloc.data.bad_samples import problem_of
from open_cloc.data.box_forms import Boxes, guess_format, is_tiny, unit_of
from open_cloc.errors import MissingFileError, SampleError
from open_cloc.pictures import ANOTHER_SIZE, mismatch, read_header
from open_cloc.samples import RegionSample

NUM_EXAMPLES = 5  # per finding
NUM_PHRASES = 15
ALIKE = 0.5  # IoU of an outline's box and the box beside it
BENT = 0.1  # logarithm of what an outline's grid and its picture may differ in aspect ratio

# Lower ends of a histogram's bins and their names.
COUNT_BINS = ((0, "0"), (1, "1"), (2, "2-4"), (5, "5-8"), (9, "9-16"), (17, "17-32"), (33, "33+"))
WORD_BINS = ((0, "0"), (1, "1"), (2, "2"), (3, "3-5"), (6, "6-10"), (11, "11-20"), (21, "21-50"), (51, "51+"))
AREA_BINS = (
    (0, "under 0.01 %"),
    (1e-4, "0.01-0.1 %"),
    (1e-3, "0.1-1 %"),
    (1e-2, "1-10 %"),
    (0.1, "10-50 %"),
    (0.5, "over 50 %"),
)


@dataclass
class Finding:
    """One kind of problem: how often, and where first."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        """Count one case."""
        self.count += 1
        if len(self.examples) < NUM_EXAMPLES:
            self.examples.append(example)


@dataclass(frozen=True)
class Report:
    """What a check has found; `dataclasses.asdict` makes it JSON.

    Attributes:
        counts: Numbers of images, captions, regions, and of images without either.
        errors: Findings by cause, of data that cannot be used as it is.
        warnings: Findings by cause, of data that can be used, but perhaps should not.
        histograms: Numbers of cases by histogram and bin.
        top_phrases: The most common region texts with their counts.
    """

    counts: dict[str, int]
    errors: dict[str, Finding]
    warnings: dict[str, Finding]
    histograms: dict[str, dict[str, int]]
    top_phrases: list[tuple[str, int]]


def check_dataset(
    dataset: SampleDataset,
    indices: Iterable[int] | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> Report:
    """Check samples one by one; nothing that is wrong with the data raises.

    Args:
        dataset: Any dataset; where its reader keeps raw boxes, every wrong one is found, not only each
            sample's first.
        indices: Numbers of the samples to look at; all unless given.
        progress: Called with 1 after each sample.
    """
    tally = Tally()
    for problem in getattr(dataset, "problems", ()):
        tally.errors[problem.cause].add(problem.message)
    for name, count in getattr(dataset, "left_out", {}).items():
        tally.warnings[f"not used: {name}"].count = count
    with np.errstate(all="ignore"):  # numbers that are none are what is looked for
        for index in range(len(dataset)) if indices is None else indices:
            try:
                raw = raw_sample(dataset, index)
                tally.add(raw)
                _check_label_map(dataset, index, raw)
            except Exception as error:  # data of any shape, readers from elsewhere
                problem = problem_of(error, f"sample number {index}")
                tally.errors[problem.cause].add(problem.message)
            progress(1)
        return tally.report()


def _check_label_map(dataset: SampleDataset, index: int, raw: RawSample) -> None:
    """Read a sample's label map, where the data set has them.

    Raises:
        SampleError: If it is none, holds what is no class, or is of another size than the picture.
    """
    if not getattr(dataset, "has_label_maps", False):
        return
    found = dataset.label_map(index)  # type: ignore[attr-defined]
    height, width = read_header(raw.image, f"image of sample {raw.key!r}").size_hw
    if found.shape != (height, width):
        sizes = f"{found.shape[1]} x {found.shape[0]}, {width} x {height}"
        raise SampleError(
            f"label map and picture must be of one size; got {sizes} (sample {raw.key!r})",
            "label map of another size",
        )


class Tally:
    """Gathers findings sample by sample."""

    def __init__(self) -> None:
        self.errors: defaultdict[str, Finding] = defaultdict(Finding)
        self.warnings: defaultdict[str, Finding] = defaultdict(Finding)
        self.counts: Counter[str] = Counter(
            images=0, captions=0, regions=0, images_without_captions=0, images_without_regions=0
        )
        self.histograms: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.phrases: Counter[str] = Counter()
        self.boxes: list[Boxes] = []
        self.pictures: dict[bytes, str] = {}  # digest -> key

    def add(self, raw: RawSample) -> None:
        """Check one sample."""
        self.counts["images"] += 1
        self._add_texts(raw)
        for problem in raw.problems:
            self.errors[problem.cause].add(problem.message)
        size_hw = self._add_picture(raw) or raw.size_hw
        if raw.regions and (raw.normalized or size_hw is not None):
            self._add_boxes(replace(raw, size_hw=raw.size_hw or size_hw), size_hw)

    def report(self) -> Report:
        """All findings so far."""
        guess = guess_format(self.boxes)
        if guess:
            self.errors["box format"].add(guess)
        return Report(
            counts=dict(self.counts),
            errors=dict(self.errors),
            warnings=dict(self.warnings),
            histograms={name: dict(bins) for name, bins in self.histograms.items()},
            top_phrases=self.phrases.most_common(NUM_PHRASES),
        )

    def _add_texts(self, raw: RawSample) -> None:
        self.counts.update(captions=len(raw.captions), regions=len(raw.regions))
        self.counts.update(
            images_without_captions=not any(map(str.strip, raw.captions)),
            images_without_regions=not raw.regions,
        )
        if outlines := sum(region.mask is not None for region in raw.regions):
            self.counts["outlines"] += outlines
        self._count("regions per image", COUNT_BINS, [len(raw.regions)])
        self._count("words per caption", WORD_BINS, [len(text.split()) for text in raw.captions])
        self._count("words per region text", WORD_BINS, [len(region.text.split()) for region in raw.regions])
        for text in raw.captions:
            if not text.strip():
                self.warnings["empty caption"].add(f"key {raw.key!r} ({raw.where})")
        for region in raw.regions:
            self.phrases[region.text] += 1
            if not region.text.strip():
                self.errors["empty region text"].add(f"key {raw.key!r} ({raw.where}, {region.where})")

    def _add_picture(self, raw: RawSample) -> tuple[int, int] | None:
        """Decode the picture; its (height, width), or None where that fails."""
        try:
            header = read_header(raw.image, f"image of sample {raw.key!r}")
            pixels = RegionSample(raw.key, raw.image).pixels()
        except SampleError as error:
            where = "" if isinstance(error, MissingFileError) else f" ({raw.where})"
            self.errors[error.cause].add(f"{error}{where}")
            return None
        size_hw = (pixels.shape[0], pixels.shape[1])
        if raw.size_hw is not None and size_hw != raw.size_hw:
            level = self.errors if raw.regions and not raw.normalized else self.warnings
            level[ANOTHER_SIZE].add(
                f"{mismatch(raw.image, raw.size_hw, size_hw)}: key {raw.key!r} ({raw.where})"
            )
        elif header.orientation != 1:
            meaning = (
                "boxes are taken for the stored picture's; if they were drawn on what viewers show, give"
                if raw.regions
                else "it is read as it is stored; to turn it as viewers do, give"
            )
            self.warnings["picture turned by EXIF"].add(
                f"orientation {header.orientation}: {meaning} exif=apply: key {raw.key!r} ({raw.where})"
            )
        first = self.pictures.setdefault(_digest(raw.image), raw.key)
        if first != raw.key:
            self.warnings["repeated picture"].add(f"key {raw.key!r} is the same picture as {first!r}")
        return size_hw

    def _add_boxes(self, raw: RawSample, size_hw: tuple[int, int] | None) -> None:
        """Judge boxes as by the size that they were measured on; what they may be, by the picture's own."""
        boxes = raw.normalize()
        problems = box_problems(boxes, raw.size_hw)
        self.boxes.append(Boxes(raw.numbers(), size_hw, raw.box_format, unit_of(raw.normalized)))
        tiny = is_tiny(boxes, size_hw)
        seen: set[tuple] = set()
        for row, region in enumerate(raw.regions):
            problem = int(problems[row])
            if problem != OK:
                level = self.warnings if problem == EMPTY else self.errors
                level[f"box {PROBLEMS[problem]}"].add(describe_problem(raw, row, problem))
            elif tiny[row]:
                self.warnings["tiny box"].add(f"key {raw.key!r} ({raw.where}, {region.where})")
            same = (*boxes[row].round(4), region.text)
            if same in seen:
                where = f"{region.text!r}: key {raw.key!r} ({raw.where}, {region.where})"
                self.warnings["repeated box with the same text"].add(where)
            seen.add(same)
        self._count("box area", AREA_BINS, box_areas(boxes[problems == OK]).tolist())
        self._add_outlines(raw, boxes, size_hw)

    def _add_outlines(self, raw: RawSample, boxes: np.ndarray, size_hw: tuple[int, int] | None) -> None:
        """Compare outlines with their boxes (R, 4) and their picture: those of another file would differ."""
        for region, box in zip(raw.regions, boxes):
            if region.mask is None:
                continue
            where = f"key {raw.key!r} ({raw.where}, {region.where})"
            around = region.mask.box()
            if around is None:
                self.warnings["outline without a pixel"].add(where)
            elif iou(torch.tensor(around), torch.from_numpy(box)) < ALIKE:
                self.warnings["outline elsewhere than its box"].add(where)
            height, width = region.mask.size_hw
            if size_hw is not None and abs(np.log(width * size_hw[0] / (height * size_hw[1]))) > BENT:
                sizes = f"{width} x {height} over {size_hw[1]} x {size_hw[0]}"
                self.warnings["outline of another aspect ratio"].add(f"{sizes}: {where}")

    def _count(self, name: str, bins: Sequence[tuple[float, str]], values: Sequence[float]) -> None:
        starts = [start for start, _ in bins]
        for value in values:
            self.histograms[name][bins[bisect_right(starts, value) - 1][1]] += 1


def format_report(report: Report) -> str:
    """The report as text for a terminal."""
    lines = [", ".join(f"{count} {name.replace('_', ' ')}" for name, count in report.counts.items())]
    for name, bins in (
        ("regions per image", COUNT_BINS),
        ("box area", AREA_BINS),
        ("words per region text", WORD_BINS),
        ("words per caption", WORD_BINS),
    ):
        counts = report.histograms.get(name, {})
        lines += _bars(name, [(label, counts[label]) for _, label in bins if label in counts])
    lines += _bars("most common region texts", report.top_phrases)
    for level, findings in (("warning", report.warnings), ("ERROR", report.errors)):
        for cause, finding in findings.items():
            lines += ["", f"{level}: {cause}: {finding.count}"]
            lines += [f"  {example}" for example in finding.examples]
            if finding.count > len(finding.examples) > 0:
                lines.append(f"  ... and {finding.count - len(finding.examples)} more")
    errors, warnings = (sum(f.count for f in kind.values()) for kind in (report.errors, report.warnings))
    return "\n".join([*lines, "", f"{errors} errors, {warnings} warnings"])


def _bars(title: str, rows: Sequence[tuple[str, int]]) -> list[str]:
    """A titled bar chart in text."""
    if not rows:
        return []
    widest, most = max(len(label) for label, _ in rows), max(count for _, count in rows)
    bars = [f"  {label:{widest}}  {'#' * max(1, 40 * count // most)} {count}" for label, count in rows]
    return ["", f"{title}:", *bars]


def _digest(image: bytes | Path | np.ndarray) -> bytes:
    """What two copies of one picture share."""
    if isinstance(image, np.ndarray):
        return hashlib.sha1(str(image.shape).encode() + image.tobytes()).digest()
    return hashlib.sha1(image if isinstance(image, bytes) else image.read_bytes()).digest()
