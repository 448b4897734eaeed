"""Rows of length 1 without a copy of all of them. Shapes: i rows looked at, D shared embedding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROWS_AT_ONCE = 2048  # of a pass over all rows, which bounds its memory


@dataclass(frozen=True)
class UnitRows:
    """Some rows of a feature matrix, made unit vectors in float32 or wider when they are looked up.

    Attributes:
        features: (N, D) as given.
        index: (n,) which of its rows these are.
        lengths: (n, 1).
    """

    features: Tensor
    index: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, part: slice | Tensor) -> Tensor:
        """Unit rows (i, D), which the caller may overwrite."""
        return self.features[self.index[part]].to(self.lengths.dtype).div_(self.lengths[part])

    def cosines(self, own: Tensor, others: UnitRows, theirs: Tensor) -> Tensor:
        """(i,) of row `own[i]` with row `theirs[i]` of others, in passes of bounded memory."""
        parts = [self.lengths[:0, 0]]
        for a, b in zip(own.split(ROWS_AT_ONCE), theirs.split(ROWS_AT_ONCE)):
            rows, other = self.features[self.index[a]], others.features[others.index[b]]
            products = torch.linalg.vecdot(rows.to(self.lengths.dtype), other.to(self.lengths.dtype))
            parts.append(products / self.lengths[a, 0] / others.lengths[b, 0])
        return torch.cat(parts)

    def without_length(self, gradient: Tensor, unit: Tensor, part: slice) -> Tensor:
        """The gradient for unit rows (i, D) -> that for the rows as given; overwrites it."""
        along = (gradient * unit).sum(1, keepdim=True)
        return gradient.addcmul_(unit, along, value=-1).div_(self.lengths[part])


def unit_rows(features: Tensor, index: Tensor) -> UnitRows:
    """Those rows of (N, D) features; a row of zeros stays zero."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    parts = [features[part].to(dtype).norm(dim=1, keepdim=True) for part in index.split(ROWS_AT_ONCE)]
    lengths = torch.cat([features.new_empty(0, 1, dtype=dtype), *parts])
    return UnitRows(features, index, lengths.clamp(min=1e-12))
