"""Metrics against slow references."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from open_cloc.errors import UserError
from open_cloc.evaluation.intervals import Estimate
from open_cloc.evaluation.metrics import (
    Ranks,
    classification_estimates,
    find_own_ranks,
    find_ranks,
    rank_classes,
)


def values_of(estimates: dict[str, Estimate]) -> dict[str, float]:
    return {name: estimate.value for name, estimate in estimates.items()}


def classify(features: Tensor, classes: Tensor, targets: Tensor) -> dict[str, float]:
    images = torch.arange(len(targets)) // 3
    ranks = rank_classes(features, classes, targets)
    return values_of(classification_estimates(ranks, len(classes), targets, images, int(images.max()) + 2))


def recall(ranks: Ranks, ks: Sequence[int]) -> dict[int, float]:
    return {k: ranks.hits(k).mean().item() for k in ks}


def test_classification_equals_loops() -> None:
    rng = np.random.default_rng(1)
    features, classes = torch.tensor(rng.normal(size=(50, 8))), torch.tensor(rng.normal(size=(9, 8)))
    targets = rng.choice([0, 1, 2, 3, 5, 8], 50)
    first, five = [], []
    per_class: dict[int, list[bool]] = {}
    for row, target in zip(features.numpy(), targets):
        order = sorted(range(9), key=lambda c: -float(row @ classes[c].numpy()))
        first.append(order[0] == target)
        five.append(target in order[:5])
        per_class.setdefault(target, []).append(order[0] == target)
    found = classify(features, classes, torch.tensor(targets))
    assert found["acc1"] == pytest.approx(np.mean(first))
    assert found["acc5"] == pytest.approx(np.mean(five))
    assert found["mean_per_class_recall"] == pytest.approx(np.mean([np.mean(v) for v in per_class.values()]))
    assert found["acc1"] != found["mean_per_class_recall"]


def test_acc5_is_left_out_where_it_says_nothing() -> None:
    assert classify(torch.eye(3), torch.eye(3), torch.arange(3)) == {
        "acc1": 1.0,
        "mean_per_class_recall": 1.0,
    }


def test_classes_that_tie_share_a_hit() -> None:
    """Three of six are equally near: each is right by a third, and one of five by what is left."""
    classes = torch.tensor([[1.0, 0], [0.6, 0.8], [0.6, 0.8], [0.6, 0.8], [0, 1], [0, 1]])
    found = classify(torch.tensor([[0.6, 0.8]] * 2), classes, torch.tensor([2, 0]))
    assert found["acc1"] == pytest.approx(1 / 6)
    assert found["acc5"] == pytest.approx((1 + 0) / 2)  # of class 0, five are nearer
    assert found["mean_per_class_recall"] == pytest.approx((0 + 1 / 3) / 2)


def test_retrieval_of_3_images_with_5_captions_each_by_hand() -> None:
    """Scores written out; image 0 owns captions 0-4, image 1 owns 5-9, image 2 owns 10-14."""
    scores = torch.full((15, 3), 0.0)
    owners = torch.arange(3).repeat_interleave(5)
    scores[torch.arange(15), owners] = 0.5  # right by default
    scores[0, 1] = 0.9  # caption 0: image 1 first, its own second
    scores[5, [0, 2]] = torch.tensor([0.8, 0.7])  # caption 5: its own image last
    scores[11, 0] = 0.6  # the best caption of image 0 is another's, 5; so is that of image 1, caption 0
    # So that dot products give these scores: images are the axes, captions the rows.
    images = torch.eye(3)
    to_image = recall(find_ranks(scores, images, owners, torch.arange(3)), (1, 2, 3))
    assert to_image == {1: 12 / 15, 2: 14 / 15, 3: 1.0}
    # image 0: 5 (0.8), 11 (0.6), then its own four at 0.5; image 1: 0 (0.9), own; image 2: 5 (0.7), own
    to_text = recall(find_ranks(images, scores, torch.arange(3), owners), (1, 2, 3, 5))
    assert to_text == {1: 0.0, 2: 2 / 3, 3: 1.0, 5: 1.0}


def test_recall_with_repeated_labels_equals_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    queries, gallery = torch.tensor(rng.normal(size=(40, 6))), torch.tensor(rng.normal(size=(30, 6)))
    query_labels, gallery_labels = rng.integers(0, 8, 40), rng.integers(0, 7, 30)  # one label has no entry
    monkeypatch.setattr("open_cloc.evaluation.metrics.SCORES_AT_ONCE", 210)
    ranks = find_ranks(queries, gallery, torch.tensor(query_labels), torch.tensor(gallery_labels))
    for k in (1, 4, 99):
        hits = []
        for query, label in zip(queries.numpy(), query_labels):
            order = sorted(range(30), key=lambda g: -float(query @ gallery[g].numpy()))
            hits.append(any(gallery_labels[g] == label for g in order[:k]))
        assert recall(ranks, [k])[k] == pytest.approx(np.mean(hits))
    assert not ranks.hits(99)[torch.tensor(query_labels == 7)].any()


# --- entries that tie, and entries that stand there several times ----------------------------------


def mean_over_orders(scores: Sequence[float], right: Sequence[bool], k: int) -> float:
    """Share of all orders of a gallery, most similar first, with a right entry among the first k."""
    hits = []
    for order in itertools.permutations(range(len(scores))):
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order)):
            hits.append(any(right[g] for g in order[:k]))
    return float(np.mean(hits))


@pytest.mark.parametrize("seed", range(8))
def test_ties_stand_in_any_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, 6) / 4
    labels = rng.integers(0, 2, 6)
    labels[0] = 1
    gallery = torch.tensor(scores)[:, None]
    ranks = find_ranks(torch.ones(1, 1).double(), gallery, torch.tensor([1]), torch.tensor(labels))
    for k in range(1, 8):
        expected = mean_over_orders(scores.tolist(), (labels == 1).tolist(), k)
        assert ranks.hits(k).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("own", [False, True], ids=["any copy", "own copy"])
def test_copies_count_like_entries_of_their_own(own: bool) -> None:
    rng = np.random.default_rng(3)
    queries, distinct = torch.tensor(rng.normal(size=(5, 4))), torch.tensor(rng.normal(size=(4, 4)))
    copies, labels = torch.tensor([1, 3, 2, 1]), torch.tensor([0, 1, 1, 2, 3])
    ranks = find_ranks(queries, distinct, labels, torch.arange(4), copies=copies, own_copy=own)
    for row, label in enumerate(labels.tolist()):
        entries = torch.arange(4).repeat_interleave(copies)
        scores = [float(queries[row] @ distinct[entry]) for entry in entries]
        right = (entries == label).tolist()
        if own:  # the first copy: all of them tie
            right = [r and g == right.index(True) for g, r in enumerate(right)]
        for k in (1, 2, 3, 5):
            assert ranks.hits(k)[row].item() == pytest.approx(mean_over_orders(scores, right, k), abs=1e-12)


def test_own_ranks_equal_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    texts, regions = torch.tensor(rng.normal(size=(4, 3))), torch.tensor(rng.normal(size=(7, 3)))
    regions[5] = regions[2]  # two boxes of the same features tie
    labels = torch.tensor([2, 0, 1, 1, 1, 1, 0])  # text 3 has no region
    monkeypatch.setattr("open_cloc.evaluation.metrics.SCORES_AT_ONCE", 14)
    ranks = find_own_ranks(texts, regions, labels)
    for row, label in enumerate(labels.tolist()):
        scores = (regions @ texts[label]).tolist()
        for k in (1, 2, 4, 7):
            expected = mean_over_orders(scores, [other == row for other in range(7)], k)
            assert ranks.hits(k)[row].item() == pytest.approx(expected, abs=1e-12)


# --- what is no number -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("which", [0, 1])
def test_features_that_are_no_numbers_have_no_accuracy(value: float, which: int) -> None:
    """They scored 1: whatever comes first in the list counts as the best match."""
    pair = [torch.eye(6), torch.eye(6)]
    pair[which] = pair[which].clone()
    pair[which][4, 2] = value
    labels = torch.arange(6)
    for call in (
        lambda: rank_classes(pair[0], pair[1], labels),
        lambda: find_ranks(pair[0], pair[1], labels, labels),
        lambda: find_own_ranks(pair[0], pair[1], labels),
    ):
        with pytest.raises(UserError, match=rf"must be finite; got {value} in row 4 of 6"):
            call()


def test_the_last_of_a_tie_may_win() -> None:
    """As in FG-CLIP's scripts, which read a stable argsort from its end."""
    rng = np.random.default_rng(0)
    queries = F.normalize(torch.tensor(rng.normal(size=(40, 3)), dtype=torch.float32), dim=-1)
    gallery = queries[rng.integers(0, 5, 40)]  # five distinct entries, each several times
    labels = torch.arange(40)
    found = find_ranks(queries, gallery, labels, labels, last_wins=True).hits(1)
    order = (queries @ gallery.T).argsort(dim=1, stable=True)
    assert found.tolist() == [float(order[row, -1] == row) for row in range(40)]
    assert found.sum() != find_ranks(queries, gallery, labels, labels).hits(1).sum()


@pytest.mark.parametrize("count", range(2, 14))
@pytest.mark.parametrize("queries", [1, 3, 100])
def test_equal_entries_tie_to_the_bit(queries: int, count: int) -> None:
    """However a product rounds its columns, which differs with their number."""
    generator = torch.Generator().manual_seed(count)
    texts = F.normalize(torch.randn(1, 512, generator=generator), dim=1).repeat(count, 1)
    images = F.normalize(torch.randn(queries, 512, generator=generator), dim=1)
    labels = torch.arange(queries) % count
    ranks = find_ranks(images, texts, labels, torch.arange(count))
    assert (ranks.above == 0).all()
    assert (ranks.tied == count).all()
    assert ranks.hits(1).tolist() == pytest.approx([1 / count] * queries)
    own = find_own_ranks(images, texts, labels=torch.arange(count) % queries)
    assert (own.above == 0).all()
    assert (own.tied == count).all()
