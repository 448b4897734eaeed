"""Proof that the box matters: region accuracy with true boxes, with other boxes, and with the whole picture.

Shapes: X regions of a data set, R regions of one image, D shared embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from open_cloc.data.annotations import SampleDataset
from open_cloc.errors import UserError
from open_cloc.evaluation.batches import read_batches
from open_cloc.evaluation.classes import class_names, embed_classes
from open_cloc.evaluation.collect import region_texts
from open_cloc.evaluation.intervals import mean_over
from open_cloc.evaluation.method import Method
from open_cloc.evaluation.metrics import rank_classes
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.task import TaskResult, measured
from open_cloc.samples import RegionSample

WHOLE = (0.0, 0.0, 1.0, 1.0)


class _Regions(NamedTuple):
    """Regions of the images with at least two different texts.

    Attributes:
        features: (3, X, D), with each region's own box, with another's, and with the whole picture as box.
        texts: Texts of the regions, X of them.
        counts: Regions of each of these images.
        num_images: Images read, the others included.
    """

    features: Tensor
    texts: list[str]
    counts: list[int]
    num_images: int


def prompt_gain(method: Method, dataset: SampleDataset, config: EvaluationConfig) -> TaskResult:
    """How far region accuracy falls when the boxes are wrong, on images with at least two different texts.

    Each region is embedded with its own box, with the box of its image's next region of another text, and
    with the whole picture as its box. Also the mean cosine between regions of one image: near 1, the model
    ignores its prompt ("collapse").
    """
    regions = _with_wrong_boxes(method, dataset, config)
    classes = class_names(method, dataset, regions.texts, config)
    targets = classes.targets(regions.texts)
    class_features = embed_classes(method, classes.names, config, must_differ=False)
    true, shuffled, whole = (rank_classes(rows, class_features, targets).hits(1) for rows in regions.features)
    cosines = [_mean_cosine(rows) for rows in regions.features[0].split(regions.counts)]
    used = torch.arange(len(regions.counts))
    images = used.repeat_interleave(torch.tensor(regions.counts))
    estimates = {
        name: mean_over(values, images, len(used))
        for name, values in {
            "acc1": true,
            "acc1_shuffled_boxes": shuffled,
            "acc1_whole_image": whole,
            "prompt_gain_shuffled_boxes": true - shuffled,
            "prompt_gain_whole_image": true - whole,
        }.items()
    }
    estimates["mean_region_cosine"] = mean_over(torch.tensor(cosines), used, len(used))
    protocol = {
        "classes": classes.source,
        "image_filter": "images with at least two different region texts",
        "num_images": regions.num_images,
        "num_images_used": len(regions.counts),
        "num_regions": len(regions.texts),
        "num_classes": len(classes.names),
        "classes_digest": classes.digest,
    }
    return measured(estimates, len(used), protocol)


def _with_wrong_boxes(method: Method, dataset: SampleDataset, config: EvaluationConfig) -> _Regions:
    """Embed the regions of all images with at least two different texts, three times each.

    Raises:
        UserError: If there is no such image.
    """
    features: list[Tensor] = []
    texts: list[str] = []
    counts: list[int] = []
    num_images = 0
    for batch in read_batches(dataset, method.canvas, config):
        num_images += len(batch.samples)
        used = [_texts_to_tell_apart(sample, method) for sample in batch.samples]
        kinds = zip(*(_three_boxes(boxes, own) for boxes, own in zip(batch.boxes, used)))
        features.append(torch.stack([method.embed_regions(batch, boxes).cpu() for boxes in kinds]))
        texts += [text for own in used for text in own]
        counts += [len(own) for own in used if own]
    if not texts:
        raise UserError(
            f"prompt_gain needs an image with two different region texts; got none of {num_images}"
        )
    return _Regions(torch.cat(features, dim=1), texts, counts, num_images)


def _texts_to_tell_apart(sample: RegionSample, method: Method) -> list[str]:
    """Texts of a sample's regions; none unless at least two differ."""
    texts = region_texts(sample, method)
    return texts if len(set(texts)) > 1 else []


def _three_boxes(boxes: np.ndarray, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(R, 4) each: an image's boxes, those of other texts, and the whole picture; R = 0 without texts."""
    own = boxes[: len(texts)]
    return own, own[other_texts(texts)], np.tile(WHOLE, (len(own), 1))


def other_texts(texts: Sequence[str]) -> list[int]:
    """For each region, the next one (round the end) whose text differs; there must be one."""
    count = len(texts)

    def following(i: int) -> Iterable[int]:
        return ((i + step) % count for step in range(1, count))

    return [next(j for j in following(i) if texts[j] != texts[i]) for i in range(count)]


def _mean_cosine(features: Tensor) -> float:
    """Mean over pairs of different rows of (R, D) unit vectors, R > 1."""
    count = len(features)
    total = (features @ features.T).sum() - features.square().sum()
    return (total / (count * (count - 1))).item()
