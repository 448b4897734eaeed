"""Referring expressions: which of a picture's boxes an expression means.

Shapes: X expressions of a data set, R candidates of one image, D shared embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from open_cloc.boxes import judged_overlaps
from open_cloc.data.annotations import SampleDataset
from open_cloc.data.readers.referring import DETECTED, REFERRING
from open_cloc.errors import UserError
from open_cloc.evaluation.batches import read_batches
from open_cloc.evaluation.classes import embed_in_templates
from open_cloc.evaluation.intervals import mean_over
from open_cloc.evaluation.method import Method, cleaning_of
from open_cloc.evaluation.metrics import TIES_SHARE
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.proposals import boxes_of
from open_cloc.evaluation.queries import Query, role_queries
from open_cloc.evaluation.task import TaskResult, measured
from open_cloc.samples import RegionSample

IOU_THRESHOLD = 0.5
WHOLE = np.array([[0.0, 0.0, 1.0, 1.0]])


def referring(method: Method, dataset: SampleDataset, config: EvaluationConfig) -> TaskResult:
    """Choose the box of each expression among its picture's candidates, by cosine; every sentence counts one.

    Candidates are the annotated boxes, or those of a detector where the protocol says so; a picture in which
    nothing was detected has itself as its one candidate. One that the detector's file does not list is a
    broken entry of the data set, which is not evaluated. A choice is right if its overlap with a box that is
    meant is above 0.5.

    Raises:
        UserError: If there is no expression, or detections are asked for and there are none.
    """
    detected = config.rules.candidates == "detected"
    hits: list[float] = []
    overlaps: list[float] = []
    counts: list[int] = []  # expressions of each image
    num_candidates = num_without = 0
    for batch in read_batches(dataset, method.canvas, config):
        asked = [expressions_of(sample, method, config) for sample in batch.samples]
        chosen = [_candidates(sample, detected) if own else [] for sample, own in zip(batch.samples, asked)]
        boxes = [_boxes(sample, rows, bool(own)) for sample, rows, own in zip(batch.samples, chosen, asked)]
        num_candidates += sum(map(len, chosen))
        num_without += sum(bool(own) and not rows for rows, own in zip(chosen, asked))
        features = method.embed_regions(batch, boxes).cpu().split(list(map(len, boxes)))
        texts = [expression.text for own in asked for expression in own]
        asking = iter(embed_in_templates(method, texts, config) if texts else ())
        for sample, own, candidates, rows in zip(batch.samples, asked, boxes, features):
            for expression in own:
                hit, overlap = _judged(next(asking), rows, candidates, sample, expression.regions)
                hits.append(hit)
                overlaps.append(overlap)
        counts += map(len, asked)
    if not hits:
        raise UserError(f"dataset has no referring expressions in its {len(counts)} images")
    if not num_candidates:
        raise UserError(
            f"nothing was detected in the {len(counts)} images: open the data with detections=FILE of a "
            "detector that found something there"
        )
    images = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    estimates = {
        f"acc@{IOU_THRESHOLD}": mean_over(torch.tensor(hits), images, len(counts)),
        "mean_iou": mean_over(torch.tensor(overlaps), images, len(counts)),
    }
    protocol = {
        "candidates": config.rules.candidates,
        "right": f"IoU above {IOU_THRESHOLD} with a box that is meant",
        "averaging": "micro over sentences",
        "ties": TIES_SHARE,
        "num_images": len(counts),
        "num_expressions": len(hits),
        "num_candidates": num_candidates,
        "num_images_without_candidates": num_without,
    }
    return measured(estimates, len(counts), protocol)


def expressions_of(sample: RegionSample, method: Method, config: EvaluationConfig) -> list[Query]:
    """A sample's expressions, cleaned as the method reads texts, in order; each reference's by itself."""
    clean, lower_case = cleaning_of(method), config.rules.lower_case
    return role_queries(sample, REFERRING, lambda text: clean(text.lower() if lower_case else text))


def _candidates(sample: RegionSample, detected: bool) -> list[int]:
    return [row for row, region in enumerate(sample.regions) if (region.source == DETECTED) == detected]


def _boxes(sample: RegionSample, rows: Sequence[int], is_asked: bool) -> np.ndarray:
    """(R, 4) of the candidates; the whole picture where there is none and something is asked."""
    if not rows:
        return WHOLE if is_asked else np.empty((0, 4))
    return boxes_of([sample.regions[row] for row in rows])


def _judged(
    text: Tensor, features: Tensor, candidates: np.ndarray, sample: RegionSample, meant: Sequence[int]
) -> tuple[float, float]:
    """Whether the chosen candidate is right, and its overlap; of candidates that tie, the mean.

    Args:
        text: (D,) the expression.
        features: (R, D) the candidates.
        candidates: (R, 4) their boxes.
        sample: The picture.
        meant: Its regions that the expression means.
    """
    scores = (features * text).sum(1)  # row by row alike, so that equal boxes tie to the bit
    best = (scores == scores.max()).nonzero()[:, 0]
    true = torch.from_numpy(boxes_of([sample.regions[row] for row in meant]))
    overlaps = judged_overlaps(torch.from_numpy(candidates)[best], true).amax(1)
    return (overlaps > IOU_THRESHOLD).double().mean().item(), overlaps.mean().item()
