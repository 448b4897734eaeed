"""From raw boxes to regions, against the rules one box at a time."""

from __future__ import annotations

import numpy as np
import pytest

from open_cloc.labelling.filter import select_regions
from open_cloc.labelling.recipe import (
    FilterConfig,
)
from open_cloc.labelling.types import Detections


def slow_selection(found: Detections, cycle: list[float], config: FilterConfig) -> list[tuple[int, int]]:
    """The rules one box at a time."""
    kept: list[tuple[int, int]] = []
    best = [(float(max(row)), int(np.argmax(row))) for row in found.scores]
    for i in sorted(range(len(best)), key=lambda i: -best[i][0]):
        x1, y1, x2, y2 = (float(v) for v in found.boxes[i])
        if best[i][0] <= config.min_score:
            continue
        kept.append((i, best[i][1]))
    if config.nms_iou < 1:
        chosen: list[tuple[int, int]] = []
        for i, phrase in kept:
            if all(p != phrase or iou(found.boxes[i], found.boxes[j]) <= config.nms_iou for j, p in chosen):
                chosen.append((i, phrase))
        kept = chosen
    result = []
    for i, phrase in kept:
        x1, y1, x2, y2 = (float(v) for v in found.boxes[i])
        if min(x2 - x1, y2 - y1) < config.min_side or (x2 - x1) * (y2 - y1) > config.max_area:
            continue
        if cycle[i] < config.min_cycle:
            continue
        result.append((i, phrase))
    return result[: config.max_regions or None]


def iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(sides.clip(0)))
    return shared / (float(np.prod(a[2:] - a[:2])) + float(np.prod(b[2:] - b[:2])) - shared)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"min_score": 0.6},
        {"nms_iou": 0.4},
        {"min_side": 0.2, "max_area": 0.3},
        {"min_cycle": 0.2, "nms_iou": 0.3, "min_score": 0.3},
        {"max_regions": 5, "nms_iou": 0.5},
    ],
)
def test_selection_against_a_loop(fields: dict[str, float]) -> None:
    rng = np.random.default_rng(0)
    corners = np.sort(rng.random((60, 2, 2)), axis=1)
    found = Detections(corners.reshape(60, 4).astype(np.float32), rng.random((60, 3)).astype(np.float32) ** 2)
    cycle = rng.uniform(-1, 1, 60).astype(np.float32)
    config = FilterConfig(**fields)  # type: ignore[arg-type]
    kept = select_regions(found, cycle, config)
    expected = slow_selection(found, cycle.tolist(), config)
    assert list(zip(kept.boxes.tolist(), kept.phrases.tolist())) == expected
    assert kept.dropped.total() == 60 - len(expected)
