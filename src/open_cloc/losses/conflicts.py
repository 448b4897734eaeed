"""Which pairs of texts are nearly the same, found without the matrix of all pairs.

For an orthonormal basis P of k directions, |P'(a - b)|^2 <= |a - b|^2 = 2 - 2 a.b for unit a and b. So
a.b > t implies a'.b' - (|a'|^2 + |b'|^2) / 2 > t - 1 for the projections a' = P'a and b' = P'b: one
product of width k + 2. The few pairs that pass are checked in full width; where many pass, the full
product decides.

Shapes: u texts, g of them on this rank, D shared embedding, k screen directions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SCREEN_WIDTH = 64
# What float32 may add to or take from the screen's product, the basis and the full product together.
SCREEN_MARGIN = 3e-5
SCREEN_SAMPLE = 1024  # texts that the basis is fitted to
# A pair checked by itself costs as much as this many in the full product.
PAIR_COST = 64
PAIRS_AT_ONCE = 8192

# (i,) indices of texts -> (i, D) unit texts in float32 or wider.
UnitTexts = Callable[[Tensor], Tensor]


@torch.no_grad()
def conflicting_pairs(
    unit: UnitTexts, rows: Tensor, num_texts: int, threshold: float, tile: int
) -> tuple[Tensor, Tensor]:
    """All pairs of different texts whose cosine is above the threshold.

    Waits for the device once a tile.

    Args:
        unit: Looks texts up.
        rows: (g,) ascending indices of the texts whose pairs are wanted.
        num_texts: u.
        threshold: In [-1, 1].
        tile: How many rows and columns are looked at together.

    Returns:
        Positions in `rows` and indices of texts, (pairs,) each, in no order.
    """
    columns = torch.arange(num_texts, device=rows.device)
    symmetric = len(rows) == num_texts
    screen = _screen(unit, columns, threshold)
    found: list[tuple[Tensor, Tensor]] = []
    for i in range(0, len(rows), tile):
        block = rows[i : i + tile]
        for j in range(i if symmetric else 0, num_texts, tile):
            a, b = _pairs_of_tile(unit, screen, block, columns[j : j + tile], threshold)
            found.append((a + i, b + j))
            if symmetric and j > i:
                found.append((b + j, a + i))
    empty = columns[:0]
    first = torch.cat([empty, *(a for a, _ in found)])
    second = torch.cat([empty, *(b for _, b in found)])
    different = rows[first] != second
    return first[different], second[different]


def _pairs_of_tile(
    unit: UnitTexts, screen: tuple[Tensor, Tensor] | None, rows: Tensor, columns: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """Positions (row, column) in the tile of pairs above the threshold."""
    if screen is not None:
        passed = screen[0][rows] @ screen[1][columns].T > threshold - 1 - SCREEN_MARGIN
        count = int(passed.sum())
        if count * PAIR_COST <= passed.numel():
            a, b = passed.nonzero(as_tuple=True) if count else (rows[:0], rows[:0])
            alike = [
                (unit(rows[x]) * unit(columns[y])).sum(1) > threshold
                for x, y in zip(a.split(PAIRS_AT_ONCE), b.split(PAIRS_AT_ONCE))
            ]
            keep = torch.cat(alike)
            return a[keep], b[keep]
    return (unit(rows) @ unit(columns).T > threshold).nonzero(as_tuple=True)  # type: ignore[return-value]


def _screen(unit: UnitTexts, columns: Tensor, threshold: float) -> tuple[Tensor, Tensor] | None:
    """Texts as (u, k + 2) rows and columns, whose products are a'.b' - (|a'|^2 + |b'|^2) / 2.

    None where the projection is no narrower than the texts by much.
    """
    sample = unit(columns[:: max(1, len(columns) // SCREEN_SAMPLE)]).float()
    if len(sample) < SCREEN_WIDTH or sample.shape[1] <= 2 * SCREEN_WIDTH:
        return None
    basis = _leading_directions(sample)
    projected = torch.cat([unit(part).float() @ basis for part in columns.split(PAIRS_AT_ONCE)])  # (u, k)
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
