"""Where boxes come from, to be searched or judged: functions from a sample to regions of its picture."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from open_cloc.boxes import OK, OUTSIDE, box_problems, convert_boxes, normalize_boxes
from open_cloc.config import call_with_options, lookup, parse_spec
from open_cloc.errors import SampleError, UserError
from open_cloc.files import read_json
from open_cloc.model.search import candidate_grid
from open_cloc.samples import Region, RegionSample

# A sample and its pixels (H, W, 3) -> regions.
RegionSource: TypeAlias = Callable[[RegionSample, np.ndarray], list[Region]]

# Kind -> `module:function` taking (what, **options).
REGIONS = {
    "labels": "open_cloc.model.region_sources:from_labels",
    "grid": "open_cloc.model.region_sources:from_grid",
    "results": "open_cloc.model.region_sources:from_results",
}
OF_GRID, OF_RESULTS = "grid", "results"  # sources of their regions
GRID = 60  # boxes of a picture: three or four sizes, which the Prompter makes nearly free
MOST_OF_GRID = 5000


def open_regions(spec: str, more: Mapping[str, Callable[..., RegionSource]] | None = None) -> RegionSource:
    """Open a source of regions by `KIND[:WHAT][,name=value...]`.

    Args:
        spec: `labels`; `grid:COUNT`; `results:FILE`; or `package.module:Name`, as everywhere.
        more: Further kinds of the caller's, functions of (what, **options).

    Raises:
        UserError: On an unknown kind or option.
    """
    table = {**REGIONS, **(more or {})}
    kind, what, options = parse_spec(spec, table)
    return call_with_options(lookup(table, kind, "source of boxes"), what, options=options, where=spec)


def from_labels(what: str = "") -> RegionSource:
    """The regions that the data has.

    Raises:
        UserError: If anything stands behind the colon.
    """
    if what:
        raise UserError(f"regions labels takes nothing more; got {what!r}")
    return lambda sample, pixels: list(sample.regions)


def from_grid(what: str = "") -> RegionSource:
    """Boxes of several sizes and shapes all over each picture.

    Args:
        what: Most boxes of a picture.

    Raises:
        UserError: If it is no number in 1..5000.
    """
    count = int(what) if what.isdecimal() and len(what) < 6 else 0 if what else GRID
    if not 1 <= count <= MOST_OF_GRID:
        raise UserError(f"grid:COUNT must be a whole number in 1..{MOST_OF_GRID}; got {what!r}")
    boxes = [tuple(box) for box in candidate_grid(count).double().tolist()]
    regions = [Region(box, "", float("nan"), OF_GRID) for box in boxes]
    return lambda sample, pixels: list(regions)


class Results:
    """Boxes of a detector, found by the image ids of a data set.

    Attributes:
        found: Boxes `xywh` in pixels with their scores, by image id.
    """

    def __init__(self, found: Mapping[str, Sequence[tuple[Sequence[float], float]]]) -> None:
        self.found = found
        self._met: set[str] = set()

    @property
    def num_unmet(self) -> int:
        """Images that nobody has asked for."""
        return len(self.found.keys() - self._met)

    def __call__(self, sample: RegionSample, pixels: np.ndarray) -> list[Region]:
        """The boxes of a sample; those without area are left out.

        Raises:
            SampleError: If the sample has no image id, or a box leaves its picture.
        """
        if "image_id" not in sample.metadata:
            raise SampleError(f"results go by image_id, and sample {sample.key!r} has none", "no image_id")
        image = str(sample.metadata["image_id"])
        self._met.add(image)
        own = self.found.get(image, ())
        given = np.array([box for box, _ in own], float).reshape(-1, 4)
        boxes = normalize_boxes(convert_boxes(given, "xywh"), pixels.shape[:2])
        codes = box_problems(boxes, pixels.shape[:2])
        if OUTSIDE in codes:
            row = int((codes == OUTSIDE).argmax())
            height, width = pixels.shape[:2]
            raise SampleError(
                f"results' bbox {given[row].tolist()} leaves its picture of {width} x {height} (sample "
                f"{sample.key!r}); expected [x, y, w, h] in pixels",
                "box outside of the picture",
            )
        return [
            Region(tuple(box), "", score, OF_RESULTS)
            for box, (_, score), code in zip(boxes.clip(0, 1).tolist(), own, codes)
            if code == OK
        ]


def from_results(what: str) -> Results:
    """Boxes of a detector, as COCO's tools write results: `[{"image_id", "bbox": [x, y, w, h], "score"}]`.

    Boxes are in pixels, and scores in [0, 1]; none is needed.

    Args:
        what: The JSON file.

    Raises:
        MissingFileError: If it is not there.
        UserError: If it is not of that form.
    """
    if not what:
        raise UserError("results:FILE lacks its file, a JSON list of a detector's boxes")
    rows = read_json(Path(what))
    if not isinstance(rows, list):
        raise UserError(f"results are a JSON list of objects with image_id, bbox and score ({what})")
    found: dict[str, list[tuple[list[float], float]]] = defaultdict(list)
    for position, row in enumerate(rows):
        image, box, score = _result(row, position, what)
        found[image].append((box, score))
    if found and max(max(box) for own in found.values() for box, _ in own) <= 1:
        raise UserError(f"results' boxes must be in pixels; all numbers are at most 1 ({what})")
    return Results(found)


def _result(row: Any, position: int, where: str) -> tuple[str, list[float], float]:
    """The image, the box and the score of an entry."""
    if not isinstance(row, dict) or not {"image_id", "bbox"} <= row.keys():
        raise UserError(f"entry {position} needs image_id and bbox; got {row!s:.80} ({where})")
    box, score = row["bbox"], row.get("score", 0.0)
    numbers = [*box, score] if isinstance(box, list) else []
    if len(numbers) != 5 or not all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers):
        raise UserError(
            f"entry {position} needs a bbox [x, y, w, h], and a score if it has one, all numbers; got "
            f"{row!s:.80} ({where})"
        )
    if box[2] < 0 or box[3] < 0 or not 0 <= score <= 1:
        raise UserError(
            f"entry {position} needs a width and a height of at least 0 and a score in [0, 1]; got "
            f"{row!s:.80} ({where})"
        )
    return str(row["image_id"]), [float(n) for n in box], float(row.get("score", math.nan))
