"""Kernels of the fused pair matrix: a tile's logits and conflicts live in registers, and only sums leave it.

A unit vector is the sum of two half-precision pieces. Tensor cores cut off what their running sums have no
digits for, which at a scale of 100 would be an error of 1e-4. So the upper piece is a whole number of steps:
products of two such pieces are summed without any rounding at all, apart from the small rest of the product,
whatever the user's setting of TF32.

The forward pass gives each tile's largest logit and its sum of exponentials, by row and by column at once;
torch adds tiles up. The backward pass makes the tile again, writes the weights with which pairs pull, as two
pieces, and leaves both gradients to matrix products of the library.

Shapes: n rows, m texts, D shared embedding, at their places of `Layout`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from open_cloc.objectives.pairs.dense import NOTHING
from open_cloc.objectives.pairs.layout import Layout
from open_cloc.objectives.pairs.sums import Sums

TILE = 128  # rows and columns of a tile
DEPTH = 64  # of the embedding that is multiplied at a time
# A tile's products, of logits and of conflicts, are in registers: with four warps they would not fit.
LAUNCH = {"num_warps": 8, "num_stages": 3}
WEIGHTS_AT_ONCE = 2**25  # of the backward pass, in memory
# Rows are so long when they are split, and upper pieces multiples of 1 / STEPS: 24 bits hold all sums of
# their products. The lower piece of a weight is kept LOW times larger, where half precision has digits.
UNIT, STEPS, LOW = tl.constexpr(64.0), tl.constexpr(64.0), tl.constexpr(2048.0)
EMPTY = tl.constexpr(-1e30)  # as `NOTHING`


@triton.jit
def _split(features, index, count, high, low, lengths, D: tl.constexpr, WIDTH: tl.constexpr):
    """A program: the row for one place, made a unit vector, in two pieces; zeros where none counts."""
    place = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, WIDTH)
    is_real = place < tl.load(count)
    x = tl.load(features + tl.load(index + place) * D + k, (k < D) & is_real, 0.0).to(tl.float32)
    length = tl.maximum(tl.sqrt(tl.sum(x * x, 0)), 1e-12)
    unit = x / length * UNIT
    upper = tl.floor(unit * STEPS + 0.5) / STEPS
    upper = upper.to(tl.float16)
    tl.store(high + place * D + k, upper, k < D)
    tl.store(low + place * D + k, (unit - upper.to(tl.float32)).to(tl.float16), k < D)
    tl.store(lengths + place, length)


@triton.jit
def _join(
    pulls, high, low, lengths, index, count, multiplier, gradient, along,
    D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A program: the gradient for one place's unit vector, carried on to the features it was made of."""
    place = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, WIDTH)
    at = place * D + k
    inside = (k < D) & (place < tl.load(count))
    unit = tl.load(high + at, inside, 0.0).to(tl.float32) + tl.load(low + at, inside, 0.0).to(tl.float32)
    unit = unit / UNIT
    pull = tl.load(pulls + at, inside, 0.0) * tl.load(multiplier)
    own = tl.sum(pull * unit, 0)
    tl.store(along + place, own)
    out = (pull - own * unit) / tl.load(lengths + place)
    tl.store(gradient + tl.load(index + place) * D + k, out, k < D)


