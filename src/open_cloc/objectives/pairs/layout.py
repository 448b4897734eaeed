"""In which order the kernels of `fused` see rows and texts, found without waiting for the device.

Shapes: n rows of this rank, m texts of the world.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """In which order the kernels see rows and texts.

    Attributes:
        rows: (n,) which row stands at each place, those that count first.
        num_rows: Scalar int32, how many count.
        columns: (m,) which text stands at each place, one copy of each real text first.
        num_columns: Scalar int32, how many different real texts there are.
        counts: (m,) float32, copies of the text at each place; 0 behind them.
        own: (n,) int32, place of the text of the row at each place.
        text_index: (m,) place of each text.
        threshold: Cosine of two texts above which their pair is no negative; None keeps all.
    """

    rows: Tensor
    num_rows: Tensor
    columns: Tensor
    num_columns: Tensor
    counts: Tensor
    own: Tensor
    text_index: Tensor
    threshold: float | None


@torch.no_grad()
def lay_out(
    mask: Tensor, row_mask: Tensor, first: int, threshold: float | None, text_ids: Tensor | None
) -> Layout:
    """Order rows and texts; arguments as those of `fused_pairs`, and (n,) which rows count."""
    places = torch.arange(len(mask), device=mask.device)
    earliest = places if text_ids is None else _earliest_copies(text_ids, mask)
    counts = torch.zeros(len(mask), device=mask.device).index_add_(0, earliest, mask.float())
    is_first = mask & (earliest == places)
    columns, place = _those_first(is_first)
    rows, _ = _those_first(row_mask)
    text_index = place[earliest]
    return Layout(
        rows=rows,
        num_rows=row_mask.sum(dtype=torch.int32),
        columns=columns,
        num_columns=is_first.sum(dtype=torch.int32),
        counts=(counts * is_first)[columns],
        own=text_index[first : first + len(row_mask)][rows].int(),
        text_index=text_index,
        threshold=threshold,
    )


def _those_first(wanted: Tensor) -> tuple[Tensor, Tensor]:
    """What stands at each place where all of (m,) that are wanted come first, and the place of each."""
    place = torch.where(wanted, wanted.cumsum(0) - 1, wanted.sum() + (~wanted).cumsum(0) - 1)
    return torch.empty_like(place).index_copy_(0, place, torch.arange(len(place), device=place.device)), place


def _earliest_copies(text_ids: Tensor, mask: Tensor) -> Tensor:
    """(m,) the first real text that is the same as each real one; of others, whatever."""
    ids, order = text_ids.sort()
    group = torch.zeros_like(order)
    group[1:] = (ids[1:] != ids[:-1]).cumsum(0)
    last = len(order) - 1
    real = torch.where(mask[order], order, last)
    earliest = torch.full_like(order, last).scatter_reduce(0, group, real, "amin")
    return torch.empty_like(order).index_copy_(0, order, earliest[group])
