"""From raw boxes to regions: each box takes its most confident phrase, then thresholds, duplicates, limits.

Shapes: N raw boxes, P phrases of the picture, R regions kept.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
import torch

from open_cloc.errors import UserError
from open_cloc.labelling.recipe import FilterConfig
from open_cloc.labelling.types import Detections

NO_AREA = 1e-5  # side, relative to the picture's, below which rounding leaves nothing


class Kept(NamedTuple):
    """The boxes that become regions.

    Attributes:
        boxes: (R,) rows of the raw boxes, best score first.
        phrases: (R,) each one's phrase.
        dropped: Boxes left out, counted by rule.
    """

    boxes: np.ndarray
    phrases: np.ndarray
    dropped: Counter[str]


def check_filter(config: FilterConfig, has_cycle: bool) -> None:
    """Refuse what cannot be meant.

    Raises:
        UserError: On a value out of range, or a cycle limit where no cycle score is made.
    """
    for name, low, high in (
        ("min_score", 0, 1),
        ("nms_iou", 0, 1),
        ("min_side", 0, 1),
        ("max_area", 0, 1),
        ("min_cycle", -1, 1),
    ):
        if not low <= getattr(config, name) <= high:
            raise UserError(f"filter.{name} must lie in [{low}, {high}]; got {getattr(config, name)}")
    if config.max_regions < 0:
        raise UserError(f"filter.max_regions must be at least 0; got {config.max_regions}")
    if config.min_cycle > -1 and not has_cycle:
        raise UserError("filter.min_cycle needs a cycle score; set cycle_weights to a CLOC model")


def select_regions(detections: Detections, cycle: np.ndarray | None, config: FilterConfig) -> Kept:
    """Choose a picture's regions.

    Args:
        detections: N raw boxes.
        cycle: (N,) cycle scores, if there are any.
        config: The rules, applied in the order of its fields.
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
        from torchvision.ops import batched_nms  # a second and a half, which each worker would pay

        boxes, scores, phrases = (torch.from_numpy(x[rows]) for x in (detections.boxes, score, phrase))
        best = batched_nms(boxes.double(), scores.double(), phrases, config.nms_iou)
        rows = keep(rows, np.isin(np.arange(len(rows)), best.numpy()), "overlap")
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
