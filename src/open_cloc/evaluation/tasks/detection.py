"""Open-vocabulary detection without training: name given boxes, and count average precision as COCO does.

Shapes: R proposals of one image, C classes, D shared embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from open_cloc.boxes import whole_pixels
from open_cloc.data.annotations import SampleDataset
from open_cloc.errors import UserError
from open_cloc.evaluation.average_precision import Boxes, precision_estimates
from open_cloc.evaluation.batches import read_batches
from open_cloc.evaluation.classes import Classes, class_groups, class_names, embed_classes, group_numbers
from open_cloc.evaluation.collect import region_texts
from open_cloc.evaluation.method import Method, logit_scale_of
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.proposals import OWN, Proposals, boxes_of
from open_cloc.evaluation.task import TaskResult, measured
from open_cloc.samples import Region

OVERLAP = 0.5  # of two boxes of a class, of which the lower score goes
PAIRS = 1000  # of box and class that compete in a picture
MOST = 100  # detections of a picture, and of a class in it
SCALE = 100.0  # of cosines, where a method says none of its own: CLIP's


class _Found(NamedTuple):
    """What was detected in a picture: (n, 4) normalised `xyxy`, (n,) classes and (n,) scores."""

    boxes: np.ndarray
    classes: Tensor
    scores: Tensor


def detection(method: Method, dataset: SampleDataset, config: EvaluationConfig) -> TaskResult:
    """Name every proposal, and judge the whole as a detector's answer.

    A proposal's score for a class is the class's probability among all, times the proposal's own score where
    it has one.

    Raises:
        UserError: If there are no regions, no proposals, or crowds that the reader has left out.
    """
    _require_crowds(dataset)
    proposals = Proposals(config.proposals or OWN)
    classes = _classes(method, dataset, config)
    there, found, num_images = _look(method, dataset, config, proposals, classes)
    num_things = len(there.classes) - sum(there.crowds)
    if not num_things:
        raise UserError(f"there are no regions in the {num_images} images; expected at least one")
    proposals.check(dataset)
    groups = class_groups(method, dataset, classes.names) | group_numbers(method, classes, config)
    estimates = precision_estimates(
        there.table(), found.table(), len(classes.names), num_images, MOST, groups
    )
    protocol = {
        **proposals.describe(),
        "score": "softmax over classes of the scaled cosine, times the proposal's own score",
        "logit_scale": _scale(method),
        "suppression": "none"
        if proposals.spec == OWN
        else f"of a class's boxes that overlap by more than {OVERLAP}",
        "averaging": "COCO's: mean over classes that occur and overlaps of 0.5 to 0.95",
        "areas": "of boxes, where COCO's own evaluation takes those of outlines",
        "most_detections": MOST,
        "classes": classes.source,
        "num_images": num_images,
        "num_regions": num_things,
        "num_crowds": sum(there.crowds),
        "detections": len(found.classes),
        "num_classes": len(classes.names),
        "num_classes_that_occur": len(
            {kind for kind, is_crowd in zip(there.classes, there.crowds) if not is_crowd}
        ),
        "classes_digest": classes.digest,
    }
    return measured(estimates, num_images, protocol)


def _require_crowds(dataset: SampleDataset) -> None:
    """What is found in a crowd is not wrong, which only its box can say."""
    count = getattr(dataset, "num_crowds", 0)
    if count and not getattr(dataset, "crowds", False):
        raise UserError(
            f"average precision needs the {count} boxes of crowds, inside of which nothing is wrong: open "
            "the data with ,crowds=true"
        )


def _look(
    method: Method, dataset: SampleDataset, config: EvaluationConfig, source: Proposals, classes: Classes
) -> _Seen:
    """Go through the pictures, and name the proposals of each."""
    known = {name: number for number, name in enumerate(classes.names)}
    features, scale = embed_classes(method, classes.names, config), _scale(method)
    there, found, num_images = _Table(), _Table(), 0
    for batch in read_batches(dataset, method.canvas, config):
        proposals = source.of(batch)
        boxes = list(map(boxes_of, proposals))
        rows = method.embed_regions(batch, boxes).cpu().split(list(map(len, boxes)))
        for number, (sample, geometry) in enumerate(zip(batch.samples, batch.geometries)):
            names = [_known(known, text, classes) for text in region_texts(sample, method)]
            own, size_hw = boxes_of(sample.regions), sample.measured_hw(geometry.source_hw)
            crowds = [region.crowd for region in sample.regions]
            there.add(own, names, num_images + number, size_hw, crowds=crowds)
            answer = _named(
                rows[number], boxes[number], proposals[number], features, scale, source.spec == OWN
            )
            found.add(answer.boxes, answer.classes, num_images + number, size_hw, answer.scores)
        num_images += len(batch.samples)
    return _Seen(there, found, num_images)


def _scale(method: Method) -> float:
    """What cosines are multiplied by; CLIP's where the method says nothing."""
    return logit_scale_of(method) or SCALE


