"""Numbers from features: accuracy and recall, in bounded memory.

Shapes: X things to recognise, C classes, Q queries, G gallery entries, D shared embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ROWS_PER_CHUNK = 1024


def top_matches(features: Tensor, others: Tensor, count: int) -> Tensor:
    """Rows of `others` (G, D) most similar to each of `features` (Q, D): (Q, min(count, G)), best first."""
    count = min(count, len(others))
    rows = [(chunk @ others.T).topk(count, dim=1).indices for chunk in features.split(ROWS_PER_CHUNK)]
    return torch.cat(rows) if rows else torch.zeros(0, count, dtype=torch.int64)


def classification_metrics(top: Tensor, targets: Tensor) -> dict[str, float]:
    """Accuracy of ranked guesses.

    Args:
        top: (X, 5) classes, best first; fewer columns where there are fewer classes.
        targets: (X,) true classes; at least one.

    Returns:
        `acc1` and, with at least 5 classes, `acc5`, over all X (micro); `mean_per_class_recall`, the mean of
        each class's own accuracy over the classes that occur (macro, mAcc).
    """
    hits = top == targets[:, None]  # (X, 5)
    right = hits[:, 0].double()
    metrics = {"acc1": right.mean().item()}
    if top.shape[1] >= 5:
        metrics["acc5"] = hits[:, :5].any(1).double().mean().item()
    counts = torch.bincount(targets)
    recalls = torch.bincount(targets, weights=right)[counts > 0] / counts[counts > 0]
    return {**metrics, "mean_per_class_recall": recalls.mean().item()}


def recall_at_k(
    queries: Tensor, gallery: Tensor, query_labels: Tensor, gallery_labels: Tensor, ks: Sequence[int]
) -> dict[int, float]:
    """Share of queries with at least one right entry among the K most similar ones.

    Args:
        queries: (Q, D) of unit length.
        gallery: (G, D) of unit length.
        query_labels: (Q,) int.
        gallery_labels: (G,) int; an entry is right for a query of the same label.
        ks: The values of K; beyond G, all entries count.
    """
    top = top_matches(queries, gallery, max(ks))
    hits = gallery_labels[top] == query_labels[:, None]  # (Q, K)
    return {k: hits[:, :k].any(1).double().mean().item() for k in ks}
