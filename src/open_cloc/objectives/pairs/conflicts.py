"""Which pairs of texts are nearly the same, found without the matrix of all pairs.

For an orthonormal basis P of k directions, |P'(a - b)|^2 <= |a - b|^2 = 2 - 2 a.b for unit a and b. So
a.b > t implies a'.b' - (|a'|^2 + |b'|^2) / 2 > t - 1 for the projections a' = P'a and b' = P'b: one
product of width k + 2. The few pairs that pass are checked in full width; where many pass, the full
product decides. Texts that have nearly all become the same would make a list as long as the matrix: none is
made then, and `tiled` takes the full product once more wherever it needs to know.

Shapes: u texts, g of them on this rank, D shared embedding, k screen directions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from open_cloc.objectives.pairs.unit_rows import ROWS_AT_ONCE, UnitRows

SCREEN_WIDTH = 64

# What float32 may add to or take from the screen's product, the basis and the full product together.
SCREEN_MARGIN = 3e-5

SCREEN_SAMPLE = 1024  # texts that the basis is fitted to

# A pair checked by itself costs as much as this many in the full product.
PAIR_COST = 64

# Pairs listed for each text, on average. With what sorting them takes, 8 KB a text.
LISTED_PAIRS = 128


@torch.no_grad()
def conflicting_pairs(
    texts: UnitRows, rows: Tensor, threshold: float, tile: int
) -> tuple[Tensor, Tensor] | None:
    """All pairs of different texts whose cosine is above the threshold.

    Waits for the device once a tile.

    Args:
        texts: The u texts.
        rows: (g,) ascending indices of those whose pairs are wanted.
        threshold: Cosine above which two texts conflict, in [-1, 1].
        tile: Number of rows and columns that are looked at together.

    Returns:
        Positions in `rows` and indices of texts, (pairs,) each, in no order; None where there are more than
        `LISTED_PAIRS` for each of `rows`.
    """
    columns = torch.arange(len(texts), device=rows.device)
    symmetric = len(rows) == len(texts)
    screen = _screen(texts, columns)
    found = _PairList(LISTED_PAIRS * len(rows), rows.device)
    for i in range(0, len(rows), tile):
        block = rows[i : i + tile]
        for j in range(i if symmetric else 0, len(texts), tile):
            a, b = _pairs_of_tile(texts, screen, block, columns[j : j + tile], threshold)
            mirrored = symmetric and j > i
            if found.count + (2 if mirrored else 1) * len(a) > found.limit:
                return None
            found.add(a + i, b + j)
            if mirrored:
                found.add(b + j, a + i)
    return found.first[: found.count], found.second[: found.count]


class _PairList:
    """Pairs in memory that doubles when it is full, up to a limit.

    A list of small tensors would leave one in the place of each tile's large ones, so that the next tile's
    found no room there: at 32,768 regions memory grew by a gigabyte of such holes.
    """

    def __init__(self, limit: int, device: torch.device) -> None:
        self.limit, self.count = limit, 0
        self.first, self.second = torch.empty(2, min(4096, limit), dtype=torch.int64, device=device)

    def add(self, first: Tensor, second: Tensor) -> None:
        end = self.count + len(first)
        if end > len(self.first):
            size = min(self.limit, max(end, 2 * len(self.first)))
            self.first, self.second = (self._grown(x, size) for x in (self.first, self.second))
        self.first[self.count : end] = first
        self.second[self.count : end] = second
        self.count = end

    def _grown(self, indices: Tensor, size: int) -> Tensor:
        larger = indices.new_empty(size)
        larger[: self.count] = indices[: self.count]
        return larger


@torch.no_grad()
def count_conflicts(texts: UnitRows, rows: Tensor, counts: Tensor, threshold: float, tile: int) -> Tensor:
    """(g,) how many texts conflict with each of `rows`; arguments as above, and (u,) copies of each text."""
    total = torch.zeros_like(rows)
    columns = torch.arange(len(texts), device=rows.device)
    for i in range(0, len(rows), tile):
        block = rows[i : i + tile]
        for part in columns.split(tile):
            conflict = (texts[block] @ texts[part].T > threshold) & (block[:, None] != part)
            total[i : i + tile] += (conflict * counts[part]).sum(1)
    return total


def _pairs_of_tile(
    texts: UnitRows, screen: tuple[Tensor, Tensor] | None, rows: Tensor, columns: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """Positions (row, column) in the tile of pairs of different texts above the threshold."""
    if screen is not None:
        passed = screen[0][rows] @ screen[1][columns].T > threshold - 1 - SCREEN_MARGIN
        if int(passed.count_nonzero()) * PAIR_COST <= passed.numel():
            a, b = _different(passed, rows, columns)
            alike = texts.cosines(rows[a], texts, columns[b]) > threshold
            return a[alike], b[alike]
    return _different(texts[rows] @ texts[columns].T > threshold, rows, columns)


def _different(chosen: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of the chosen pairs of a tile, but for those of a text with itself."""
    a, b = chosen.nonzero(as_tuple=True)
    different = rows[a] != columns[b]
    return a[different], b[different]


def _screen(texts: UnitRows, columns: Tensor) -> tuple[Tensor, Tensor] | None:
    """Texts as (u, k + 2) rows and columns, whose products are a'.b' - (|a'|^2 + |b'|^2) / 2.

    None where texts are few, or hardly wider than the screen.
    """
    sample = texts[columns[:: max(1, len(columns) // SCREEN_SAMPLE)]].float()
    if len(sample) < SCREEN_WIDTH or sample.shape[1] <= 2 * SCREEN_WIDTH:
        return None
    basis = _leading_directions(sample)
    projected = torch.cat([texts[part].float() @ basis for part in columns.split(ROWS_AT_ONCE)])  # (u, k)
    norms = projected.square().sum(1, keepdim=True) / -2
    ones = torch.ones_like(norms)
    return torch.cat([projected, norms, ones], dim=1), torch.cat([projected, ones, norms], dim=1)


def _leading_directions(sample: Tensor) -> Tensor:
    """Orthonormal (D, k) near the directions in which (i, D) texts differ most, by subspace iteration.

    The screen is exact for any orthonormal basis; a good one lets fewer pairs pass.
    """
    centred = sample - sample.mean(0)
    basis = centred[:SCREEN_WIDTH].T
    for _ in range(4):
        basis = torch.linalg.qr(centred.T @ (centred @ basis))[0]
    return basis
