"""Datasets of numbered samples, with and without shards, as the tests of orders need them."""

from __future__ import annotations

import numpy as np

from open_cloc.data.order import (
    Order,
)
from open_cloc.samples import RegionSample


class Numbers:
    """Samples whose key says the dataset and the number; shards of given sizes."""

    def __init__(self, name: str, sizes: list[int], remote: bool = False) -> None:
        self.name, self.shard_sizes, self.remote = name, np.array(sizes), remote
        self.asked: list[list[int]] = []

    def __len__(self) -> int:
        return int(self.shard_sizes.sum())

    def __getitem__(self, index: int) -> RegionSample:
        return RegionSample(f"{self.name}{index}", np.zeros((1, 1, 3), np.uint8))

    def prefetch(self, shards: list[int]) -> None:
        self.asked.append(list(shards))


class Plain(list[RegionSample]):
    """A dataset without shards."""


def in_order(order: Order, count: int, start: int = 0) -> list[int]:
    return [order.index(position) for position in range(start, start + count)]


SIZES = [3, 5, 0, 4, 1, 7, 2, 6]  # 28 samples
