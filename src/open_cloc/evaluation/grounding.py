"""Grounding: from a phrase to its box, measured by overlap with the true ones.

Shapes: P distinct phrases of one image, R regions of one image, D shared embedding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from open_cloc.data.annotations import SampleDataset
from open_cloc.errors import UserError
from open_cloc.evaluation.features import (
    EvaluationConfig,
    TaskResult,
    TextCache,
    autocast,
    batches,
    choose_method,
    encode_batch,
    region_texts,
)
from open_cloc.evaluation.regions import group_masks
from open_cloc.model.cloc import CLOC
from open_cloc.model.search import ground_phrases

GROUNDING_METHODS = ("ranked", "head")
IOU_THRESHOLD = 0.5


class _Grounded(NamedTuple):
    """Per distinct phrase of each image: overlap with its best true box, score, text; and counts."""

    ious: Tensor
    scores: Tensor
    texts: list[str]
    num_regions: int
    num_images: int


def grounding(model: CLOC, dataset: SampleDataset, config: EvaluationConfig) -> TaskResult:
    """Ground each distinct phrase of each image in that image.

    A phrase that stands at several boxes is one query, and its best overlap with any of them counts.
    """
    method = choose_method(config, GROUNDING_METHODS, "grounding")
    found = _ground_all(model, dataset, config, config.candidates if method == "ranked" else 0)
    metrics = iou_metrics(found.ious) | {"mean_score": found.scores.mean().item()}
    protocol: dict[str, object] = {
        "method": method,
        "candidates": config.candidates if method == "ranked" else 0,
        "repeated_phrases": "one query per distinct phrase of an image; its best box counts",
        "averaging": "micro over queries",
        "num_images": found.num_images,
        "num_regions": found.num_regions,
        "num_phrases": len(found.texts),
    }
    for name, mask in group_masks(found.texts, config).items():
        metrics |= {f"{key}/{name}": value for key, value in iou_metrics(found.ious[mask]).items()}
        protocol[f"num_phrases/{name}"] = int(mask.sum())
    return TaskResult(metrics, protocol)


def iou_metrics(ious: Tensor) -> dict[str, float]:
    """Share of overlaps (X,) of at least 0.5, and their mean."""
    return {
        f"acc@{IOU_THRESHOLD}": (ious >= IOU_THRESHOLD).double().mean().item(),
        "mean_iou": ious.double().mean().item(),
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


def _ground_all(model: CLOC, dataset: SampleDataset, config: EvaluationConfig, candidates: int) -> _Grounded:
    embed = TextCache(model, config)
    ious, scores, texts = [], [], []
    num_images = num_regions = 0
    for batch in batches(dataset, model, config):
        state = encode_batch(model, batch, config)
        for i, (sample, geometry) in enumerate(zip(batch.samples, batch.geometries)):
            num_images += 1
            own_texts = region_texts(sample, config)
            if not own_texts:
                continue
            phrases = list(dict.fromkeys(own_texts))
            image, content = state.select(slice(i, i + 1)), batch.content_boxes[i : i + 1].to(model.device)
            with autocast(model, config):
                found = ground_phrases(model, image, embed(phrases)[None], content, candidates)
            true_boxes = torch.tensor([region.box for region in sample.regions])  # (R, 4) of the picture
            index = torch.tensor([phrases.index(text) for text in own_texts])
            ious.append(best_ious(geometry.from_canvas(found.boxes[0].cpu()), true_boxes, index))
            scores.append(found.scores[0].cpu())
            texts += phrases
            num_regions += len(own_texts)
    if not texts:
        raise UserError(f"dataset has no regions in its {num_images} images; expected at least one")
    return _Grounded(torch.cat(ious), torch.cat(scores), texts, num_regions, num_images)
