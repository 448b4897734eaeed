"""Sums of exponentials, for log-sum-exps, and pairs that count what their filter leaves out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from open_cloc.objectives.pairs.dense import NOTHING


class Sums(NamedTuple):
    """Sums (n,), each relative to its largest logit: differences to a logit are exact, to a logarithm not.

    Attributes:
        tops: (n,) largest logits.
        sums: (n,) of `exp(logit - top)`; 0 where nothing was summed.
    """

    tops: Tensor
    sums: Tensor

    def logs(self) -> Tensor:
        """Logarithms of the sums, absolute."""
        return torch.where(self.sums == 0, NOTHING, self.sums.log() + self.tops)

    def over(self, gradient: Tensor) -> Tensor:
        """Gradients for the logarithms, divided by the sums; 0 where nothing was summed."""
        return torch.where(self.sums == 0, 0.0, gradient / self.sums)


class CountedPairs(ABC):
    """Pairs that learn how many of them are filtered while they are summed."""

    left: Tensor
    _filtered: list[Tensor]

    @abstractmethod
    def logsumexps(self, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `DensePairs`."""

    @property
    def num_filtered(self) -> Tensor:
        """Scalar, how many of the pairs the conflict filter leaves out."""
        if not self._filtered:
            with torch.no_grad():
                self.logsumexps(torch.ones((), device=self.left.device))
        return self._filtered[0]

    def _count(self, made: tuple[Tensor, ...]) -> Any:
        """What a sum made, less its last, the filtered pairs."""
        *found, filtered = made
        self._filtered[:] = [filtered]
        return tuple(found)
