"""The pair matrix tile by tile in PyTorch: where Triton does not run, beyond what the dense form can hold.

* Memory grows with n D, not with n^2: the backward pass makes each tile again.
* Positives stay out of the tiles: a row's loss is `softplus(logsumexp of negatives - positive)`, so that a
  nearly solved batch loses no digits.
* Conflicts are decided inside the tile. Texts that repeat make one column with a count, which is exact as
  equal texts always conflict; their gradient, summed over copies, goes to one of them.

Unlike the other forms this one waits for the device, to pick out what is real.

Shapes: n real rows of this rank, m real texts of the world, u columns (distinct texts), t tile, D shared
embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from open_cloc.objectives.pairs.dense import NOTHING
from open_cloc.objectives.pairs.sums import CountedPairs, Sums
from open_cloc.objectives.pairs.unit_rows import unit_rows
from open_cloc.precision import exact_products

TILE = {"cpu": 1024}  # rows and columns of a tile that fits the cache

DEVICE_TILE = 4096  # on accelerators, where starting a kernel costs more than its memory


@dataclass(frozen=True)
class Layout:
    """Which rows and columns there are, and which of their pairs are no negatives.

    Attributes:
        rows: (n,) real rows among the left features.
        columns: (u,) ascending; one copy of each distinct text among the right features.
        counts: (u,) how many copies there are.
        own: (n,) column of each row's text.
        threshold: Cosine of two texts above which their pair is no negative; None keeps all.
        tile: t.
    """

    rows: Tensor
    columns: Tensor
    counts: Tensor
    own: Tensor
    threshold: float | None
    tile: int


@dataclass(frozen=True)
class TiledPairs(CountedPairs):
    """As `DensePairs`, over real rows and columns only.

    Attributes:
        left: (rows, D) features as given, not normalised.
        right: (texts, D) text features as given, not normalised.
        layout: Says which of the features are rows and columns.
        text_index: (m,) column of each real text of the world.
        first: Row i's text is real text `first + i`.
    """

    left: Tensor
    right: Tensor
    layout: Layout
    text_index: Tensor
    first: int
    _filtered: list[Tensor] = field(default_factory=list)

    @property
    def mask(self) -> Tensor:
        """(m,) all True."""
        return torch.ones_like(self.text_index, dtype=torch.bool)

    @property
    def row_mask(self) -> Tensor:
        """(n,) all True."""
        return torch.ones_like(self.layout.rows, dtype=torch.bool)

    def logsumexps(self, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positive logits (n,), and log-sum-exps of the negatives' by row (n,) and by column (u,)."""
        return self._count(_LogSumExps.apply(self.left, self.right, scale, self.layout))

    def softplus_sums(self, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Positive logits less the bias (n,), and each row's sum over negatives of `softplus(logit)` (n,)."""
        return self._count(_SoftplusSums.apply(self.left, self.right, scale, bias, self.layout))


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
    """Find real rows and distinct texts.

    Args:
        left: (rows, D) features of this rank.
        right: (texts, D) text features of the world.
        mask: (texts,) True for the texts that count.
        first: Row i's own text is text `first + i`.
        threshold: Cosine of two texts above which their pair is no negative; None keeps all.
        text_ids: (texts,) int64, equal where texts are. Only for thresholds that equal texts pass.
        tile: Rows and columns of a tile; by the device if None.
    """
    real = mask.nonzero()[:, 0]  # (m,)
    rows = mask[first : first + len(left)].nonzero()[:, 0]  # (n,)
    real_first = int(mask[:first].sum())
    chosen, text_index = _distinct(None if text_ids is None else text_ids[real], len(real), real.device)
    layout = Layout(
        rows=rows,
        columns=real[chosen],
        counts=torch.bincount(text_index, minlength=len(chosen)),
        own=text_index[real_first : real_first + len(rows)],
        threshold=threshold,
        tile=tile or TILE.get(left.device.type, DEVICE_TILE),
    )
    return TiledPairs(left, right, layout, text_index, real_first)


def _distinct(text_ids: Tensor | None, num_texts: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ascending positions of the first copy of each text (u,), and which of them each text is (m,)."""
    positions = torch.arange(num_texts, device=device)
    if text_ids is None:
        return positions, positions
    ids, inverse = text_ids.unique(return_inverse=True)
    earliest = torch.full_like(ids, num_texts).scatter_reduce(0, inverse, positions, "amin")
    chosen, order = earliest.sort()
    return chosen, order.argsort()[inverse]


class _Tile(NamedTuple):
    """A tile of the pair matrix, and what it was made of.

    Attributes:
        rows: Which rows.
        columns: Which columns.
        scaled: (t, D) unit rows times the scale.
        texts: (t, D) unit columns.
        logits: (t, t), -inf where there are no negatives.
    """

    rows: slice
    columns: slice
    scaled: Tensor
    texts: Tensor
    logits: Tensor


class _Tiles:
    """A pair matrix, one tile after the other, each in the place of the one before."""

    def __init__(self, left: Tensor, right: Tensor, layout: Layout) -> None:
        self.layout = layout
        self.left, self.right = unit_rows(left, layout.rows), unit_rows(right, layout.columns)
        self.dtype = self.left.lengths.dtype
        self.counts = layout.counts.to(self.dtype)  # (u,)
        self.rooms = torch.empty(2, layout.tile**2, dtype=self.dtype, device=left.device)

    def all(self, scale: float, filtered: Tensor | None = None) -> Iterator[_Tile]:
        """Tiles of logits; the pairs that the filter leaves out are added to `filtered`, a scalar."""
        layout = self.layout
        for i in _slices(len(layout.rows), layout.tile):
            scaled, own = self.left[i].mul_(scale), layout.own[i]
            own_texts = self.right[own]  # (t, D)
            for j in _slices(len(layout.columns), layout.tile):
                texts = self.right[j]
                logits = self._product(0, scaled, texts)
                row, column = _positives(own, j)
                if layout.threshold is not None:
                    alike = self._product(1, own_texts, texts) > layout.threshold
                    alike[row, column] = True
                    logits.masked_fill_(alike, -torch.inf)
                    if filtered is not None:  # copies of a row's own text too, save the positive
                        filtered += (alike.to(self.dtype) @ self.counts[j]).sum().long() - len(row)
                else:
                    logits[row, column] = -torch.inf
                yield _Tile(i, j, scaled, texts, logits)

    def _product(self, room: int, rows: Tensor, texts: Tensor) -> Tensor:
        made = self.rooms[room, : len(rows) * len(texts)].view(len(rows), len(texts))
        return torch.mm(rows, texts.T, out=made)

    def positives(self) -> Tensor:
        """(n,) cosine of each row and its own text."""
        rows = torch.arange(len(self.left), device=self.counts.device)
        return self.left.cosines(rows, self.right, self.layout.own)


def _positives(own: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Places in a tile of rows that have their own text (t,) among its columns."""
    row = ((own >= columns.start) & (own < columns.stop)).nonzero()[:, 0]
    return row, own[row] - columns.start


def _slices(num: int, size: int) -> Iterator[slice]:
    for start in range(0, num, size):
        yield slice(start, min(start + size, num))


def _no_sums(count: int, like: Tensor) -> Sums:
    return Sums(like.new_full((count,), NOTHING), like.new_zeros(count))


def _add(total: Sums, place: slice, logits: Tensor, counts: Tensor | None = None) -> None:
    """Add the rows of some logits (p, q) to sums, each column as often as `counts` (q,) says."""
    top = torch.maximum(total.tops[place], logits.amax(1))
    exponentials = (logits - top[:, None]).exp_()
    added = exponentials.sum(1) if counts is None else exponentials @ counts
    total.sums[place] = total.sums[place] * (total.tops[place] - top).exp() + added
    total.tops[place] = top


class _LogSumExps(torch.autograd.Function):
    """(positive logits, log-sum-exps by row and by column, filtered pairs) of features, scale and layout."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, scale: Tensor, layout: Layout) -> tuple[Tensor, ...]:
        with exact_products(left.device):
            tiles = _Tiles(left, right, layout)
            rows = _no_sums(len(layout.rows), tiles.counts)
            columns = _no_sums(len(layout.columns), tiles.counts)
            filtered = layout.counts.new_zeros(())
            for tile in tiles.all(float(scale), filtered):
                _add(rows, tile.rows, tile.logits, tiles.counts[tile.columns])
                _add(columns, tile.columns, tile.logits.T)
            ctx.save_for_backward(left, right, scale, *rows, *columns)
            ctx.layout = layout
            ctx.mark_non_differentiable(filtered)
            return tiles.positives() * scale, rows.logs(), columns.logs(), filtered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, positive_grad: Tensor, row_grad: Tensor, column_grad: Tensor, _: Any) -> Any:
        left, right, scale, *sums = ctx.saved_tensors
        rows, columns = Sums(*sums[:2]), Sums(*sums[2:])
        tiles = _Tiles(left, right, ctx.layout)
        of_rows, of_columns = rows.over(row_grad), columns.over(column_grad)

        def weights(tile: _Tile) -> Tensor:
            i, j = tile.rows, tile.columns
            pull = (tile.logits - rows.tops[i, None]).exp_().mul_(of_rows[i, None] * tiles.counts[j])
            return pull.addcmul_(tile.logits.sub_(columns.tops[j]).exp_(), of_columns[j])

        return (*_gradients(tiles, left, right, scale, positive_grad, weights), None)


class _SoftplusSums(torch.autograd.Function):
    """(scaled positive cosines, sums of softplus by row, filtered pairs) of features, scale, bias, layout."""

    @staticmethod
    def forward(
        ctx: Any, left: Tensor, right: Tensor, scale: Tensor, bias: Tensor, layout: Layout
    ) -> tuple[Tensor, ...]:
        with exact_products(left.device):
            tiles = _Tiles(left, right, layout)
            sums = torch.zeros(len(layout.rows), dtype=tiles.dtype, device=left.device)
            filtered = layout.counts.new_zeros(())
            for tile in tiles.all(float(scale), filtered):
                sums[tile.rows] -= F.logsigmoid(tile.logits.add_(bias).neg_()) @ tiles.counts[tile.columns]
            ctx.save_for_backward(left, right, scale, bias)
            ctx.layout = layout
            ctx.mark_non_differentiable(filtered)
            return tiles.positives() * scale, sums, filtered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, positive_grad: Tensor, row_grad: Tensor, _: Any) -> Any:
        left, right, scale, bias = ctx.saved_tensors
        tiles = _Tiles(left, right, ctx.layout)
        bias_grad = torch.zeros_like(bias)

        def weights(tile: _Tile) -> Tensor:
            upstream = row_grad[tile.rows, None] * tiles.counts[tile.columns]
            pull = tile.logits.add_(bias).sigmoid_().mul_(upstream)
            bias_grad.add_(pull.sum())
            return pull

        return (*_gradients(tiles, left, right, scale, positive_grad, weights), bias_grad, None)


def _gradients(
    tiles: _Tiles,
    left: Tensor,
    right: Tensor,
    scale: Tensor,
    positive_grad: Tensor,
    weights: Callable[[_Tile], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for left and right features and the scale.

    Args:
        tiles: The pair matrix, tile by tile.
        left: The rows' features as given to the forward pass.
        right: The columns' features as given to the forward pass.
        scale: The logit scale as given to the forward pass.
        positive_grad: (n,) for the scaled positive cosines.
        weights: A tile -> the gradients for its logits (t, t); it may overwrite these.
    """
    with exact_products(left.device):
        layout, value = tiles.layout, float(scale)
        row_grad = torch.zeros(len(layout.rows), left.shape[1], dtype=tiles.dtype, device=left.device)
        column_grad = torch.zeros(len(layout.columns), right.shape[1], dtype=tiles.dtype, device=left.device)
        for tile in tiles.all(value):
            pull = weights(tile)
            row_grad[tile.rows].addmm_(pull, tile.texts)
            column_grad[tile.columns].addmm_(pull.T, tile.scaled)
        left_grad, right_grad = torch.zeros_like(left), torch.zeros_like(right)
        scale_grad = torch.zeros((), dtype=tiles.dtype, device=left.device)
        for i in _slices(len(layout.rows), layout.tile):
            unit, grad, positive = tiles.left[i], row_grad[i], positive_grad[i, None]
            # The positive and the negatives of a row nearly cancel: summed together they keep their digits.
            grad.addcmul_(tiles.right[layout.own[i]], positive)
            scale_grad += (grad * unit).sum(1).sum()
            grad.mul_(value)
            column_grad.index_add_(0, layout.own[i], unit * (positive * value))
            left_grad[layout.rows[i]] = tiles.left.without_length(grad, unit, i).to(left.dtype)
        for j in _slices(len(layout.columns), layout.tile):
            grad = tiles.right.without_length(column_grad[j], tiles.right[j], j)
            right_grad[layout.columns[j]] = grad.to(right.dtype)
        return left_grad, right_grad, scale_grad.to(scale.dtype).view_as(scale)
