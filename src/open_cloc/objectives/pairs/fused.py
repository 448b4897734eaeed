"""The pair matrix as kernels that keep nothing of it: for GPUs, beyond what the dense form can hold.

Nothing waits for the device: how many rows, texts and conflicts there are is known to it alone. Rows that do
not count and copies of texts stay, behind the others, where whole tiles of them are passed over. Conflicts
are decided inside the tile. The kernels are in `fused_triton.py`; `tiled.py` computes the same in PyTorch.

Shapes: n rows of this rank, m texts of the world, D shared embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from open_cloc.objectives.pairs.layout import Layout, lay_out
from open_cloc.objectives.pairs.sums import CountedPairs


@dataclass(frozen=True)
class FusedPairs(CountedPairs):
    """As `DensePairs`, but that features are as they were given: the kernels make unit vectors of them.

    Attributes:
        left: (n, D) features of rows.
        right: (m, D) features of texts.
        mask: (m,) True for texts that count, and with them for their rows.
        first: Row i's text is text `first + i`.
        layout: In which order the kernels see them.
    """

    left: Tensor
    right: Tensor
    mask: Tensor
    first: int
    layout: Layout
    _filtered: list[Tensor] = field(default_factory=list)

    @property
    def row_mask(self) -> Tensor:
        """(n,) True for rows that count."""
        return self.mask[self.first : self.first + len(self.left)]

    @property
    def text_index(self) -> Tensor:
        """(m,) column of each text."""
        return self.layout.text_index

    def logsumexps(self, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positive logits (n,), and log-sum-exps of the negatives' by row (n,) and by column (m,)."""
        from open_cloc.objectives.pairs.fused_triton import LogSumExps

        return self._count(LogSumExps.apply(self.left, self.right, scale, self.layout))

    def softplus_sums(self, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Positive logits less the bias (n,), and each row's sum over negatives of `softplus(logit)` (n,)."""
        from open_cloc.objectives.pairs.fused_triton import SoftplusSums

        return self._count(SoftplusSums.apply(self.left, self.right, scale, bias, self.layout))


def fused_pairs(
    left: Tensor,
    right: Tensor,
    mask: Tensor,
    first: int,
    threshold: float | None,
    text_ids: Tensor | None = None,
) -> FusedPairs:
    """Find which texts are copies.

    Args:
        left: (n, D) features of this rank's rows.
        right: (m, D) text features of the world.
        mask: (m,) True for the texts that count.
        first: Row i's own text is text `first + i`.
        threshold: Cosine of two texts above which their pair is no negative; None keeps all.
        text_ids: (m,) int64, equal where texts are. Only for thresholds that equal texts pass.
    """
    row_mask = mask[first : first + len(left)]
    layout = lay_out(mask, row_mask, first, threshold, text_ids)
    return FusedPairs(left, right, mask, first, layout)
