"""Kernels of the fused pair matrix: a tile's logits and conflicts live in registers, and only sums leave it.

A product of unit vectors is made of half-precision pieces, `hi hi + hi lo + lo hi`, with float32 sums: an
error of 1e-7 of a cosine at the speed of half precision, whatever the user's setting of TF32.

The forward pass gives each tile's largest logit and its sum of exponentials, by row and by column at once;
torch adds tiles up. The backward pass makes the tile again, writes the weights with which it pulls, as two
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
WEIGHTS_AT_ONCE = 2**25  # of the backward pass, in memory
# The lower piece of a weight is kept that much larger, and rows are that long when they are split: of what is
# shorter, half precision has no digits for the lower piece.
LOW, UNIT = 2048.0, 64.0
EMPTY = tl.constexpr(-1e30)  # as `NOTHING`


@triton.jit
def _products(
    a_high, a_low, b_high, b_low, i, j, is_row, is_column,
    D: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Products of rows i of one matrix and rows j of another: (TILE, TILE)."""
    product = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, D, DEPTH):
        k = start + tl.arange(0, DEPTH)
        a = i[:, None] * D + k[None, :]
        b = j[None, :] * D + k[:, None]
        is_a, is_b = is_row[:, None] & (k < D)[None, :], is_column[None, :] & (k < D)[:, None]
        high, other = tl.load(a_high + a, is_a, 0.0), tl.load(b_high + b, is_b, 0.0)
        product = tl.dot(high, other, product)
        product = tl.dot(high, tl.load(b_low + b, is_b, 0.0), product)
        product = tl.dot(tl.load(a_low + a, is_a, 0.0), other, product)
    return product


