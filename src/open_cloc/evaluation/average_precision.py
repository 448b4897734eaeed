"""COCO's average precision, on the data set as it is and on any other draw of its pictures.

Which detection is of which box is decided by pycocotools. From there on it is ours: pycocotools adds up one
data set, and intervals need a thousand.

Shapes: I images, C classes, T overlaps, n detections of a class, S draws.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from open_cloc.config import require
from open_cloc.evaluation.intervals import Computed, Statistic

OVERLAPS = np.linspace(0.5, 0.95, 10)
RECALLS = torch.from_numpy(np.linspace(0, 1, 101))  # torch's own are other numbers in the last digit
# Areas of boxes in pixels, as COCO parts them.
AREAS = {"": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
NUMBERS_AT_ONCE = 2**23


class Boxes(NamedTuple):
    """Boxes of a data set, X of them.

    Attributes:
        boxes: (X, 4) `xyxy` in pixels of their pictures.
        classes: (X,) int64.
        images: (X,) int64.
        scores: (X,) of what was found; empty for what is annotated.
        crowds: (X,) bool, boxes around many things, in which nothing is wrong; empty where there is none.
    """

    boxes: np.ndarray
    classes: np.ndarray
    images: np.ndarray
    scores: np.ndarray
    crowds: np.ndarray = np.zeros(0, bool)


class Matches(NamedTuple):
    """The detections of a class, best first, each with what became of it.

    Attributes:
        images: (n,) int64 image of each.
        hits: (T, n) bool.
        ignored: (T, n) bool, neither right nor wrong.
        wanted: (I,) float64 boxes to be found in each image.
    """

    images: Tensor
    hits: Tensor
    ignored: Tensor
    wanted: Tensor


def precision_estimates(
    annotated: Boxes,
    found: Boxes,
    num_classes: int,
    num_images: int,
    most: int,
    groups: Mapping[str, Sequence[int]],
) -> dict[str, Statistic]:
    """Average precision by COCO's rules.

    Args:
        annotated: What is there.
        found: What was detected.
        num_classes: C.
        num_images: I.
        most: Detections of an image and a class that count.
        groups: Classes by the name of a group, each with a number of its own.

    Returns:
        `ap` over overlaps of 0.5 to 0.95, `ap50`, `ap75`, `ap` of small, medium and large boxes, and `ap` and
        `ap50` of each group, where there are any.
    """
    by_area = find_matches(annotated, found, num_classes, num_images, most)
    whole = by_area[""]
    estimates: dict[str, Statistic] = {
        "ap": _mean_precision(whole, num_images),
        "ap50": _mean_precision(whole, num_images, [0]),
        "ap75": _mean_precision(whole, num_images, [5]),
    }
    parts = {name: matches for name, matches in by_area.items() if name}
    parts |= {name: [whole[number] for number in numbers] for name, numbers in groups.items()}
    for name, matches in parts.items():
        if any(own.wanted.any() for own in matches):
            estimates[f"ap/{name}"] = _mean_precision(matches, num_images)
            if name in groups:
                estimates[f"ap50/{name}"] = _mean_precision(matches, num_images, [0])
    return estimates


def find_matches(
    annotated: Boxes, found: Boxes, num_classes: int, num_images: int, most: int
) -> dict[str, list[Matches]]:
    """Match detections with boxes, by pycocotools: for each range of areas a list of all classes."""
    evaluator = _evaluator(annotated, found, num_classes, num_images, most)
    with redirect_stdout(io.StringIO()):  # it prints its progress
        evaluator.evaluate()
    rows = iter(evaluator.evalImgs)  # class by class, area by area, image by image
    matches: dict[str, list[Matches]] = {name: [] for name in AREAS}
    for _ in range(num_classes):
        for name in AREAS:
            matches[name].append(_joined([next(rows) for _ in range(num_images)]))
    return matches


def _evaluator(annotated: Boxes, found: Boxes, num_classes: int, num_images: int, most: int) -> Any:
    coco = require("pycocotools.coco", "eval").COCO
    evaluator = require("pycocotools.cocoeval", "eval").COCOeval
    names = {
        "images": [{"id": number} for number in range(num_images)],
        "categories": [{"id": number} for number in range(num_classes)],
    }
    sides = []
    for boxes in (annotated, found):
        side = coco()
        side.dataset = names | {"annotations": _entries(boxes)}
        with redirect_stdout(io.StringIO()):
            side.createIndex()
        sides.append(side)
    made = evaluator(*sides, "bbox")
    made.params.areaRng, made.params.areaRngLbl = [list(ends) for ends in AREAS.values()], list(AREAS)
    made.params.maxDets = [most]
    return made


def _entries(boxes: Boxes) -> list[dict[str, Any]]:
    sides = (boxes.boxes[:, 2:] - boxes.boxes[:, :2]).round(6)  # whole where the files had whole ones
    scores = boxes.scores if len(boxes.scores) else np.ones(len(boxes.boxes))
    crowds = boxes.crowds if len(boxes.crowds) else np.zeros(len(boxes.boxes), bool)
    return [
        {
            "id": number + 1,  # 0 means none in its table of matches
            "image_id": int(image),
            "category_id": int(kind),
            "bbox": [*box[:2].tolist(), *side.tolist()],
            "area": float(side[0] * side[1]),
            "score": float(score),
            "iscrowd": int(is_crowd),
        }
        for number, (image, kind, box, side, score, is_crowd) in enumerate(
            zip(boxes.images, boxes.classes, boxes.boxes, sides, scores, crowds)
        )
    ]


def _joined(rows: Sequence[dict[str, Any] | None]) -> Matches:
    """What pycocotools says of a class in each image, as one list, best first."""
    wanted = torch.zeros(len(rows), dtype=torch.float64)
    images, scores = [np.empty(0, np.int64)], [np.empty(0)]
    hits, ignored = [np.empty((len(OVERLAPS), 0), bool)], [np.empty((len(OVERLAPS), 0), bool)]
    for number, row in enumerate(rows):
        if row is None:
            continue
        wanted[number] = float((np.asarray(row["gtIgnore"]) == 0).sum())
        images.append(np.full(len(row["dtScores"]), number))
        scores.append(np.asarray(row["dtScores"], float))
        hits.append(np.asarray(row["dtMatches"]) != 0)
        ignored.append(np.asarray(row["dtIgnore"]) != 0)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return Matches(
        torch.from_numpy(np.concatenate(images)[order]),
        torch.from_numpy(np.concatenate(hits, 1)[:, order]),
        torch.from_numpy(np.concatenate(ignored, 1)[:, order]),
        wanted,
    )


def _mean_precision(
    matches: Sequence[Matches], num_images: int, overlaps: Sequence[int] = range(len(OVERLAPS))
) -> Computed:
    """The mean over overlaps and over classes that occur."""
    own = [each for each in matches if each.wanted.any()]

    def of_draws(weights: Tensor) -> Tensor:
        if not own:
            return torch.full(weights.shape[1:], torch.nan, dtype=torch.float64)
        return torch.stack([average_precision(each, weights, overlaps) for each in own]).nanmean(0)

    return Computed(of_draws, num_images)


def average_precision(matches: Matches, weights: Tensor, overlaps: Sequence[int]) -> Tensor:
    """A class's average precision on draws of the images: the mean of 101 precisions, and over overlaps.

    Args:
        matches: Of the class.
        weights: (I, S) how often each image is drawn.
        overlaps: Which of `OVERLAPS` count.

    Returns:
        (S,) float64; NaN where nothing of the class is drawn.
    """
    wanted = matches.wanted @ weights  # (S,)
    at_once = max(1, NUMBERS_AT_ONCE // max(1, len(matches.images)))
    found = []
    for some, total in zip(weights.split(at_once, dim=1), wanted.split(at_once)):
        drawn = some[matches.images]  # (n, s)
        rows = [_precision(drawn, matches.hits[row], matches.ignored[row], total) for row in overlaps]
        found.append(torch.stack(rows).mean(0))
    return torch.cat(found).where(wanted > 0, torch.nan)


def _precision(drawn: Tensor, hits: Tensor, ignored: Tensor, wanted: Tensor) -> Tensor:
    """(s,) of detections that count `drawn` (n, s) times each; (n,) are hits, and (n,) are ignored."""
    if not len(drawn):
        return torch.zeros_like(wanted)
    counted = drawn * ~ignored[:, None]
    right = (counted * hits[:, None]).cumsum(0)
    precision = right / counted.cumsum(0).clamp(min=torch.finfo(torch.float64).eps)
    best_from_here = precision.flip(0).cummax(0).values.flip(0)
    recall = (right / wanted.clamp(min=1)).T.contiguous()  # (s, n)
    places = torch.searchsorted(recall, RECALLS.expand(len(recall), -1).contiguous())  # (s, 101)
    inside = places < len(drawn)
    return best_from_here.T.gather(1, places.clamp(max=len(drawn) - 1)).where(inside, 0.0).mean(1)
