"""Grounding: from a phrase to its box, measured by overlap with the true ones.

Shapes: X phrases of a data set, P distinct phrases and R regions of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from open_cloc.data.annotations import SampleDataset
from open_cloc.errors import UserError
from open_cloc.evaluation.batches import read_batches
from open_cloc.evaluation.classes import group_masks
from open_cloc.evaluation.collect import region_texts
from open_cloc.evaluation.intervals import Estimate, mean_over
from open_cloc.evaluation.method import GroundingMethod, Method
from open_cloc.evaluation.methods import grounding_methods
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.task import TaskResult, measured
from open_cloc.samples import RegionSample

IOU_THRESHOLD = 0.5
SEVERAL = {"any": "its best box counts", "merged": "the box around all of its boxes counts"}


class _Grounded(NamedTuple):
    """All distinct phrases of each image.

    Attributes:
        ious: (X,) overlap of each phrase's box with its best true one.
        scores: (X,) the method's own opinion of each box.
        texts: The phrases, X of them.
        image_index: (X,) number of each phrase's image.
        num_regions: True boxes of all images.
        num_images: Images read, those without regions included.
    """

    ious: Tensor
    scores: Tensor
    texts: list[str]
    image_index: Tensor
    num_regions: int
    num_images: int


def grounding(method: Method, dataset: SampleDataset, config: EvaluationConfig) -> TaskResult:
    """Ground each distinct phrase of each image in that image.

    A phrase that stands at several boxes is one query. Its best overlap with any of them counts or, where the
    protocol says so, that with the box around all of them.

    Raises:
        UserError: If the method cannot find boxes.
    """
    if not isinstance(method, GroundingMethod):
        able = ", ".join(grounding_methods())
        raise UserError(f"method {method.describe()['method']} cannot ground phrases; those that can: {able}")
    found = _ground_all(method, dataset, config)
    images, num_images = found.image_index, found.num_images
    estimates = iou_estimates(found.ious, images, num_images)
    estimates["mean_score"] = mean_over(found.scores, images, num_images)
    protocol: dict[str, object] = {
        **method.describe_grounding(),
        "repeated_phrases": f"one query per distinct phrase; {SEVERAL[config.rules.several_boxes]}",
        "averaging": "micro over queries",
        "num_images": num_images,
        "num_regions": found.num_regions,
        "num_phrases": len(found.texts),
    }
    for name, mask in group_masks(method, found.texts, config).items():
        group = iou_estimates(found.ious[mask], images[mask], num_images)
        estimates |= {f"{key}/{name}": estimate for key, estimate in group.items()}
        protocol[f"num_phrases/{name}"] = int(mask.sum())
    return measured(estimates, num_images, protocol)


def iou_estimates(ious: Tensor, images: Tensor, num_images: int) -> dict[str, Estimate]:
    """Share of overlaps (X,) of at least 0.5, and their mean; `images` (X,) are those of the phrases."""
    return {
        f"acc@{IOU_THRESHOLD}": mean_over(ious >= IOU_THRESHOLD, images, num_images),
        "mean_iou": mean_over(ious, images, num_images),
    }


def best_ious(boxes: Tensor, true_boxes: Tensor, phrase_index: Tensor) -> Tensor:
    """Overlap of each phrase's box (P, 4) with the best of its true boxes.

    Args:
        boxes: (P, 4) in the same unit as the true ones.
        true_boxes: (R, 4).
        phrase_index: (R,) phrase of each true box.

    Returns:
        (P,) in [0, 1].
    """
    ious = box_iou(boxes, true_boxes)  # (P, R)
    own = phrase_index[None] == torch.arange(len(boxes))[:, None]
    return ious.masked_fill(~own, 0).amax(1)


def _ground_all(method: GroundingMethod, dataset: SampleDataset, config: EvaluationConfig) -> _Grounded:
    ious: list[Tensor] = []
    scores: list[Tensor] = []
    texts: list[str] = []
    counts: list[int] = []  # phrases of each image
    num_regions = 0
    for batch in read_batches(dataset, method.canvas, config):
        own_texts = [region_texts(sample, method) for sample in batch.samples]
        phrases = [list(dict.fromkeys(own)) for own in own_texts]
        found = method.ground(batch, phrases)
        merged = config.rules.several_boxes == "merged"
        ious += _own_ious(found.boxes, batch.samples, own_texts, phrases, merged)
        scores.append(found.scores)
        texts += [phrase for own in phrases for phrase in own]
        counts += map(len, phrases)
        num_regions += sum(map(len, own_texts))
    if not texts:
        raise UserError(f"dataset has no regions in its {len(counts)} images; expected at least one")
    images = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return _Grounded(torch.cat(ious), torch.cat(scores), texts, images, num_regions, len(counts))


def _own_ious(
    boxes: Tensor,
    samples: Sequence[RegionSample],
    texts: Sequence[Sequence[str]],
    phrases: Sequence[Sequence[str]],
    merged: bool,
) -> list[Tensor]:
    """Overlaps (P,) of each image's boxes; `boxes` are those of all its samples' phrases in a row."""
    ious = []
    for found, sample, own_texts, own in zip(boxes.split(list(map(len, phrases))), samples, texts, phrases):
        if own:
            true_boxes = torch.tensor([region.box for region in sample.regions])  # (R, 4) of the picture
            index = torch.tensor([own.index(text) for text in own_texts])
            if merged:
                true_boxes, index = _around(true_boxes, index, len(own)), torch.arange(len(own))
            ious.append(best_ious(found, true_boxes, index))
    return ious


def _around(boxes: Tensor, phrase_index: Tensor, count: int) -> Tensor:
    """The box around all boxes (R, 4) of each phrase: (P, 4)."""
    places = phrase_index[:, None].expand(-1, 2)
    low = torch.full((count, 2), torch.inf).scatter_reduce(0, places, boxes[:, :2], "amin")
    high = torch.full((count, 2), -torch.inf).scatter_reduce(0, places, boxes[:, 2:], "amax")
    return torch.cat([low, high], 1)