@triton.jit
def _tile(
    left, left_low, text, text_low, own, own_low, own_place, scale, bias, i, j, is_row, is_column, threshold,
    FILTER: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Logits of a tile, which of them are negatives, and which conflict."""
    s = _products(left, left_low, text, text_low, i, j, is_row, is_column, D, TILE, DEPTH)
    logits = s * tl.load(scale) + tl.load(bias)
    place = tl.load(own_place + i, is_row, -1)
    other = is_row[:, None] & is_column[None, :] & (place[:, None] != j[None, :])
    conflict = other
    if FILTER:
        c = _products(own, own_low, text, text_low, i, j, is_row, is_column, D, TILE, DEPTH)
        conflict = other & (c > threshold)
        other = other & (c <= threshold)
    return logits, other, conflict


@triton.jit
def _forward(
    left, left_low, text, text_low, own, own_low, own_place, counts, num_rows, num_columns, scale, bias,
    row_top, row_sum, column_top, column_sum, conflicts, n, m, threshold,
    SIGMOID: tl.constexpr, FILTER: tl.constexpr,
    D: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """A program: what one tile adds to the sums of its rows and of its columns."""
    row, column = tl.program_id(0), tl.program_id(1)
    rows, columns = tl.load(num_rows), tl.load(num_columns)
    if (row * TILE < rows) & (column * TILE < columns):
        i, j = row * TILE + tl.arange(0, TILE), column * TILE + tl.arange(0, TILE)
        is_row, is_column = i < rows, j < columns
        logits, is_negative, conflict = _tile(
            left, left_low, text, text_low, own, own_low, own_place, scale, bias, i, j, is_row, is_column,
            threshold, FILTER, D, TILE, DEPTH,
        )  # fmt: skip
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
    left, left_low, text, text_low, own, own_low, own_place, counts, num_rows, num_columns, scale, bias,
    row_tops, column_tops, row_grad, column_grad, factor, high, low, start, width, threshold,
    SIGMOID: tl.constexpr, FILTER: tl.constexpr, LOW: tl.constexpr,
    D: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """A program: with how much each pair of a tile pulls, times `factor`; zeros where it is no negative."""
    rows, columns = tl.load(num_rows), tl.load(num_columns)
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    local = tl.program_id(1) * TILE + tl.arange(0, TILE)
    j = start + local
    is_row, is_column = i < rows, (j < columns) & (local < width)
    logits, is_negative, _ = _tile(
        left, left_low, text, text_low, own, own_low, own_place, scale, bias, i, j, is_row, is_column,
        threshold, FILTER, D, TILE, DEPTH,
    )  # fmt: skip
    count = tl.load(counts + j, is_column, 0.0)
    pull = (tl.load(row_grad + i, is_row, 0.0)[:, None] * count[None, :]) * tl.load(factor)
    if SIGMOID:
        pull = pull / (1.0 + tl.exp(-logits))
    else:
        pull = pull * tl.exp(logits - tl.load(row_tops + i, is_row, 0.0)[:, None])
        by_column = (tl.load(column_grad + j, is_column, 0.0) * tl.load(factor))[None, :]
        pull += by_column * tl.exp(logits - tl.load(column_tops + j, is_column, 0.0)[None, :])
    pull = tl.where(is_negative, pull, 0.0)
    upper = pull.to(tl.float16)
    at = i.to(tl.int64)[:, None] * width + local[None, :]
    inside = (local < width)[None, :]  # there is room for rows up to the end of the last tile
    tl.store(high + at, upper, inside)
    tl.store(low + at, ((pull - upper.to(tl.float32)) * LOW).to(tl.float16), inside)


class Pieces(NamedTuple):
    """Rows as a sum of two half-precision pieces."""

    high: Tensor
    low: Tensor


def _split(rows: Tensor) -> Pieces:
    long = rows * UNIT
    high = long.half()
    return Pieces(high, (long - high.float()).half())


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Half-precision matrices multiplied, summed in float32."""
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


def _joined(tops: Tensor, sums: Tensor) -> Sums:
    """Sums of several tiles (tiles, n), each relative to its own top."""
    if not len(tops):
        return Sums(tops.new_full(tops.shape[1:], NOTHING), tops.new_zeros(tops.shape[1:]))
    top = tops.amax(0)
    return Sums(top, (sums * (tops - top).exp()).sum(0))


class _Seen:
    """Features at their places, as the kernels want them."""

    def __init__(self, left: Tensor, right: Tensor, scale: Tensor, bias: Tensor, layout: Layout) -> None:
        self.layout = layout
        self.left, self.right = left[layout.rows], right[layout.columns]
        self.own = self.right[layout.own]
        self.left_pieces, self.right_pieces = _split(self.left), _split(self.right)
        own = (piece[layout.own].contiguous() for piece in self.right_pieces)
        counted = (layout.own, layout.counts, layout.num_rows, layout.num_columns)
        scalars = ((scale.detach().float() / UNIT**2).reshape(1), bias.detach().float().reshape(1))
        self.arguments = (*self.left_pieces, *self.right_pieces, *own, *counted, *scalars)
        self.threshold = (layout.threshold or 0.0) * UNIT**2
        self.has_filter = layout.threshold is not None

    def constants(self, is_sigmoid: bool) -> dict[str, Any]:
        width = self.left.shape[1]
        shape = {"D": width, "TILE": TILE, "DEPTH": min(DEPTH, triton.next_power_of_2(max(16, width)))}
        return {"SIGMOID": is_sigmoid, "FILTER": self.has_filter, **shape}

    def to_rows(self, values: Tensor) -> Tensor:
        """What stands at the rows' places, in the rows' own order."""
        return torch.empty_like(values).index_copy_(0, self.layout.rows, values)

    def positives(self, scale: Tensor) -> Tensor:
        """(n,) the scale times each row's cosine with its text, in the rows' own order."""
        return self.to_rows((self.left * self.own).sum(1)) * scale.detach().float()

    def sums(self, is_sigmoid: bool) -> tuple[Any, Any, Tensor]:
        """What rows and columns sum up to, at their places, and how many pairs are filtered.

        Sums of exponentials are `Sums`; those of softplus, of rows alone, plain tensors.
        """
        n, m = len(self.left), len(self.right)
        down, across = triton.cdiv(n, TILE), triton.cdiv(m, TILE)

        def filled(value: float, *shape: int) -> Tensor:
            return self.left.new_full(shape, value, dtype=torch.float32)

        row_sum, conflicts = filled(0.0, across, n), filled(0.0, across if self.has_filter else 1, n)
        columns = (0, 0) if is_sigmoid else (down, m)
        row_top = filled(NOTHING, *((0, 0) if is_sigmoid else (across, n)))
        column_top, column_sum = filled(NOTHING, *columns), filled(0.0, *columns)
        if n and m:
            made = (row_top, row_sum, column_top, column_sum, conflicts)
            _forward[(down, across)](
                *self.arguments, *made, n, m, self.threshold, **self.constants(is_sigmoid)
            )
        # Copies of a row's own text are filtered too, save the positive.
        copies = self.layout.counts[self.layout.own] - 1 if self.has_filter else 0.0
        is_row = torch.arange(n, device=self.left.device) < self.layout.num_rows
        filtered = ((conflicts.sum(0) + copies) * is_row).sum()
        if is_sigmoid:
            return row_sum.sum(0), column_sum, filtered
        return _joined(row_top, row_sum), _joined(column_top, column_sum), filtered

    def gradients(
        self, is_sigmoid: bool, by_row: Tensor, by_column: Tensor, row_grad: Tensor, column_grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """For rows and texts at their places, divided by the scale, and the sum of all weights."""
        n, m = len(self.left), len(self.right)
        left_grad, right_grad = torch.zeros_like(self.left), torch.zeros_like(self.right)
        total = self.left.new_zeros(())
        # No weight is then above 1, so that half precision holds it.
        largest = row_grad.abs().amax() * self.layout.counts.amax() if n and m else total
        largest = largest + (column_grad.abs().amax() if column_grad.numel() else 0.0)
        factor = (1 / largest.clamp(min=1e-30)).reshape(1)
        most = max(TILE, WEIGHTS_AT_ONCE // max(1, n) // TILE * TILE)
        for start in range(0, m if n else 0, most):
            width = min(most, m - start)
            high, low = self.left.new_empty(2, triton.cdiv(n, TILE) * TILE, width, dtype=torch.float16)
            _weights[(triton.cdiv(n, TILE), triton.cdiv(width, TILE))](
                *self.arguments, by_row, by_column, row_grad, column_grad, factor, high, low, start, width,
                self.threshold, LOW=LOW, **self.constants(is_sigmoid),
            )  # fmt: skip
            high, low = high[:n], low[:n]
            texts = Pieces(*(piece[start : start + width] for piece in self.right_pieces))
            left_grad += _product(high, texts.high) + _product(high, texts.low)
            left_grad += _product(low, texts.high) / LOW
            rows = self.left_pieces
            right_grad[start : start + width] = (
                _product(high.T, rows.high) + _product(high.T, rows.low) + _product(low.T, rows.high) / LOW
            )
            if is_sigmoid:
                total += high.sum(dtype=torch.float32) + low.sum(dtype=torch.float32) / LOW
        return left_grad / (factor * UNIT), right_grad / (factor * UNIT), total / factor

    def finish(
        self, left_grad: Tensor, right_grad: Tensor, scale: Tensor, positive_grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients for features in their own order, and for the scale, those of the positives included."""
        positive_grad = positive_grad[self.layout.rows][:, None]
        # The positive and the negatives of a row nearly cancel: summed together they keep their digits.
        left_grad = left_grad + positive_grad * self.own
        right_grad = right_grad.index_add_(0, self.layout.own.long(), positive_grad * self.left)
        scale_grad = (left_grad * self.left).sum(1).sum()
        left_grad, right_grad = left_grad * scale.detach().float(), right_grad * scale.detach().float()
        right = torch.empty_like(right_grad).index_copy_(0, self.layout.columns, right_grad)
        return self.to_rows(left_grad), right, scale_grad.to(scale.dtype).view_as(scale)


class LogSumExps(torch.autograd.Function):
    """(positive logits (n,), log-sum-exps by row (n,), by column (m,), filtered pairs) of unit features."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, scale: Tensor, layout: Layout) -> tuple[Tensor, ...]:
        seen = _Seen(left, right, scale, torch.zeros_like(scale), layout)
        by_row, by_column, filtered = seen.sums(is_sigmoid=False)
        ctx.save_for_backward(left, right, scale, *by_row, *by_column)
        ctx.layout = layout
        ctx.mark_non_differentiable(filtered)
        return seen.positives(scale), seen.to_rows(by_row.logs()), by_column.logs(), filtered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        positive_grad, row_grad, column_grad, _ = (grad.float().contiguous() for grad in grads)
        left, right, scale, *sums = ctx.saved_tensors
        by_row, by_column = Sums(*sums[:2]), Sums(*sums[2:])
        seen = _Seen(left, right, scale, torch.zeros_like(scale), ctx.layout)
        row_grad, column_grad = by_row.over(row_grad[ctx.layout.rows]), by_column.over(column_grad)
        left_grad, right_grad, _ = seen.gradients(False, by_row.tops, by_column.tops, row_grad, column_grad)
        return (*seen.finish(left_grad, right_grad, scale, positive_grad), None)


class SoftplusSums(torch.autograd.Function):
    """(scaled positive cosines (n,), sums of softplus by row (n,), filtered pairs) of unit features."""

    @staticmethod
    def forward(
        ctx: Any, left: Tensor, right: Tensor, scale: Tensor, bias: Tensor, layout: Layout
    ) -> tuple[Tensor, ...]:
        seen = _Seen(left, right, scale, bias, layout)
        by_row, _, filtered = seen.sums(is_sigmoid=True)
        ctx.save_for_backward(left, right, scale, bias)
        ctx.layout = layout
        ctx.mark_non_differentiable(filtered)
        return seen.positives(scale), seen.to_rows(by_row), filtered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        positive_grad, row_grad, _ = (grad.float().contiguous() for grad in grads)
        left, right, scale, bias = ctx.saved_tensors
        seen = _Seen(left, right, scale, bias, ctx.layout)
        row_grad, unused = row_grad[ctx.layout.rows], row_grad[:0]
        left_grad, right_grad, total = seen.gradients(True, unused, unused, row_grad, unused)
        made = seen.finish(left_grad, right_grad, scale, positive_grad)
        return (*made, total.to(bias.dtype).view_as(bias), None)
