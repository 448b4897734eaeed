"""Metrics against slow references."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from open_cloc.evaluation.metrics import classification_metrics, recall_at_k, top_matches


def test_classification_metrics_equal_loops() -> None:
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
    found = classification_metrics(top_matches(features, classes, 5), torch.tensor(targets))
    assert found["acc1"] == pytest.approx(np.mean(first))
    assert found["acc5"] == pytest.approx(np.mean(five))
    assert found["mean_per_class_recall"] == pytest.approx(np.mean([np.mean(v) for v in per_class.values()]))
    assert found["acc1"] != found["mean_per_class_recall"]


def test_acc5_is_left_out_where_it_says_nothing() -> None:
    top = top_matches(torch.eye(3), torch.eye(3), 5)
    assert classification_metrics(top, torch.arange(3)) == {"acc1": 1.0, "mean_per_class_recall": 1.0}


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
    to_image = recall_at_k(scores, images, owners, torch.arange(3), (1, 2, 3))
    assert to_image == {1: 12 / 15, 2: 14 / 15, 3: 1.0}
    # image 0: 5 (0.8), 11 (0.6), then its own four at 0.5; image 1: 0 (0.9), own; image 2: 5 (0.7), own
    to_text = recall_at_k(images, scores, torch.arange(3), owners, (1, 2, 3, 5))
    assert to_text == {1: 0.0, 2: 2 / 3, 3: 1.0, 5: 1.0}


def test_recall_with_repeated_labels_equals_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    queries, gallery = torch.tensor(rng.normal(size=(40, 6))), torch.tensor(rng.normal(size=(30, 6)))
    query_labels, gallery_labels = rng.integers(0, 8, 40), rng.integers(0, 8, 30)
    monkeypatch.setattr("open_cloc.evaluation.metrics.ROWS_PER_CHUNK", 7)
    found = recall_at_k(
        queries, gallery, torch.tensor(query_labels), torch.tensor(gallery_labels), (1, 4, 99)
    )
    for k in (1, 4, 99):
        hits = []
        for query, label in zip(queries.numpy(), query_labels):
            order = sorted(range(30), key=lambda g: -float(query @ gallery[g].numpy()))
            hits.append(any(gallery_labels[g] == label for g in order[:k]))
        assert found[k] == pytest.approx(np.mean(hits))