def _classes(method: Method, dataset: SampleDataset, config: EvaluationConfig) -> Classes:
    """What a box may be; the data set's texts are read only where nothing else says it."""
    said = config.classes or getattr(dataset, "class_names", ())
    texts: set[str] = set()
    for number in range(0 if said else len(dataset)):
        texts.update(region_texts(dataset[number], method))
    return class_names(method, dataset, sorted(texts), config)


def _known(known: Mapping[str, int], text: str, classes: Classes) -> int:
    return known[text] if text in known else int(classes.targets([text]))


def _named(
    rows: Tensor,
    boxes: np.ndarray,
    proposals: Sequence[Region],
    classes: Tensor,
    scale: float,
    keep_all: bool,
) -> _Found:
    """The best detections of a picture, from its proposals (R, D) and the classes (C, D)."""
    own = torch.tensor([region.score for region in proposals], dtype=torch.float32).nan_to_num(1.0)
    scores = (scale * rows.float() @ classes.T).softmax(1) * own[:, None]  # (R, C)
    best = scores.flatten().topk(min(PAIRS, scores.numel()))
    box, kind = best.indices // len(classes), best.indices % len(classes)
    places = torch.tensor(boxes, dtype=torch.float64)[box]
    # In double: it sets the classes apart by adding their numbers to the coordinates.
    kept = torch.arange(len(box)) if keep_all else batched_nms(places, best.values.double(), kind, OVERLAP)
    kept = kept[:MOST]
    return _Found(places[kept].numpy(), kind[kept], best.values[kept])


class _Seen(NamedTuple):
    """All pictures.

    Attributes:
        there: Annotated boxes.
        found: Detections.
        num_images: Pictures.
    """

    there: _Table
    found: _Table
    num_images: int


class _Table:
    """Boxes of many pictures, in pixels."""

    def __init__(self) -> None:
        self.boxes: list[np.ndarray] = []
        self.classes: list[int] = []
        self.images: list[int] = []
        self.scores: list[float] = []
        self.crowds: list[bool] = []

    def add(
        self,
        boxes: np.ndarray,
        classes: Tensor | Sequence[int],
        image: int,
        size_hw: tuple[int, int],
        scores: Tensor | None = None,
        crowds: Sequence[bool] = (),
    ) -> None:
        """Boxes (n, 4), normalised, with their classes (n,), of a picture; none is a crowd unless told."""
        self.boxes.append(whole_pixels(boxes, size_hw))
        self.classes += classes.tolist() if isinstance(classes, Tensor) else classes
        self.images += [image] * len(boxes)
        self.scores += [] if scores is None else scores.tolist()
        self.crowds += crowds or [False] * len(boxes)

    def table(self) -> Boxes:
        """All of them."""
        return Boxes(
            np.concatenate(self.boxes),
            np.array(self.classes, np.int64),
            np.array(self.images, np.int64),
            np.array(self.scores, float),
            np.array(self.crowds, bool),
        )
