"""The pair matrix as one tensor: the form for small batches, and the reference of `tiled`.

Shapes: n rows of this rank, m columns of the world, D shared embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from open_cloc.precision import exact_product, exact_products

# Stands for the logarithm of an empty sum. Finite, so that no gradient is inf - inf.
NOTHING = -1e30


@dataclass(frozen=True)
class DensePairs:
    """Rows against columns, and which of their pairs are negatives. No step waits for the device.

    Attributes:
        left: (n, D) unit rows; zeros where they do not count.
        right: (m, D) unit columns; zeros where they do not count.
        mask: (m,) True for columns that count, and with them for their rows.
        first: Row i's positive is column `first + i`.
        negatives: (n, m) bool: real, no positive, no conflict.
        num_filtered: Scalar, how many of the pairs the conflict filter leaves out.
    """

    left: Tensor
    right: Tensor
    mask: Tensor
    first: int
    negatives: Tensor
    num_filtered: Tensor

    @property
    def row_mask(self) -> Tensor:
        """(n,) True for rows that count."""
        return self.mask[self.first : self.first + len(self.left)]

    @property
    def text_index(self) -> Tensor:
        """(m,) column of each text: its own, as the matrix has one for every copy."""
        return torch.arange(len(self.right), device=self.right.device)

    def logsumexps(self, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positive logits (n,), and log-sum-exps of the negatives' by row (n,) and by column (m,)."""
        logits = scale * exact_product(self.left, self.right)  # (n, m)
        negatives = logits.masked_fill(~self.negatives, NOTHING)
        return logits.diagonal(self.first), negatives.logsumexp(1), negatives.logsumexp(0)

    def softplus_sums(self, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Positive logits less the bias (n,), and each row's sum over negatives of `softplus(logit)` (n,)."""
        logits = scale * exact_product(self.left, self.right)  # (n, m)
        losses = -F.logsigmoid(-(logits + bias))
        return logits.diagonal(self.first), losses.masked_fill(~self.negatives, 0.0).sum(1)


def dense_pairs(left: Tensor, right: Tensor, mask: Tensor, first: int, threshold: float | None) -> DensePairs:
    """Normalise features and find the negatives among all pairs.

    Args:
        left: (n, D) features of this rank's rows.
        right: (m, D) text features of the world.
        mask: (m,) True for the texts that count.
        first: Row i's own text is column `first + i`.
        threshold: Cosine of two texts above which their pair is no negative; None keeps all.
    """
    row_mask = mask[first : first + len(left)]
    left, right = _unit(left, row_mask), _unit(right, mask)
    others = row_mask[:, None] & mask[None, :]  # (n, m) pairs of real rows and columns
    others = others & (torch.arange(len(mask), device=mask.device) != _own(left, first)[:, None])
    if threshold is None:
        return DensePairs(left, right, mask, first, others, torch.zeros((), device=mask.device))
    with torch.no_grad(), exact_products(right.device):
        alike = right[first : first + len(left)] @ right.T > threshold  # (n, m)
    return DensePairs(left, right, mask, first, others & ~alike, (others & alike).sum())


def _own(left: Tensor, first: int) -> Tensor:
    """(n,) column of each row's positive."""
    return torch.arange(first, first + len(left), device=left.device)


def _unit(features: Tensor, mask: Tensor) -> Tensor:
    """Unit rows in float32 or wider.

    Rows that do not count stay, as zeros: picking them out would make the host wait for the device.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    return F.normalize(features.to(dtype).masked_fill(~mask[:, None], 0.0), dim=-1)
