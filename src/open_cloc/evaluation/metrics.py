"""Metrics from features: accuracy and recall, in bounded memory, ready for their intervals.

Shapes: X things to recognise, C classes, Q queries, G gallery entries, I images, D shared embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from open_cloc.errors import UserError
from open_cloc.evaluation.intervals import Estimate, mean_over, mean_over_classes

SCORES_AT_ONCE = 2**24

# What a protocol says of entries that are exactly as near.
TIES = "in random order: the expected recall"
TIES_LAST = "the last of those that tie, as a sort in rising order puts it at its end"
TIES_SHARE = "the mean of those that tie"


def require_finite(features: Tensor, what: str) -> None:
    """Refuse features that are no numbers: ranked, they would look like good answers.

    Args:
        features: (X, D).
        what: What they are of, for the message.

    Raises:
        UserError: Names the first row that is wrong.
    """
    good = features.isfinite().all(1)
    if not good.all():
        row = int((~good).int().argmax())
        bad = features[row][~features[row].isfinite()][0].item()
        raise UserError(f"{what} must be finite; got {bad} in row {row} of {len(features)}")


def classification_estimates(
    ranks: Ranks, num_classes: int, targets: Tensor, images: Tensor, num_images: int
) -> dict[str, Estimate]:
    """Accuracy of guesses.

    Args:
        ranks: Where the true class of each of X things stands among the classes.
        num_classes: C.
        targets: (X,) true classes; at least one.
        images: (X,) the image of each thing.
        num_images: I.

    Returns:
        `acc1` and, with at least 5 classes, `acc5`, over all X (micro); `mean_per_class_recall`, the mean of
        each class's own accuracy over the classes that occur (macro, mAcc).
    """
    first = ranks.hits(1)
    estimates = {"acc1": mean_over(first, images, num_images)}
    if num_classes >= 5:
        estimates["acc5"] = mean_over(ranks.hits(5), images, num_images)
    return estimates | {"mean_per_class_recall": mean_over_classes(first, targets, images, num_images)}


class Ranks(NamedTuple):
    """Where the best right entry of each query stands in its gallery.

    Attributes:
        above: (Q,) entries that are more similar to the query.
        tied: (Q,) entries that are exactly as similar, right ones included.
        right: (Q,) right ones among those.
    """

    above: Tensor
    tied: Tensor
    right: Tensor

    def of(self, rows: Tensor) -> Ranks:
        """The ranks of some queries, by their numbers or a mask (Q,)."""
        return Ranks(*(part[rows] for part in self))

    def hits(self, k: int) -> Tensor:
        """(Q,) chance that a right entry is among the first `k`, with entries that tie in random order."""
        tied, wrong = self.tied.double(), (self.tied - self.right).double()
        places = (k - self.above).clamp(min=0).double().minimum(tied)  # among those that tie
        left = (wrong - places).clamp(min=0)
        # Chance that all of these places go to wrong entries: C(wrong, places) / C(tied, places).
        misses = _log_factorial(wrong) - _log_factorial(left) - _log_factorial(tied)
        misses = (misses + _log_factorial(tied - places)).exp()
        return 1 - misses.where(places <= wrong, 0.0)


def rank_classes(features: Tensor, classes: Tensor, targets: Tensor) -> Ranks:
    """Where the true class of each thing stands.

    Args:
        features: (X, D) of unit length.
        classes: (C, D) of unit length.
        targets: (X,) true classes.

    Raises:
        UserError: If features are not finite.
    """
    return find_ranks(features, classes, targets, torch.arange(len(classes)))


def confidences(features: Tensor, classes: Tensor, scale: float) -> Tensor:
    """Probability of the likeliest class of each thing.

    Args:
        features: (X, D) of unit length.
        classes: (C, D) of unit length.
        scale: What cosines are multiplied by before their softmax.

    Returns:
        (X,) in (0, 1].
    """
    parts = [(scale * chunk @ classes.T).softmax(1).amax(1) for chunk in _chunks(features, len(classes))]
    return torch.cat(parts) if parts else features.new_zeros(0)


class _Columns:
    """Features that are searched (G, D), equal ones once.

    Columns of a product may round differently: so equal features tie to the bit.
    """

    def __init__(self, gallery: Tensor) -> None:
        self.features, places = torch.unique(gallery, dim=0, return_inverse=True)
        self.places: Tensor | None = places
        if len(self.features) == len(gallery):
            self.features, self.places = gallery, None

    def scores(self, queries: Tensor) -> Tensor:
        """Cosines (Q, G) of queries (Q, D)."""
        scores = queries @ self.features.T
        return scores if self.places is None else scores[:, self.places]


def find_ranks(
    queries: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    *,
    copies: Tensor | None = None,
    own_copy: bool = False,
    last_wins: bool = False,
) -> Ranks:
    """Rank a gallery for each query; an entry of the same label is right.

    Args:
        queries: (Q, D) of unit length.
        gallery: (G, D) of unit length.
        query_labels: (Q,) int.
        gallery_labels: (G,) int.
        copies: (G,) how often each entry stands in the gallery; once unless told.
        own_copy: Of the copies of an entry only one is right.
        last_wins: Of entries that are exactly as similar the last of the gallery stands first, as a sort in
            rising order that is read from its end has it; else their order is random.

    Raises:
        UserError: If features are not finite.
    """
    require_finite(queries, "features that ask")
    require_finite(gallery, "features that are searched")
    counts = torch.ones(len(gallery)) if copies is None else copies.float()
    columns = _Columns(gallery)
    found: list[tuple[Tensor, ...]] = []
    for chunk, labels in zip(_chunks(queries, len(gallery)), _chunks(query_labels, len(gallery))):
        scores = columns.scores(chunk)  # (q, G)
        is_right = labels[:, None] == gallery_labels
        best = scores.where(is_right, -torch.inf).amax(1, keepdim=True)
        ties = scores == best
        right = (ties & is_right).float() @ (torch.ones_like(counts) if own_copy else counts)
        above, tied = (scores > best).float() @ counts, ties.float() @ counts
        if last_wins:
            numbers = torch.arange(len(gallery))
            last = torch.where(ties & is_right, numbers, -1).amax(1, keepdim=True)
            above = above + (ties & (numbers > last)).float() @ counts
            tied, right = torch.ones_like(tied), torch.ones_like(right)
        found.append((above, tied, right))
    return Ranks(*(torch.cat(parts) for parts in zip(*found)))


def find_own_ranks(texts: Tensor, regions: Tensor, labels: Tensor) -> Ranks:
    """Rank all regions for each region's text, of which only that region is right: X queries.

    Args:
        texts: (T, D) distinct texts, of unit length.
        regions: (X, D) of unit length.
        labels: (X,) each region's text.

    Raises:
        UserError: If features are not finite.
    """
    require_finite(texts, "features that ask")
    require_finite(regions, "features that are searched")
    members = labels.argsort(stable=True).split(torch.bincount(labels, minlength=len(texts)).tolist())
    above, tied = torch.zeros_like(labels), torch.zeros_like(labels)
    first, columns = 0, _Columns(regions)
    for chunk in _chunks(texts, len(regions)):
        scores = columns.scores(chunk)  # (t, X)
        ordered = scores.sort(dim=1).values
        for row, own in enumerate(members[first : first + len(chunk)]):
            up_to = torch.searchsorted(ordered[row], scores[row, own], right=True)
            above[own] = len(regions) - up_to
            tied[own] = up_to - torch.searchsorted(ordered[row], scores[row, own])
        first += len(chunk)
    return Ranks(above, tied, torch.ones_like(labels))


def recall_estimates(
    name: str,
    ranks: Ranks,
    ks: Sequence[int],
    images: Tensor,
    num_images: int,
    weights: Tensor | None = None,
) -> dict[str, Estimate]:
    """Share of queries with a right entry among the K most similar ones.

    Args:
        name: What is found; the metrics are `{name}_recall@{K}`.
        ranks: Of Q queries.
        ks: The values of K; beyond G, all entries count.
        images: (Q,) the image of each query.
        num_images: I.
        weights: (Q,) what each query counts; 1 unless told.
    """
    return {f"{name}_recall@{k}": mean_over(ranks.hits(k), images, num_images, weights) for k in ks}


def _chunks(rows: Tensor, width: int) -> Iterator[Tensor]:
    """Rows, so many at once that a matrix of `width` columns stays in memory."""
    return iter(rows.split(max(1, SCORES_AT_ONCE // max(1, width))) if len(rows) else ())


def _log_factorial(counts: Tensor) -> Tensor:
    return torch.lgamma(counts + 1)
