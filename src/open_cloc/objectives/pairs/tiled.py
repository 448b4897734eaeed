"""The pair matrix tile by tile, forward and backward: memory grows with n D, not with n^2.

What makes it exact and fast:

* The backward pass makes each tile again, save the first ones, which the forward pass keeps up to a fixed
  size (`KEPT_BYTES`); nothing of n x m elements exists at any time.
* Positives stay out of the tiles: a row's loss is `softplus(logsumexp of negatives - positive)`, so that a
  nearly solved batch loses no digits.
* One exponential serves rows and columns, as both subtract the same shift. Where a sum leaves the range in
  which that is exact, running maxima of each row and column take over (`_running_logsumexps`).
* Texts that repeat make one column with a count. That is exact because equal texts always conflict; their
  gradient, summed over copies, goes to one of them.
* Conflicts are a list of pairs (`conflicts`), not a matrix. Without `text_ids` it holds every pair of copies.
  Where the list would be long, each tile compares its texts anew.

Unlike the dense form this waits for the device: to count real rows, once a tile of the conflict search and
once a row of tiles.

Shapes: n real rows of this rank, m real texts of the world, u columns (distinct texts), t tile, D shared
embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from open_cloc.objectives.pairs.conflicts import conflicting_pairs, count_conflicts
from open_cloc.objectives.pairs.dense import NOTHING
from open_cloc.objectives.pairs.unit_rows import unit_rows

TILE = {"cpu": 1024}  # rows and columns of a tile that fits the cache

DEVICE_TILE = 4096  # on accelerators, where starting a kernel costs more than its memory

KEPT_BYTES = 88 * 2**20  # of exponentials from forward to backward pass: all of them up to 4,700 pairs

# Logits up to this are exponentiated as they are: e^60 times a million columns is far from float32's end.
SAFE_EXPONENT = 60.0

# Sums whose logarithm is this far above the smallest normal number have lost nothing to underflow.
UNDERFLOW_MARGIN = 25.0

Weights = Callable[[Tensor, slice, slice], Tensor]


@dataclass(frozen=True)
class Layout:
    """Which rows and columns there are, and which of their pairs are no negatives.

    Attributes:
        rows: (n,) real rows among the left features.
        columns: (u,) ascending; one copy of each distinct text among the right features.
        counts: (u,) how many copies there are.
        own: (n,) column of each row's text.
        group: (n,) the entry of `starts` for each row's text.
        starts: (g + 1,) where the columns of each distinct text of this rank start in `excluded`.
        excluded: Columns that are no negatives of a text: itself and its conflicts.
        unlisted_above: Where conflicts are too many to be listed, the cosine above which texts conflict.
        tile: t.
    """

    rows: Tensor
    columns: Tensor
    counts: Tensor
    own: Tensor
    group: Tensor
    starts: Tensor
    excluded: Tensor
    unlisted_above: float | None
    tile: int

    def excluded_tiles(self, rows: slice) -> list[Tensor]:
        """Flat positions of the pairs that are no negatives in each tile of a row of tiles."""
        group = self.group[rows]
        lengths = self.starts[group + 1] - self.starts[group]
        row = torch.repeat_interleave(torch.arange(len(group), device=group.device), lengths)
        before = lengths.cumsum(0) - lengths
        within = torch.arange(len(row), device=row.device) - before[row]
        column = self.excluded[self.starts[group][row] + within]
        column, order = column.sort()
        row = row[order]
        edges = [part.start for part in self.column_slices()] + [len(self.columns)]
        bounds = torch.searchsorted(column, torch.tensor(edges, device=column.device)).tolist()
        return [
            row[low:high] * (end - start) + column[low:high] - start
            for low, high, start, end in zip(bounds, bounds[1:], edges, edges[1:])
        ]

    def row_slices(self) -> Iterator[slice]:
        return _slices(len(self.rows), self.tile)

    def column_slices(self) -> Iterator[slice]:
        return _slices(len(self.columns), self.tile)


@dataclass(frozen=True)
class TiledPairs:
    """As `DensePairs`, over real rows and columns only.

    Attributes:
        left: (rows, D) features as given, not normalised.
        right: (texts, D) text features as given, not normalised.
        layout: Says which of the features are rows and columns.
        text_index: (m,) column of each real text of the world.
        first: Row i's text is real text `first + i`.
        num_filtered: Scalar, how many of the pairs the conflict filter leaves out.
    """

    left: Tensor
    right: Tensor
    layout: Layout
    text_index: Tensor
    first: int
    num_filtered: Tensor

    @property
    def mask(self) -> Tensor:
        """(m,) all True."""
        return torch.ones_like(self.text_index, dtype=torch.bool)

    @property
    def row_mask(self) -> Tensor:
        """(n,) all True."""
        return torch.ones_like(self.layout.rows, dtype=torch.bool)

    def logsumexps(self, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positive cosines (n,), and log-sum-exps of the negatives' logits by row (n,) and by column (u,)."""
        return _LogSumExps.apply(self.left, self.right, scale, self.layout)

    def softplus_sums(self, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Positive cosines (n,), and each row's sum over negatives of `softplus(logit)` (n,)."""
        return _SoftplusSums.apply(self.left, self.right, scale, bias, self.layout)


@torch.no_grad()
def tiled_pairs(
    left: Tensor,
    right: Tensor,
    mask: Tensor,
    first: int,
    threshold: float | None,
    text_ids: Tensor | None = None,
    tile: int | None = None,
) -> TiledPairs:
    """Find real rows, distinct texts and conflicts.

    Args:
        left: (rows, D) features of this rank.
        right: (texts, D) text features of the world.
        mask: (texts,) True for the texts that count.
        first: Row i's own text is text `first + i`.
        threshold: Cosine of two texts above which their pair is no negative; None keeps all.
        text_ids: (texts,) int64, equal where texts are. Only for thresholds that equal texts pass.
        tile: Rows and columns of a tile; by the device if None.
    """
    tile = tile or TILE.get(left.device.type, DEVICE_TILE)
    real = mask.nonzero()[:, 0]  # (m,)
    rows = mask[first : first + len(left)].nonzero()[:, 0]  # (n,)
    real_first = int(mask[:first].sum())
    chosen, text_index = _distinct(None if text_ids is None else text_ids[real], len(real), real.device)
    columns = real[chosen]
    counts = torch.bincount(text_index, minlength=len(columns))
    own = text_index[real_first : real_first + len(rows)]
    texts, group = own.unique(return_inverse=True)  # (g,), (n,)
    none = texts[:0], texts[:0]
    unit = unit_rows(right, columns)
    pairs = none if threshold is None else conflicting_pairs(unit, texts, threshold, tile)
    starts, excluded = _by_text(texts, *(pairs or none))
    # Copies of a row's own text are filtered too, save the positive.
    left_out = torch.zeros_like(texts).index_add_(
        0, torch.arange(len(texts), device=texts.device).repeat_interleave(starts.diff()), counts[excluded]
    )
    if pairs is None:
        assert threshold is not None
        left_out += count_conflicts(unit, texts, counts, threshold, tile)
    layout = Layout(
        rows=rows,
        columns=columns,
        counts=counts.to(torch.promote_types(right.dtype, torch.float32)),
        own=own,
        group=group,
        starts=starts,
        excluded=excluded,
        unlisted_above=threshold if pairs is None else None,
        tile=tile,
    )
    return TiledPairs(left, right, layout, text_index, real_first, left_out[group].sum() - len(rows))


def _distinct(text_ids: Tensor | None, num_texts: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ascending positions of the first copy of each text (u,), and which of them each text is (m,)."""
    positions = torch.arange(num_texts, device=device)
    if text_ids is None:
        return positions, positions
    ids, inverse = text_ids.unique(return_inverse=True)
    earliest = torch.full_like(ids, num_texts).scatter_reduce(0, inverse, positions, "amin")
    chosen, order = earliest.sort()
    return chosen, order.argsort()[inverse]


def _by_text(texts: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Conflicts (position in `texts`, column), and each text itself, as starts (g + 1,) and columns."""
    position = torch.cat([torch.arange(len(texts), device=texts.device), first])
    column = torch.cat([texts, second])
    lengths = torch.bincount(position, minlength=len(texts))
    return F.pad(lengths.cumsum(0), (1, 0)), column[position.argsort()]


def _slices(num: int, size: int) -> Iterator[slice]:
    for start in range(0, num, size):
        yield slice(start, min(start + size, num))


class _Tiles:
    """A pair matrix, one tile after the other in one buffer.

    Args:
        left: (rows, D) features as given.
        right: (texts, D) text features as given.
        layout: Says which of the features are rows and columns.
        finish: What a tile holds is made of its logits by this, in place; the logits themselves if None.
        kept: The first tiles, finished; filled up to `KEPT_BYTES`. None: none are kept.
    """

    def __init__(
        self,
        left: Tensor,
        right: Tensor,
        layout: Layout,
        finish: Callable[[Tensor], Tensor] | None = None,
        kept: list[Tensor] | None = None,
    ) -> None:
        self.layout, self.finish, self.kept = layout, finish, kept
        self.left, self.right = unit_rows(left, layout.rows), unit_rows(right, layout.columns)
        self.buffer = torch.empty(layout.tile**2, dtype=self.left.lengths.dtype, device=left.device)

    def row(self, rows: slice, scaled: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Columns, their unit features (t, D) and the tile (t, t), for each tile of a row of tiles.

        A tile is gone with the next one. It may be overwritten, unless tiles are kept.
        """
        texts = None if self.layout.unlisted_above is None else self.right[self.layout.own[rows]]  # (t, D)
        parts = list(self.layout.column_slices())
        first = rows.start // self.layout.tile * len(parts)
        for number, (part, excluded) in enumerate(zip(parts, self.layout.excluded_tiles(rows)), first):
            columns = self.right[part]
            if self.kept is None or (number + 1) * self.buffer.nbytes > KEPT_BYTES:
                yield part, columns, self._make(scaled, columns, texts, excluded, self.buffer)
                continue
            if number == len(self.kept):
                room = self.buffer.new_empty(len(scaled) * len(columns))
                self.kept.append(self._make(scaled, columns, texts, excluded, room))
            yield part, columns, self.kept[number]

    def _make(
        self, scaled: Tensor, columns: Tensor, texts: Tensor | None, excluded: Tensor, room: Tensor
    ) -> Tensor:
        """A tile: -inf where there are no negatives, then finished."""
        logits = room[: len(scaled) * len(columns)].view(len(scaled), len(columns))
        torch.mm(scaled, columns.T, out=logits)
        logits.view(-1).index_fill_(0, excluded, -torch.inf)
        if texts is not None and self.layout.unlisted_above is not None:
            logits.masked_fill_(texts @ columns.T > self.layout.unlisted_above, -torch.inf)
        return logits if self.finish is None else self.finish(logits)

    def all(self, scale: float) -> Iterator[tuple[slice, slice, Tensor]]:
        """Rows and columns of every tile, and the tile."""
        for rows in self.layout.row_slices():
            for part, _, tile in self.row(rows, self.left[rows].mul_(scale)):
                yield rows, part, tile

    def positives(self) -> Tensor:
        """(n,) cosine of each row and its own text."""
        rows = torch.arange(len(self.left), device=self.buffer.device)
        return self.left.cosines(rows, self.right, self.layout.own)


def _exponentials(shift: float, logits: Tensor) -> Tensor:
    return (logits.sub_(shift) if shift else logits).exp_()


def _shifted_logsumexps(tiles: _Tiles, scale: float, shift: float) -> tuple[Tensor, Tensor] | None:
    """Log-sum-exps by row (n,) and column (u,), by one exp a pair; None if sums may have lost digits.

    The tiles are `_exponentials`.
    """
    layout = tiles.layout
    rows = torch.zeros(len(layout.rows), dtype=tiles.buffer.dtype, device=tiles.buffer.device)
    columns = torch.zeros_like(layout.counts)
    for i, j, exponentials in tiles.all(scale):
        rows[i] += exponentials @ layout.counts[j]
        columns[j] += exponentials.sum(0)
    smallest = torch.finfo(rows.dtype).tiny * math.exp(UNDERFLOW_MARGIN)
    sums = torch.cat([rows, columns])
    if not bool((sums.isfinite() & (sums > smallest)).all()):
        return None
    return rows.log_().add_(shift), columns.log_().add_(shift)


def _running_logsumexps(tiles: _Tiles, scale: float) -> tuple[Tensor, Tensor]:
    """The same for logits of any size: sums are relative to the largest logit yet of their row or column."""
    layout = tiles.layout
    row_sums = torch.zeros(len(layout.rows), dtype=tiles.buffer.dtype, device=tiles.buffer.device)
    column_sums = torch.zeros_like(layout.counts)
    row_tops, column_tops = torch.full_like(row_sums, NOTHING), torch.full_like(column_sums, NOTHING)
    for i, j, logits in tiles.all(scale):
        top = torch.maximum(row_tops[i], logits.amax(1))
        added = (logits - top[:, None]).exp_() @ layout.counts[j]
        row_sums[i] = row_sums[i] * (row_tops[i] - top).exp() + added
        row_tops[i] = top
        top = torch.maximum(column_tops[j], logits.amax(0))
        column_sums[j] = column_sums[j] * (column_tops[j] - top).exp() + (logits - top).exp_().sum(0)
        column_tops[j] = top
    return tuple(  # type: ignore[return-value]
        torch.where(sums > 0, sums.log() + tops, tops)
        for sums, tops in ((row_sums, row_tops), (column_sums, column_tops))
    )


class _LogSumExps(torch.autograd.Function):
    """(positive cosines, log-sum-exps by row, by column) of left and right features, scale and layout."""

    @staticmethod
    def forward(
        ctx: Any, left: Tensor, right: Tensor, scale: Tensor, layout: Layout
    ) -> tuple[Tensor, Tensor, Tensor]:
        value = float(scale)
        shift = max(0.0, value - SAFE_EXPONENT)
        kept: list[Tensor] | None = [] if any(ctx.needs_input_grad) else None
        tiles = _Tiles(left, right, layout, partial(_exponentials, shift), kept)
        sums = _shifted_logsumexps(tiles, value, shift)
        if sums is None:
            tiles, kept = _Tiles(left, right, layout), None
        rows, columns = sums or _running_logsumexps(tiles, value)
        ctx.save_for_backward(left, right, scale, rows, columns, *(kept or ()))
        ctx.layout, ctx.shift = layout, shift if sums else None
        return tiles.positives(), rows, columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, positive_grad: Tensor, row_grad: Tensor, column_grad: Tensor) -> tuple[Any, ...]:
        left, right, scale, rows, columns, *kept = ctx.saved_tensors
        counts, shift = ctx.layout.counts, ctx.shift

        def running(logits: Tensor, i: slice, j: slice) -> Tensor:
            weights = (logits - rows[i, None]).exp_().mul_(row_grad[i, None] * counts[j])
            return weights.addcmul_((logits - columns[j]).exp_(), column_grad[j])

        if shift is None:
            tiles = _Tiles(left, right, ctx.layout)
            return (*_gradients(tiles, left, right, scale, positive_grad, running), None)
        row_factor = row_grad * (shift - rows).exp()
        column_factor = column_grad * (shift - columns).exp()

        def shifted(exponentials: Tensor, i: slice, j: slice) -> Tensor:
            return torch.addcmul(column_factor[j], row_factor[i, None], counts[j]).mul_(exponentials)

        tiles = _Tiles(left, right, ctx.layout, partial(_exponentials, shift), kept)
        return (*_gradients(tiles, left, right, scale, positive_grad, shifted), None)


class _SoftplusSums(torch.autograd.Function):
    """(positive cosines, sums of softplus by row) of left and right features, scale, bias and layout."""

    @staticmethod
    def forward(
        ctx: Any, left: Tensor, right: Tensor, scale: Tensor, bias: Tensor, layout: Layout
    ) -> tuple[Tensor, Tensor]:
        tiles = _Tiles(left, right, layout)
        sums = torch.zeros(len(layout.rows), dtype=tiles.buffer.dtype, device=left.device)
        for i, j, logits in tiles.all(float(scale)):
            sums[i] -= F.logsigmoid(logits.add_(bias).neg_()) @ layout.counts[j]
        ctx.save_for_backward(left, right, scale, bias)
        ctx.layout = layout
        return tiles.positives(), sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, positive_grad: Tensor, row_grad: Tensor) -> tuple[Any, ...]:
        left, right, scale, bias = ctx.saved_tensors
        counts = ctx.layout.counts
        bias_grad = torch.zeros_like(bias)

        def weights(logits: Tensor, i: slice, j: slice) -> Tensor:
            weights = logits.add_(bias).sigmoid_().mul_(row_grad[i, None] * counts[j])
            bias_grad.add_(weights.sum())
            return weights

        gradients = _gradients(_Tiles(left, right, ctx.layout), left, right, scale, positive_grad, weights)
        return (*gradients, bias_grad, None)


def _gradients(
    tiles: _Tiles, left: Tensor, right: Tensor, scale: Tensor, positive_grad: Tensor, weights: Weights
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for left and right features and the scale.

    Args:
        tiles: The pair matrix, tile by tile.
        left: The rows' features as given to the forward pass.
        right: The columns' features as given to the forward pass.
        scale: The logit scale as given to the forward pass.
        positive_grad: (n,) for the positive cosines.
        weights: A tile, its rows and its columns -> the gradients for its logits (t, t).
    """
    # backward() may run inside the caller's autocast, and these products stay in float32.
    with torch.autocast(left.device.type, enabled=False):
        layout, value = tiles.layout, float(scale)
        left_grad, right_grad = torch.zeros_like(left), torch.zeros_like(right)
        column_grad = right_grad[: len(layout.columns)].to(tiles.buffer.dtype)  # shares memory if it can
        scale_grad = torch.zeros((), dtype=tiles.buffer.dtype, device=left.device)
        for i in layout.row_slices():
            unit = tiles.left[i]
            scaled = unit * value
            grad = torch.zeros_like(unit)
            for j, columns, tile in tiles.row(i, scaled):
                pull = weights(tile, i, j)
                grad.addmm_(pull, columns)
                column_grad[j].addmm_(pull.T, scaled)
            scale_grad += (grad * unit).sum()
            positive = positive_grad[i, None]
            grad.mul_(value).addcmul_(tiles.right[layout.own[i]], positive)
            column_grad.index_add_(0, layout.own[i], unit * positive)
            left_grad[layout.rows[i]] = tiles.left.without_length(grad, unit, i).to(left.dtype)
        # Columns ascend, so none lies before its place in `column_grad`: the last ones can go there first.
        for j in reversed(list(layout.column_slices())):
            gradient = tiles.right.without_length(column_grad[j].clone(), tiles.right[j], j)
            column_grad[j] = 0
            right_grad[layout.columns[j]] = gradient.to(right.dtype)
        return left_grad, right_grad, scale_grad.to(scale.dtype).view_as(scale)
