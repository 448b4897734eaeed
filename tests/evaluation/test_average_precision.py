"""Average precision against pycocotools itself, and draws against data sets that hold a picture twice."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch

pytest.importorskip("pycocotools")

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from open_cloc.evaluation.average_precision import Boxes, precision_estimates

IMAGES, CLASSES = 12, 4


def boxes_of(seed: int, count: int, scored: bool) -> Boxes:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 200, (count, 2))
    sides = rng.choice([12.0, 50.0, 150.0], (count, 1)) * rng.uniform(0.8, 1.2, (count, 2))
    return Boxes(
        np.concatenate([corners, corners + sides], 1),
        rng.integers(0, CLASSES - 1, count),  # one class never occurs
        rng.integers(0, IMAGES, count),
        np.round(rng.uniform(0, 1, count), 1) if scored else np.zeros(0),  # many scores tie
    )


def near(truth: Boxes, seed: int) -> Boxes:
    """Detections: shifted copies of what is there, some of another class, and noise."""
    rng = np.random.default_rng(seed)
    noise = boxes_of(seed + 1, 60, scored=True)
    shifted = truth.boxes + rng.normal(0, 6, truth.boxes.shape)
    shifted[:, 2:] = np.maximum(shifted[:, 2:], shifted[:, :2] + 1)
    classes = np.where(rng.uniform(size=len(shifted)) < 0.2, (truth.classes + 1) % CLASSES, truth.classes)
    return Boxes(
        np.concatenate([shifted, noise.boxes]),
        np.concatenate([classes, noise.classes]),
        np.concatenate([truth.images, noise.images]),
        np.concatenate([np.round(rng.uniform(0.2, 1, len(shifted)), 2), noise.scores]),
    )


def by_pycocotools(truth: Boxes, found: Boxes, num_images: int) -> np.ndarray:
    """Its twelve numbers."""
    sides = []
    for boxes in (truth, found):
        rows = [
            {
                "id": n + 1,
                "image_id": int(boxes.images[n]),
                "category_id": int(boxes.classes[n]),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": int(boxes.crowds[n]) if len(boxes.crowds) else 0,
                "score": float(boxes.scores[n]) if len(boxes.scores) else 1.0,
            }
            for n, (x1, y1, x2, y2) in enumerate(boxes.boxes.tolist())
        ]
        side = COCO()
        side.dataset = {
            "images": [{"id": n} for n in range(num_images)],
            "categories": [{"id": n} for n in range(CLASSES)],
            "annotations": rows,
        }
        with redirect_stdout(io.StringIO()):
            side.createIndex()
        sides.append(side)
    evaluator = COCOeval(*sides, "bbox")
    with redirect_stdout(io.StringIO()):
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats


@pytest.mark.parametrize("crowds", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(6))
def test_it_is_pycocotools(seed: int, crowds: float) -> None:
    truth = boxes_of(seed, 70, scored=False)
    truth = truth._replace(crowds=np.random.default_rng(seed).random(70) < crowds)
    found = near(truth, seed + 100)
    estimates = precision_estimates(truth, found, CLASSES, IMAGES, 100, {"some": [0, 1]})
    stats = by_pycocotools(truth, found, IMAGES)
    names = ("ap", "ap50", "ap75", "ap/small", "ap/medium", "ap/large")
    assert [estimates[name].value for name in names] == pytest.approx(stats[:6].tolist(), abs=1e-12)
    assert 0.02 < estimates["ap"].value < estimates["ap50"].value < 0.95
    few = precision_estimates(truth, found, 2, IMAGES, 100, {})["ap50"].value
    assert estimates["ap50/some"].value == pytest.approx(few)


def test_a_draw_is_a_data_set_that_holds_some_pictures_twice() -> None:
    truth = boxes_of(3, 70, scored=False)
    truth = truth._replace(crowds=np.arange(70) % 9 == 0)
    found = near(truth, 103)
    rng = np.random.default_rng(0)
    draws = np.stack([np.bincount(rng.integers(0, IMAGES, IMAGES), minlength=IMAGES) for _ in range(5)])
    weights = torch.from_numpy(draws.T.astype(np.float64))
    estimates = precision_estimates(truth, found, CLASSES, IMAGES, 100, {})

    def drawn(boxes: Boxes, chosen: np.ndarray) -> Boxes:
        rows = [np.flatnonzero(boxes.images == image) for image in chosen]
        every = np.concatenate(rows)
        images = np.repeat(np.arange(len(chosen)), list(map(len, rows)))
        scores = boxes.scores[every] if len(boxes.scores) else boxes.scores
        crowds = boxes.crowds[every] if len(boxes.crowds) else boxes.crowds
        return Boxes(boxes.boxes[every], boxes.classes[every], images, scores, crowds)

    for name, at in (("ap", 0), ("ap50", 1)):
        values = estimates[name].of_draws(weights)  # type: ignore[union-attr]
        for draw, value in zip(draws, values):
            chosen = np.repeat(np.arange(IMAGES), draw)
            stats = by_pycocotools(drawn(truth, chosen), drawn(found, chosen), len(chosen))
            # Equal scores stand in the pictures' order, which another draw has otherwise.
            assert value.item() == pytest.approx(stats[at], abs=0.02)


def test_nothing_found_and_nothing_there() -> None:
    truth, nothing = boxes_of(1, 5, scored=False), boxes_of(1, 0, scored=True)
    assert precision_estimates(truth, nothing, CLASSES, IMAGES, 100, {})["ap"].value == 0
    perfect = Boxes(truth.boxes, truth.classes, truth.images, np.ones(5))
    found = precision_estimates(truth, perfect, CLASSES, IMAGES, 100, {"none": [CLASSES - 1]})
    assert found["ap"].value == pytest.approx(1)
    assert "ap/none" not in found