@triton.jit
def _products(
    a_high, a_low, b_high, b_low, i, j, is_row, is_column,
    PRECISE: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Products of rows i of one matrix and rows j of another: (TILE, TILE), UNIT squared times as large."""
    upper = tl.zeros((TILE, TILE), tl.float32)
    rest = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, D, DEPTH):
        k = start + tl.arange(0, DEPTH)
        a, b = i[:, None] * D + k[None, :], j[None, :] * D + k[:, None]
        is_a, is_b = is_row[:, None] & (k < D)[None, :], is_column[None, :] & (k < D)[:, None]
        high, other = tl.load(a_high + a, is_a, 0.0), tl.load(b_high + b, is_b, 0.0)
        low, other_low = tl.load(a_low + a, is_a, 0.0), tl.load(b_low + b, is_b, 0.0)
        upper = tl.dot(high, other, upper)
        if PRECISE:
            rest = tl.dot(high, other_low, rest)
            rest = tl.dot(low, other, rest)
            rest = tl.dot(low, other_low, rest)
        else:  # a millionth more or less
            upper = tl.dot(high, other_low, upper)
            upper = tl.dot(low, other, upper)
    return upper + rest


@triton.jit
def _tile(
    left, left_low, text, text_low, own_place, scale, row, start, rows, columns, threshold,
    FILTER: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """A tile from its first row and column on: its scaled cosines, the places of its rows' own texts, which
    pairs are negatives, and which conflict."""
    local = tl.arange(0, TILE)
    is_row, is_column = row + local < rows, start + local < columns
    at, other_at = row.to(tl.int64) * D, start.to(tl.int64) * D  # matrices may have over 2^31 elements
    texts, texts_low = text + other_at, text_low + other_at
    cosines = _products(
        left + at, left_low + at, texts, texts_low, local, local, is_row, is_column, True, D, TILE, DEPTH
    )
    cosines = cosines * (tl.load(scale) / (UNIT * UNIT))
    place = tl.load(own_place + row + local, is_row, -1)
    other = is_row[:, None] & is_column[None, :] & (place[:, None] != (start + local)[None, :])
    conflict = other
    if FILTER:
        own = tl.maximum(place, 0).to(tl.int64)
        c = _products(
            text, text_low, texts, texts_low, own, local, is_row, is_column, False, D, TILE, DEPTH
        )  # fmt: skip
        conflict = other & (c > threshold * (UNIT * UNIT))
        other = other & (c <= threshold * (UNIT * UNIT))
    return cosines, place, other, conflict


@triton.jit
def _forward(
    left, left_low, text, text_low, own_place, counts, num_rows, num_columns, scale, bias,
    positives, row_top, row_sum, column_top, column_sum, conflicts, n, m, threshold,
    SIGMOID: tl.constexpr, FILTER: tl.constexpr,
    D: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """A program: what one tile adds to the sums of its rows and of its columns."""
    row, column = tl.program_id(0), tl.program_id(1)
    rows, columns = tl.load(num_rows), tl.load(num_columns)
    if (row * TILE < rows) & (column * TILE < columns):
        i, j = row * TILE + tl.arange(0, TILE), column * TILE + tl.arange(0, TILE)
        is_row, is_column = i < rows, j < columns
        cosines, place, is_negative, conflict = _tile(
            left, left_low, text, text_low, own_place, scale, row * TILE, column * TILE, rows, columns,
            threshold, FILTER, D, TILE, DEPTH,
        )  # fmt: skip
        is_own = place[:, None] == j[None, :]
        in_tile = is_row & (place // TILE == column)
        tl.store(positives + i, tl.sum(tl.where(is_own, cosines, 0.0), 1), in_tile)
        logits = cosines + tl.load(bias)
        count = tl.load(counts + j, is_column, 0.0)
        at = column.to(tl.int64) * n + i
        if FILTER:
            tl.store(conflicts + at, tl.sum(tl.where(conflict, count[None, :], 0.0), 1), is_row)
        if SIGMOID:
            losses = tl.where(is_negative, _softplus(logits), 0.0)
            tl.store(row_sum + at, tl.sum(losses * count[None, :], 1), is_row)
        else:
            logits = tl.where(is_negative, logits, EMPTY)
            top = tl.max(logits, 1)
            e = tl.where(is_negative, tl.exp(logits - top[:, None]), 0.0)
            tl.store(row_top + at, top, is_row)
            tl.store(row_sum + at, tl.sum(e * count[None, :], 1), is_row)
            top = tl.max(logits, 0)
            e = tl.where(is_negative, tl.exp(logits - top[None, :]), 0.0)
            at = row.to(tl.int64) * m + j
            tl.store(column_top + at, top, is_column)
            tl.store(column_sum + at, tl.sum(e, 0), is_column)


@triton.jit
def _softplus(x):
    """log(1 + exp(x)); its digits stay where it is small, as most pairs' are."""
    e = tl.exp(-tl.abs(x))
    # log(1 + e) by its series up to 0.1, where 1 + e has lost digits of e.
    series = e * (
        1 - e * (1 / 2 - e * (1 / 3 - e * (1 / 4 - e * (1 / 5 - e * (1 / 6 - e * (1 / 7 - e / 8))))))
    )
    return tl.maximum(x, 0.0) + tl.where(e < 0.1, series, tl.log(1.0 + e))


@triton.jit
def _weights(
    left, left_low, text, text_low, own_place, counts, num_rows, num_columns, scale, bias,
    positive_grad, row_tops, column_tops, row_grad, column_grad, factor, high, low, row_pulls,
    n, start, width, threshold,
    SIGMOID: tl.constexpr, FILTER: tl.constexpr,
    D: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """A program: with how much each pair of a tile pulls, times `factor`, positives among them."""
    rows, columns = tl.load(num_rows), tl.minimum(tl.load(num_columns), start + width)
    row, column = tl.program_id(0) * TILE, tl.program_id(1) * TILE
    i, local = row + tl.arange(0, TILE), column + tl.arange(0, TILE)
    j = start + local
    is_row, is_column = i < rows, j < columns
    cosines, place, is_negative, _ = _tile(
        left, left_low, text, text_low, own_place, scale, row, start + column, rows, columns,
        threshold, FILTER, D, TILE, DEPTH,
    )  # fmt: skip
    logits = cosines + tl.load(bias)
    by_all = tl.load(factor)
    count = tl.load(counts + j, is_column, 0.0)
    pull = (tl.load(row_grad + i, is_row, 0.0)[:, None] * count[None, :]) * by_all
    if SIGMOID:
        pull = tl.where(is_negative, pull / (1.0 + tl.exp(-logits)), 0.0)
        tl.store(row_pulls + tl.program_id(1).to(tl.int64) * n + i, tl.sum(pull, 1), is_row)
    else:
        pull = pull * tl.exp(logits - tl.load(row_tops + i, is_row, 0.0)[:, None])
        by_column = (tl.load(column_grad + j, is_column, 0.0) * by_all)[None, :]
        pull += by_column * tl.exp(logits - tl.load(column_tops + j, is_column, 0.0)[None, :])
        pull = tl.where(is_negative, pull, 0.0)
    own = tl.load(positive_grad + i, is_row, 0.0) * by_all
    pull = tl.where(place[:, None] == j[None, :], own[:, None], pull)
    upper = pull.to(tl.float16)
    at = i.to(tl.int64)[:, None] * width + local[None, :]
    inside = (local < width)[None, :]  # there is room for rows up to the end of the last tile
    tl.store(high + at, upper, inside)
    tl.store(low + at, ((pull - upper.to(tl.float32)) * LOW).to(tl.float16), inside)


class SplitRows(NamedTuple):
    """Unit vectors at their places, UNIT times as long, each the sum of two half-precision pieces.

    Attributes:
        high: (n, D) multiples of 1 / STEPS.
        low: (n, D) the rest.
        lengths: (n,) of the features that they were made of.
    """

    high: Tensor
    low: Tensor
    lengths: Tensor

    @staticmethod
    def of(features: Tensor, index: Tensor, count: Tensor) -> SplitRows:
        """Of features (n, D): the first `count` places get the rows at `index`, the others zeros."""
        features = features.contiguous()
        high, low = features.new_empty(2, *features.shape, dtype=torch.float16)
        lengths = features.new_empty(len(features), dtype=torch.float32)
        if features.numel():
            _split[(len(features),)](features, index, count, high, low, lengths, **_row(features.shape[1]))
        return SplitRows(high, low, lengths)

    def carried_on(
        self, pulls: Tensor, index: Tensor, count: Tensor, multiplier: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Gradients (n, D) for the features, in their own order, and (n,) those along the unit vectors."""
        gradient, along = torch.empty_like(pulls, dtype=dtype), torch.empty_like(self.lengths)
        if pulls.numel():
            _join[(len(pulls),)](
                pulls, *self, index, count, multiplier, gradient, along, **_row(pulls.shape[1])
            )
        return gradient, along


def _row(width: int) -> dict[str, int]:
    return {"D": width, "WIDTH": triton.next_power_of_2(width), "num_warps": 1}


def _add_product(total: Tensor, a: Tensor, b: Tensor, factor: float = 1.0) -> None:
    """total += factor * a @ b of half-precision matrices, summed in float32."""
    if total.is_cuda:
        torch.addmm(total, a, b, out_dtype=torch.float32, alpha=factor, out=total)
    else:
        total.addmm_(a.float(), b.float(), alpha=factor)


def _joined(tops: Tensor, sums: Tensor) -> Sums:
    """Sums of several tiles (tiles, n), each relative to its own top."""
    if not len(tops):
        return Sums(tops.new_full(tops.shape[1:], NOTHING), tops.new_zeros(tops.shape[1:]))
    top = tops.amax(0)
    return Sums(top, (sums * (tops - top).exp()).sum(0))


class _Seen:
    """Features at their places, as the kernels want them."""

    def __init__(self, left: Tensor, right: Tensor, scale: Tensor, bias: Tensor, layout: Layout) -> None:
        self.layout, self.dtypes = layout, (left.dtype, right.dtype)
        self.left = SplitRows.of(left, layout.rows, layout.num_rows)
        self.right = SplitRows.of(right, layout.columns, layout.num_columns)
        counted = (layout.own, layout.counts, layout.num_rows, layout.num_columns)
        self.scale = scale.detach().float().reshape(1)
        scalars = (self.scale, bias.detach().float().reshape(1))
        self.arguments = (*self.left[:2], *self.right[:2], *counted, *scalars)
        self.has_filter = layout.threshold is not None

    def constants(self, is_sigmoid: bool) -> dict[str, Any]:
        width = self.left.high.shape[1]
        shape = {"D": width, "TILE": TILE, "DEPTH": min(DEPTH, triton.next_power_of_2(max(16, width)))}
        return {"SIGMOID": is_sigmoid, "FILTER": self.has_filter, **shape, **LAUNCH}

    def to_rows(self, values: Tensor) -> Tensor:
        """What stands at the rows' places, in the rows' own order."""
        return torch.empty_like(values).index_copy_(0, self.layout.rows, values)

    def sums(self, is_sigmoid: bool) -> tuple[Tensor, Any, Any, Tensor]:
        """Positives, what rows and columns sum up to, at their places, and how many pairs are filtered.

        Sums of exponentials are `Sums`; those of softplus, of rows alone, plain tensors.
        """
        n, m = len(self.left.high), len(self.right.high)
        down, across = triton.cdiv(n, TILE), triton.cdiv(m, TILE)

        def filled(value: float, *shape: int) -> Tensor:
            return self.scale.new_full(shape, value)

        positives = filled(0.0, n)
        row_sum, conflicts = filled(0.0, across, n), filled(0.0, across if self.has_filter else 1, n)
        columns = (0, 0) if is_sigmoid else (down, m)
        row_top = filled(NOTHING, *((0, 0) if is_sigmoid else (across, n)))
        column_top, column_sum = filled(NOTHING, *columns), filled(0.0, *columns)
        if n and m:
            made = (positives, row_top, row_sum, column_top, column_sum, conflicts)
            threshold = self.layout.threshold or 0.0
            _forward[(down, across)](*self.arguments, *made, n, m, threshold, **self.constants(is_sigmoid))
        # Copies of a row's own text are filtered too, save the positive.
        copies = self.layout.counts[self.layout.own] - 1 if self.has_filter else 0.0
        is_row = torch.arange(n, device=positives.device) < self.layout.num_rows
        filtered = ((conflicts.sum(0) + copies) * is_row).sum()
        if is_sigmoid:
            return positives, row_sum.sum(0), column_sum, filtered
        return positives, _joined(row_top, row_sum), _joined(column_top, column_sum), filtered

    def gradients(
        self, is_sigmoid: bool, tops: tuple[Tensor, Tensor], grads: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """For rows and texts in their own order, for the scale, and the sum of the negatives' weights.

        Args:
            is_sigmoid: Whether sums are of softplus.
            tops: Largest logits by row and by column.
            grads: Those for positives, and for sums by row and by column.
        """
        n, m = len(self.left.high), len(self.right.high)
        left = self.scale.new_zeros(self.left.high.shape)
        right, total = self.scale.new_zeros(self.right.high.shape), self.scale.new_zeros(())
        factor = self._factor(*grads)
        most = max(TILE, WEIGHTS_AT_ONCE // max(1, n) // TILE * TILE)
        for start in range(0, m if n else 0, most):
            width = min(most, m - start)
            down, across = triton.cdiv(n, TILE), triton.cdiv(width, TILE)
            high, low = self.left.high.new_empty(2, down * TILE, width)
            pulls = total.new_zeros(across if is_sigmoid else 0, n)
            _weights[(down, across)](
                *self.arguments, grads[0], *tops, *grads[1:], factor, high, low, pulls, n, start, width,
                self.layout.threshold or 0.0, **self.constants(is_sigmoid),
            )  # fmt: skip
            total += pulls.sum()
            part = slice(start, start + width)
            for own, other, a, b in (
                (left, self.right, (high[:n], low[:n]), part),
                (right[part], self.left, (high[:n].T, low[:n].T), slice(None)),
            ):
                _add_product(own, a[0], other.high[b])
                _add_product(own, a[0], other.low[b])
                _add_product(own, a[1], other.high[b], 1 / LOW.value)
        to_scale = (1 / (factor * UNIT.value)).reshape(1)
        layout, by_scale = self.layout, self.scale * to_scale
        left, along = self.left.carried_on(left, layout.rows, layout.num_rows, by_scale, self.dtypes[0])
        right, _ = self.right.carried_on(right, layout.columns, layout.num_columns, by_scale, self.dtypes[1])
        return left, right, along.sum() / self.scale, total / factor

    def _factor(self, positive: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
        """By which weights are multiplied, so that none is above 1 and half precision holds it."""

        def largest(gradient: Tensor) -> Tensor:
            return gradient.abs().amax() if gradient.numel() else gradient.new_zeros(())

        most = largest(by_row) * largest(self.layout.counts) + largest(by_column)
        return (1 / torch.maximum(most, largest(positive)).clamp(min=1e-30)).reshape(1)


class LogSumExps(torch.autograd.Function):
    """(positive logits (n,), log-sum-exps by row (n,), by column (m,), filtered pairs) of features."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, scale: Tensor, layout: Layout) -> tuple[Tensor, ...]:
        seen = _Seen(left, right, scale, torch.zeros_like(scale), layout)
        positives, by_row, by_column, filtered = seen.sums(is_sigmoid=False)
        ctx.save_for_backward(left, right, scale, *by_row, *by_column)
        ctx.layout = layout
        ctx.mark_non_differentiable(filtered)
        return seen.to_rows(positives), seen.to_rows(by_row.logs()), by_column.logs(), filtered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        positive_grad, row_grad, column_grad, _ = (grad.float().contiguous() for grad in grads)
        left, right, scale, *sums = ctx.saved_tensors
        by_row, by_column, rows = Sums(*sums[:2]), Sums(*sums[2:]), ctx.layout.rows
        seen = _Seen(left, right, scale, torch.zeros_like(scale), ctx.layout)
        pulls = (positive_grad[rows], by_row.over(row_grad[rows]), by_column.over(column_grad))
        left, right, scale_grad, _ = seen.gradients(False, (by_row.tops, by_column.tops), pulls)
        return left, right, scale_grad.to(scale.dtype).view_as(scale), None


class SoftplusSums(torch.autograd.Function):
    """(scaled positive cosines (n,), sums of softplus by row (n,), filtered pairs) of features."""

    @staticmethod
    def forward(
        ctx: Any, left: Tensor, right: Tensor, scale: Tensor, bias: Tensor, layout: Layout
    ) -> tuple[Tensor, ...]:
        seen = _Seen(left, right, scale, bias, layout)
        positives, by_row, _, filtered = seen.sums(is_sigmoid=True)
        ctx.save_for_backward(left, right, scale, bias)
        ctx.layout = layout
        ctx.mark_non_differentiable(filtered)
        return seen.to_rows(positives), seen.to_rows(by_row), filtered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        positive_grad, row_grad, _ = (grad.float().contiguous() for grad in grads)
        left, right, scale, bias = ctx.saved_tensors
        seen, rows = _Seen(left, right, scale, bias, ctx.layout), ctx.layout.rows
        pulls = (positive_grad[rows], row_grad[rows], row_grad[:0])
        left, right, scale_grad, total = seen.gradients(True, (row_grad[:0], row_grad[:0]), pulls)
        made = (scale_grad.to(scale.dtype).view_as(scale), total.to(bias.dtype).view_as(bias))
        return left, right, *made, None
