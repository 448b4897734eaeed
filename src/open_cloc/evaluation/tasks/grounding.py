"""Grounding: from a phrase to its box, measured by overlap with the true ones.

Shapes: X queries of a data set, K boxes found for a phrase, G true boxes of a query.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from open_cloc.boxes import judged_overlaps
from open_cloc.data.annotations import SampleDataset
from open_cloc.errors import UserError
from open_cloc.evaluation.batches import EvaluationBatch, read_batches
from open_cloc.evaluation.classes import group_masks
from open_cloc.evaluation.intervals import Estimate, mean_over
from open_cloc.evaluation.method import GroundingMethod, Method
from open_cloc.evaluation.methods import grounding_methods
from open_cloc.evaluation.metrics import TIES_SHARE, Ranks
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.proposals import Proposals, boxes_of
from open_cloc.evaluation.queries import Query, mentions_of, phrases_of
from open_cloc.evaluation.task import TaskResult, measured
from open_cloc.samples import RegionSample

IOU_THRESHOLD = 0.5
RECALL_K = (1, 5, 10)
NEVER = 2**31  # place of what is nowhere among the boxes that were found
QUERIES = "one query per mention, or per distinct phrase of an image where its data tell no mentions"
SEVERAL = {"any": "its best box counts", "merged": "the box around all of its boxes counts"}


class _Found(NamedTuple):
    """What was found for a phrase.

    Attributes:
        boxes: (K, 4) normalised `xyxy` of the picture; K may be 0.
        standings: (K,) the best box has the highest; those that tie have the same.
        score: Cosine of the best box and the phrase; NaN where there is none.
    """

    boxes: Tensor
    standings: Tensor
    score: float


@dataclass
class _Judged:
    """All queries, in order: their texts, images, and how right their boxes are.

    Attributes:
        places: For each query how many boxes stand above the best right one, tie with it, and are right.
        ious: Overlap of each query's best box; of those that tie, the mean.
        scores: Cosine of each best box.
        most: Boxes that were found for a phrase, at most.
    """

    texts: list[str] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    places: list[tuple[int, int, int]] = field(default_factory=list)
    ious: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    num_images: int = 0
    num_regions: int = 0
    num_mentions: int = 0
    most: int = 0

    def add(self, query: Query, found: _Found, true: Tensor) -> None:
        """Judge what was found for a query of the image that is looked at, by its true boxes (G, 4)."""
        self.texts.append(query.text)
        self.images.append(self.num_images)
        self.scores.append(found.score)
        self.most = max(self.most, len(found.boxes))
        if not len(found.boxes):
            self.ious.append(0.0)
            self.places.append((NEVER, 1, 1))
            return
        overlaps = judged_overlaps(found.boxes, true).amax(1)  # (K,)
        first = found.standings == found.standings.amax()
        self.ious.append(overlaps[first].mean().item())
        right = overlaps >= IOU_THRESHOLD
        if not right.any():
            self.places.append((NEVER, 1, 1))
            return
        best = found.standings[right].amax()
        ties = found.standings == best
        self.places.append(tuple(int(n.sum()) for n in (found.standings > best, ties, ties & right)))  # type: ignore[arg-type]


def grounding(method: Method, dataset: SampleDataset, config: EvaluationConfig) -> TaskResult:
    """Find the box of each phrase in its image.

    Where the data tell each mention of a phrase in a sentence, each is a query and means the boxes of its own
    thing; elsewhere each distinct phrase of an image is one, and means all boxes of that text. The best
    overlap with any of them counts or, where the protocol says so, that with the box around all of them.

    A method finds boxes by itself or, of proposals that the config names, takes those whose embeddings are
    nearest to the phrase.

    Raises:
        UserError: If the method cannot find boxes and there are no proposals, there is nothing to find, or
            the protocol needs mentions and the data tell none.
    """
    finder = _Chooser(method, config.proposals) if config.proposals else _Finder(method)
    judged = _judge_all(finder, method, dataset, config)
    if not judged.texts:
        raise UserError(f"dataset has no regions in its {judged.num_images} images; expected at least one")
    finder.check(dataset)
    protocol: dict[str, object] = {
        **finder.describe(),
        "repeated_phrases": f"{QUERIES}; {SEVERAL[config.rules.several_boxes]}",
        "averaging": "micro over queries",
        "ties": TIES_SHARE,
        "num_images": judged.num_images,
        "num_regions": judged.num_regions,
        "num_phrases": len(judged.texts),
        **({"num_mentions": judged.num_mentions} if judged.num_mentions else {}),
    }
    estimates = _estimates(judged, config)
    for name, mask in group_masks(method, judged.texts, config).items():
        estimates |= {f"{key}/{name}": one for key, one in _accuracy(judged, mask).items()}
        protocol[f"num_phrases/{name}"] = int(mask.sum())
    return measured(estimates, judged.num_images, protocol)


def _estimates(judged: _Judged, config: EvaluationConfig) -> dict[str, Estimate]:
    """All metrics of all queries; recall beyond the first box where a method gives several."""
    images, num_images = torch.tensor(judged.images), judged.num_images
    estimates = _accuracy(judged, torch.ones(len(judged.texts), dtype=torch.bool))
    for k in config.rules.recall_k or RECALL_K:
        if k == 1 or judged.most > 1:
            estimates[f"recall@{k}"] = mean_over(_ranks(judged).hits(k), images, num_images)
    scores = torch.tensor(judged.scores)
    there = ~scores.isnan()
    if there.any():
        estimates["mean_score"] = mean_over(scores[there], images[there], num_images)
    return estimates


def _accuracy(judged: _Judged, mask: Tensor) -> dict[str, Estimate]:
    """Share of best boxes that overlap by at least 0.5, and mean overlap, over some of the queries (X,)."""
    images = torch.tensor(judged.images)[mask]
    return {
        f"acc@{IOU_THRESHOLD}": mean_over(_ranks(judged).of(mask).hits(1), images, judged.num_images),
        "mean_iou": mean_over(torch.tensor(judged.ious)[mask], images, judged.num_images),
    }


def _ranks(judged: _Judged) -> Ranks:
    return Ranks(*torch.tensor(judged.places).unbind(1))


def _judge_all(
    finder: _Finder | _Chooser, method: Method, dataset: SampleDataset, config: EvaluationConfig
) -> _Judged:
    judged = _Judged()
    for batch in read_batches(dataset, method.canvas, config):
        asked = [_queries(sample, method, config, judged) for sample in batch.samples]
        phrases = [list(dict.fromkeys(query.text for query in own)) for own in asked]
        answers = iter(finder.find(batch, phrases))
        for sample, own, texts in zip(batch.samples, asked, phrases):
            found = {text: next(answers) for text in texts}  # once, however often it is asked for
            for query in own:
                judged.add(query, found[query.text], _true_boxes(sample, query, config))
            judged.num_images += 1
            judged.num_regions += len(sample.regions)
    return judged


def _queries(sample: RegionSample, method: Method, config: EvaluationConfig, judged: _Judged) -> list[Query]:
    """What an image is asked for; mentions are counted.

    Raises:
        UserError: If the protocol needs mentions, and a sample with regions tells none.
    """
    mentions = mentions_of(sample, method)
    judged.num_mentions += len(mentions)
    if config.rules.mentions and sample.regions and not mentions:
        raise UserError(
            f"protocol {config.rules.name} counts each mention of a phrase, and sample {sample.key!r} tells "
            "none; read the data by flickr30k:FOLDER, or convert them anew"
        )
    return mentions or phrases_of(sample, method)


def _true_boxes(sample: RegionSample, query: Query, config: EvaluationConfig) -> Tensor:
    """The boxes (G, 4) of a query or, where the protocol merges them, the one around all of them (1, 4)."""
    boxes = torch.from_numpy(boxes_of([sample.regions[row] for row in query.regions]))
    if config.rules.several_boxes == "merged":
        return torch.cat([boxes[:, :2].amin(0), boxes[:, 2:].amax(0)])[None]
    return boxes


class _Finder:
    """A method that finds boxes by itself.

    Raises:
        UserError: If it cannot.
    """

    def __init__(self, method: Method) -> None:
        if not isinstance(method, GroundingMethod):
            able = ", ".join(grounding_methods())
            raise UserError(
                f"method {method.describe()['method']} finds no boxes by itself: let it choose by "
                f"--proposals labels, grid:COUNT or results:FILE; those that find them: {able}"
            )
        self.method = method

    def describe(self) -> dict[str, Any]:
        """How boxes are found, as plain JSON."""
        return self.method.describe_grounding()

    def check(self, dataset: SampleDataset) -> None:
        """Nothing can be wrong with boxes that are found."""

    def find(self, batch: EvaluationBatch, phrases: Sequence[Sequence[str]]) -> list[_Found]:
        """What is found for all phrases of a batch, picture by picture."""
        if not any(phrases):
            return []
        boxes, scores, further = self.method.ground(batch, phrases)
        found = []
        for row, (box, score) in enumerate(zip(boxes, scores.tolist())):
            others = boxes.new_zeros(0, 4) if further is None else further[row]
            own = torch.cat([box[None], others[others.isfinite().all(1)]])  # (K, 4)
            found.append(_Found(own, -torch.arange(len(own)), score))
        return found


class _Chooser:
    """A method that embeds proposals, of which those nearest to a phrase are its boxes.

    Args:
        method: Any method by boxes.
        spec: Where the proposals come from.
    """

    def __init__(self, method: Method, spec: str) -> None:
        self.method, self.proposals = method, Proposals(spec, crowds=True)  # a phrase may mean one

    def describe(self) -> dict[str, Any]:
        """How boxes are found, as plain JSON."""
        return {**self.proposals.describe(), "score": "cosine; equal boxes of a picture are one"}

    def check(self, dataset: SampleDataset) -> None:
        """Raises `UserError` if there was no proposal, or some are of other pictures."""
        self.proposals.check(dataset)

    def find(self, batch: EvaluationBatch, phrases: Sequence[Sequence[str]]) -> list[_Found]:
        """The proposals of each picture, ranked for each of its phrases, picture by picture."""
        given = [list(dict.fromkeys(region.box for region in own)) for own in self.proposals.of(batch)]
        boxes = [np.array(own if texts else [], float).reshape(-1, 4) for own, texts in zip(given, phrases)]
        rows = self.method.embed_regions(batch, boxes).cpu().split(list(map(len, boxes)))
        distinct = list(dict.fromkeys(text for own in phrases for text in own))
        known = dict(zip(distinct, self.method.embed_texts(distinct).cpu())) if distinct else {}
        found = []
        for own, features, texts in zip(boxes, rows, phrases):
            for text in texts:
                scores = (features * known[text]).sum(
                    1
                )  # row by row alike, so that equal ones tie to the bit
                best = scores.amax().item() if len(scores) else math.nan
                found.append(_Found(torch.from_numpy(own), scores, best))
        return found
