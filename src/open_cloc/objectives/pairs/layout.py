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
    columns = (~is_first).byte().argsort(stable=True)
    place = torch.empty_like(columns).index_copy_(0, columns, places)
    rows = (~row_mask).byte().argsort(stable=True)
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


def _earliest_copies(text_ids: Tensor, mask: Tensor) -> Tensor:
    """(m,) the first real text that is the same as each real one; of others, whatever."""
    order = text_ids.argsort(stable=True)
    order = order[(~mask[order]).byte().argsort(stable=True)]  # real ones first, copies side by side
    ids, is_real = text_ids[order], mask[order]
    starts = torch.ones_like(mask)
    starts[1:] = (ids[1:] != ids[:-1]) | (is_real[1:] != is_real[:-1])
    places = torch.arange(len(mask), device=mask.device)
    start = torch.where(starts, places, 0).cummax(0).values
    return torch.empty_like(order).index_copy_(0, order, order[start])
