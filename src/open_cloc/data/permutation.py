"""Random orders of n things: a small one written down, a large one computed place by place.

Both are pure functions of their key. What is written down is uniform among all orders, and those that version
0.1 had; what is computed takes no memory however large n is.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import numpy as np

MOST_WRITTEN = 2**17  # things whose order is written down: 1 MiB
ROUNDS = 8
BLOCK = 1024  # places that are computed together: one costs as much as a hundred

WRITTEN, COMPUTED = 1, 2  # kinds of order of many things, as checkpoints name them: 0.1 wrote down each


def permutation(key: Sequence[int], length: int, kind: int = COMPUTED) -> Blocks | np.ndarray:
    """A random order of the numbers below `length`.

    Args:
        key: Numbers that it follows from.
        length: How many.
        kind: `WRITTEN` as version 0.1 did, for runs that it began; `COMPUTED` where they are many.
    """
    if kind == WRITTEN or length <= MOST_WRITTEN:
        return np.random.default_rng(key).permutation(length)
    return Blocks(Feistel(key, length))


def permuted(key: Sequence[int], length: int, kind: int = COMPUTED) -> np.ndarray:
    """The whole of a random order, (length,) int64."""
    order = permutation(key, length, kind)
    return order if isinstance(order, np.ndarray) else order.network(np.arange(length))


class Feistel:
    """A permutation by a Feistel network over a rectangle of about n fields.

    A number is a field's row and column. Each round adds to the one a hash of the other, which can be undone,
    so that no two fields go to the same; numbers past n walk on until they land below it. The rectangle has
    less than sqrt(n) fields more than n, hence hardly any does.
    """

    def __init__(self, key: Sequence[int], length: int, rounds: int = ROUNDS) -> None:
        """Choose the rounds.

        Args:
            key: Numbers that the permutation follows from.
            length: How many numbers are permuted, at least 1 and below 2^62.
            rounds: Pairs of additions.
        """
        self.length = length
        self.rows = np.uint64(isqrt(length - 1) + 1)  # the root, rounded up: a single row would only turn
        self.columns = np.uint64(-(-length // int(self.rows)))
        self.keys = np.random.SeedSequence(key).generate_state(2 * rounds, np.uint64)

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """What stands at some places.

        Args:
            places: Any shape, of whole numbers below `length`.

        Returns:
            The same shape, int64.
        """
        numbers = self._once(places.astype(np.uint64).ravel())
        astray = np.flatnonzero(numbers >= self.length)
        while len(astray):
            numbers[astray] = self._once(numbers[astray])
            astray = astray[numbers[astray] >= self.length]
        return numbers.astype(np.int64).reshape(places.shape)

    def _once(self, numbers: np.ndarray) -> np.ndarray:
        rows, columns = np.divmod(numbers, self.columns)
        for one, other in self.keys.reshape(-1, 2):
            rows = (rows + _mixed(columns ^ one) % self.rows) % self.rows
            columns = (columns + _mixed(rows ^ other) % self.columns) % self.columns
        return rows * self.columns + columns


class Blocks:
    """Single places of a Feistel network, computed many at a time; neighbours are asked for together."""

    def __init__(self, network: Feistel) -> None:
        self.network = network
        self._block = -1

    def __getitem__(self, place: int) -> int:
        block, inside = divmod(place, BLOCK)
        if block != self._block:
            start = block * BLOCK
            self._values = self.network(np.arange(start, min(start + BLOCK, self.network.length)))
            self._block = block
        return int(self._values[inside])


def _mixed(values: np.ndarray) -> np.ndarray:
    """64 bits of which each depends on all of the input's (the end of SplitMix64)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))
