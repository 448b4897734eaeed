"""From raw boxes to labelled samples: each box takes its most confident phrase, then thresholds and limits.

Shapes: N raw boxes, P phrases of the picture, R regions kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from open_cloc.boxes import distinct_boxes
from open_cloc.data.annotations import SampleDataset, clean_sample
from open_cloc.data.bad_samples import read_usable
from open_cloc.data.shards.write import Encoded, Storage
from open_cloc.errors import SampleError
from open_cloc.labelling.recipe import FilterConfig, LabelRecipe
from open_cloc.labelling.source import check_key, failure_of, samples_of
from open_cloc.labelling.stats import RegionStats
from open_cloc.labelling.types import Detections, Failure, Picture, Unit
from open_cloc.samples import Region, RegionSample

# Side of a box, relative to the picture's, below which rounding leaves nothing.
NO_AREA = 1e-5


class LabelledSamples:
    """A unit's samples with the new captions and regions in place of their own, read once.

    A sample that cannot be read again, or not be written, is a failure of its picture.

    Args:
        unit: Where the samples are read again, for their pictures.
        pictures: Those of the unit that have not failed, with their raw detections.
        recipe: The filter, and the detector's name for the regions' source.

    Attributes:
        stats: Counts of what was written and left out.
        failures: Why a picture was not written, by its index.
    """

    def __init__(self, unit: Unit, pictures: Sequence[Picture], recipe: LabelRecipe) -> None:
        self.unit, self.pictures, self.recipe = unit, pictures, recipe
        self.stats = RegionStats()
        self.failures: dict[int, Failure] = {}
        self._keys: set[str] = set()

    def __iter__(self) -> Iterator[Encoded]:
        """Samples one at a time, counted, and encoded, since only that shows whether they can be written."""
        dataset, _ = samples_of(self.unit)
        for picture in self.pictures:
            try:
                given = self._given(dataset, picture)
                regions, dropped = _regions(picture, self.recipe)
                sample = clean_sample(_labelled(given, picture, regions))
                encoded = Encoded.of(sample, Storage())
            except Exception as error:  # data of any shape: one picture's fault, never the unit's
                self.failures[picture.index] = failure_of(error, picture.key)
                continue
            self._keys.add(sample.key)
            self.stats.filtered.update(dropped)
            self.stats.given_regions += len(given.regions)
            self.stats.add(sample)
            yield encoded

    def _given(self, dataset: SampleDataset, picture: Picture) -> RegionSample:
        sample, problems = read_usable(dataset, picture.index)
        if sample is None:
            raise SampleError(problems[0].message, problems[0].cause)
        check_key(sample.key)
        if sample.key in self._keys:
            raise SampleError(f"key {sample.key!r} occurs twice in {self.unit.spec}", "repeated key")
        return sample


class Kept(NamedTuple):
    """The boxes that become regions.

    Attributes:
        boxes: Rows of the raw boxes that are kept, (R,), best score first.
        phrases: Columns of their phrases, (R,).
        dropped: Number of boxes left out, by rule.
    """

    boxes: np.ndarray
    phrases: np.ndarray
    dropped: Counter[str]


def select_regions(detections: Detections, cycle: np.ndarray | None, config: FilterConfig) -> Kept:
    """Choose a picture's regions.

    Args:
        detections: The picture's raw boxes, N of them.
        cycle: Cycle scores of the boxes, (N,), if there are any.
        config: The rules, applied in the order of their fields.
    """
    count, dropped = len(detections.boxes), Counter[str]()
    if not count:
        return Kept(np.zeros(0, int), np.zeros(0, int), dropped)
    phrase = detections.scores.argmax(1)  # of equal ones the first
    score = detections.scores[np.arange(count), phrase]
    rows = np.argsort(-score, kind="stable")

    def keep(rows: np.ndarray, good: np.ndarray, rule: str) -> np.ndarray:
        dropped[rule] += int((~good).sum())
        return rows[good]

    rows = keep(rows, score[rows] > config.min_score, "score")
    if config.nms_iou < 1:
        rows = keep(rows, distinct_boxes(detections.boxes[rows], phrase[rows], config.nms_iou), "overlap")
    sides = detections.boxes[rows, 2:] - detections.boxes[rows, :2]
    rows = keep(rows, sides.min(1, initial=1.0) >= max(config.min_side, NO_AREA), "too small")
    sides = detections.boxes[rows, 2:] - detections.boxes[rows, :2]
    rows = keep(rows, sides.prod(1) <= config.max_area, "too large")
    if config.min_cycle > -1:
        assert cycle is not None
        rows = keep(rows, cycle[rows] >= config.min_cycle, "cycle")
    if config.max_regions:
        rows = keep(rows, np.arange(len(rows)) < config.max_regions, "over the limit")
    return Kept(rows, phrase[rows], +dropped)


def _labelled(given: RegionSample, picture: Picture, regions: tuple[Region, ...]) -> RegionSample:
    assert picture.caption is not None
    others = [text for text in given.captions if text != picture.caption.text]
    sources = [picture.caption.source, *("given" for _ in others)]
    return RegionSample(
        key=given.key,
        image=given.image,
        captions=(picture.caption.text, *others),
        regions=regions,
        metadata={**given.metadata, "caption_sources": sources},
    )


def _regions(picture: Picture, recipe: LabelRecipe) -> tuple[tuple[Region, ...], Counter[str]]:
    """A picture's regions, and the number of boxes left out, by rule."""
    found, phrases = picture.detections, picture.phrases
    assert found is not None
    assert phrases is not None
    source = Path(recipe.detect.weights).name or recipe.detect.kind
    kept = select_regions(found, picture.cycle, recipe.filter)
    regions = []
    for box, column in zip(kept.boxes.tolist(), kept.phrases.tolist()):
        phrase = phrases.kept[column]
        x1, y1, x2, y2 = (round(side, 6) for side in found.boxes[box].tolist())
        cycle = None if picture.cycle is None else round(float(picture.cycle[box]), 6)
        score = round(float(found.scores[box, column]), 6)
        span = (phrase.start, phrase.end)
        regions.append(Region((x1, y1, x2, y2), phrase.text, score, source, span, cycle))
    return tuple(regions), kept.dropped
