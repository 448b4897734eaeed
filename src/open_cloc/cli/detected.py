"""Regions for an index from a detector: what it finds of a list of phrases in each picture."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from threading import Lock

import numpy as np

from open_cloc.errors import SampleError, UserError
from open_cloc.files import read_text
from open_cloc.model.region_sources import RegionSource  # the parser of options reads annotations
from open_cloc.samples import Region, RegionSample


def detectors(device: str | None) -> Callable[..., RegionSource]:
    """What opens a detector as a source of regions, on a device."""

    def open_detected(
        weights: str, phrases: str, kind: str = "auto", min_score: float = 0.1, max_regions: int = 100
    ) -> RegionSource:
        return from_detector(weights, read_phrases(phrases), kind, min_score, max_regions, device)

    return open_detected


def from_detector(
    weights: str, phrases: list[str], kind: str, min_score: float, max_regions: int, device: str | None
) -> RegionSource:
    """Regions that a detector finds, each with its best phrase and that one's score.

    Args:
        weights: Folder or hub id of the detector.
        phrases: What it looks for.
        kind: Its architecture, or `auto`.
        min_score: Score that a region must be above.
        max_regions: Most regions of a picture, best first.
        device: Where it runs.

    Raises:
        MissingFileError: If there are no such weights.
        UserError: If they are no detector's, or a number is out of range.
    """
    from open_cloc.labelling.detectors import open_detector
    from open_cloc.labelling.filter import select_regions
    from open_cloc.labelling.recipe import DetectorConfig, FilterConfig
    from open_cloc.labelling.types import Failure

    if not weights:
        raise UserError("regions detector:WEIGHTS lacks its weights, a folder or a hub id")
    if not 0 <= min_score < 1 or max_regions < 1:
        raise UserError(
            "regions detector needs min_score in [0, 1) and max_regions of at least 1; "
            f"got {min_score:g} and {max_regions}"
        )
    rules = FilterConfig(min_score=min_score, max_regions=max_regions)
    asked = DetectorConfig(kind=kind, weights=weights, raw_score=min_score, max_boxes=max_regions)
    detector = open_detector(asked, device)
    lock = Lock()  # pictures are read by several threads, and no detector promises to bear that
    source = Path(weights).name

    def regions(sample: RegionSample, pixels: np.ndarray) -> list[Region]:
        with lock:
            (found,) = detector([pixels], [phrases])
        if isinstance(found, Failure):
            raise SampleError(f"{found.message} (sample {sample.key!r})", found.cause)
        kept = select_regions(found, None, rules)
        boxes, scores = found.boxes.astype(float).tolist(), found.scores.tolist()
        return [
            Region(tuple(boxes[row]), phrases[place], scores[row][place], source)
            for row, place in zip(kept.boxes.tolist(), kept.phrases.tolist())
        ]

    return regions


def read_phrases(given: str) -> list[str]:
    """Phrases, one a line of a file of that name, or joined by commas; repeated ones once.

    Raises:
        UserError: If there are none.
    """
    lines = read_text(Path(given)).splitlines() if os.path.isfile(given) else given.split(",")
    phrases = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not phrases:
        raise UserError(
            f"phrases must be a file with one a line, or texts joined by commas; got {given!r:.80}"
        )
    return phrases
