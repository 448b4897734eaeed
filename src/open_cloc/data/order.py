"""Which sample stands where in a run.

It follows from numbers alone, so that any process can say what the i-th sample of a run is: the order is a
pure function of (seed, epoch, position), and where weights are given, the source of each position too. No
memory grows with the number of samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np

from open_cloc.data.annotations import SampleDataset
from open_cloc.data.mixture import PERIOD, Mixture, is_remote, shard_sizes
from open_cloc.data.permutation import COMPUTED, Blocks, permutation, permuted
from open_cloc.errors import UserError

WINDOW_SHARDS = 16  # shards that are mixed at a time where they are remote
EPOCH, SHARDS, SAMPLES = 1, 3, 4  # separate random streams of one seed; 2 is the loader's draws


class Order(Protocol):
    """Which sample stands at a position of the run."""

    def index(self, position: int) -> int:
        """Number of the sample."""
        ...

    def other(self, position: int, rng: np.random.Generator) -> int:
        """Number of a random sample that may stand in for a bad one at that position."""
        ...


def order_of(
    dataset: SampleDataset,
    seed: Sequence[int],
    shuffle: bool,
    shuffle_shards: int,
    lane: tuple[int, int] = (0, 1),
    kind: int = COMPUTED,
) -> Order:
    """The order in which a run goes through a dataset.

    Args:
        dataset: Any dataset; a `Mixture` is looked into.
        seed: Where every random choice comes from.
        shuffle: Visit each epoch in a new order.
        shuffle_shards: Shards whose samples are mixed at a time; 0 mixes whole epochs, but remote shards by
            `WINDOW_SHARDS`.
        lane: The number of a lane, and how many there are; of n lanes, each visits every n-th shard.
        kind: How orders of many samples come about, as for `permutation`.
    """
    if isinstance(dataset, Mixture) and dataset.weights is not None:
        orders = [
            order_of(source, (*seed, number), shuffle, shuffle_shards, lane, kind)
            for number, source in enumerate(dataset.sources)
        ]
        return WeightedOrder(orders, dataset.weights, dataset.starts)
    if not shuffle:
        return PlainOrder(len(dataset))
    shuffle_shards = shuffle_shards or (WINDOW_SHARDS if is_remote(dataset) else 0)
    if shuffle_shards or lane[1] > 1:
        return WindowedOrder(dataset, seed, shuffle_shards, lane, kind)
    return ShuffledOrder(len(dataset), seed, kind)


def laned_order(
    dataset: SampleDataset,
    seed: int,
    shuffle: bool,
    shuffle_shards: int,
    lanes: int,
    batch_size: int,
    kind: int = COMPUTED,
) -> Order:
    """An order in which each part of a global batch has shards of its own.

    Args:
        dataset: Any dataset, as for `order_of`.
        seed: Where every random choice comes from.
        shuffle: Visit each epoch in a new order; must be true if there is more than one lane.
        shuffle_shards: Shards whose samples are mixed at a time in each lane, as for `order_of`.
        lanes: Number of parts of a global batch.
        batch_size: Images in a step, of all ranks together.
        kind: How orders of many samples come about, as for `permutation`.

    Raises:
        UserError: If batch or shards cannot be dealt to so many lanes.
    """
    if lanes == 1:
        return order_of(dataset, (seed,), shuffle, shuffle_shards, kind=kind)
    if not shuffle:
        raise UserError(f"loader.lanes above 1 needs loader.shuffle; got lanes={lanes}")
    if batch_size % lanes:
        raise UserError(f"loader.lanes must divide the global batch of {batch_size}; got {lanes}")
    orders = [
        order_of(dataset, (seed, lane), shuffle, shuffle_shards, (lane, lanes), kind) for lane in range(lanes)
    ]
    return LanedOrder(orders, batch_size)


class PlainOrder:
    """One sample after the other, epoch after epoch."""

    def __init__(self, length: int) -> None:
        self.length = length

    def index(self, position: int) -> int:
        return position % self.length

    def other(self, position: int, rng: np.random.Generator) -> int:
        return int(rng.integers(self.length))


class ShuffledOrder:
    """Each epoch a random permutation of the whole dataset."""

    def __init__(self, length: int, seed: Sequence[int], kind: int = COMPUTED) -> None:
        self.length, self.seed, self.kind = length, seed, kind
        self._epoch = -1

    def index(self, position: int) -> int:
        epoch, place = divmod(position, self.length)
        if epoch != self._epoch:
            self._epoch = epoch
            self._samples = permutation([EPOCH, *self.seed, epoch], self.length, self.kind)
        return int(self._samples[place])

    def other(self, position: int, rng: np.random.Generator) -> int:
        return int(rng.integers(self.length))


class _Plan(NamedTuple):
    """An epoch's shards in their order, cut into windows.

    Attributes:
        epoch: Its number.
        shards: (shards,) rows of the order's shards.
        starts: (windows + 1,) where each window begins among these.
        ends: (windows,) samples up to and with each.
    """

    epoch: int
    shards: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def window(self, number: int) -> np.ndarray:
        """The shards of a window."""
        return self.shards[self.starts[number] : self.starts[number + 1]]


class _Window:
    """The samples of some shards, mixed: the n-th is found, not looked up."""

    def __init__(self, firsts: np.ndarray, sizes: np.ndarray, order: Blocks | np.ndarray) -> None:
        """Take shards.

        Args:
            firsts: Number of each one's first sample.
            sizes: Samples of each.
            order: Of all of these samples.
        """
        self.order = order
        self.ends = np.cumsum(sizes)
        self.shifts = firsts - (self.ends - sizes)  # from a place among the window's samples to a sample

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, place: int) -> int:
        own = int(self.order[place])
        return own + int(self.shifts[np.searchsorted(self.ends, own, side="right")])


class WindowedOrder:
    """Each epoch the shards in a new order, a few at a time, with the samples of these mixed.

    Only the shards of one window, and soon of the next, are read at any time, which is what remote shards
    need; memory does not grow with the number of samples. A new window tells the dataset what to fetch.
    """

    def __init__(
        self,
        dataset: SampleDataset,
        seed: Sequence[int],
        window_shards: int,
        lane: tuple[int, int] = (0, 1),
        kind: int = COMPUTED,
    ) -> None:
        """Choose shards.

        Args:
            dataset: Any dataset; one without `shard_sizes` is cut into pieces.
            seed: Where the order comes from.
            window_shards: Shards that are mixed at a time; 0 for all.
            lane: The number of a lane, and how many there are.
            kind: How orders of many samples come about, as for `permutation`.

        Raises:
            UserError: If the lane is left without samples.
        """
        self.dataset, self.seed, self.kind = dataset, seed, kind
        sizes = shard_sizes(dataset)
        number, lanes = lane
        self.shards = np.arange(number, len(sizes), lanes)  # of this lane, by their number in the dataset
        self.sizes = sizes[self.shards]
        self.starts = (np.cumsum(sizes) - sizes)[self.shards]  # number of each one's first sample
        self.window_shards = window_shards or len(self.shards)
        self.length = int(self.sizes.sum())
        if not self.length:
            raise UserError(f"{len(sizes)} shards cannot feed {lanes} lanes: lower loader.lanes")
        self._plan = self._plan_epoch(0)
        self._at = (-1, -1)  # epoch and window of `_window`

    def index(self, position: int) -> int:
        window, place = self._window_at(position)
        return window[place]

    def other(self, position: int, rng: np.random.Generator) -> int:
        window, _ = self._window_at(position)  # a sample outside the window may lie in a shard far away
        return window[int(rng.integers(len(window)))]

    def _window_at(self, position: int) -> tuple[_Window, int]:
        """The mixed samples of the window around a position, and the place among them."""
        epoch, place = divmod(position, self.length)
        if epoch != self._plan.epoch:
            self._plan = self._plan_epoch(epoch)
        number = int(np.searchsorted(self._plan.ends, place, side="right"))
        if self._at != (epoch, number):
            self._at = (epoch, number)
            self._window = self._mixed(epoch, number)
            if is_remote(self.dataset):
                self._prefetch(number)
        return self._window, place - (int(self._plan.ends[number]) - len(self._window))

    def _plan_epoch(self, epoch: int) -> _Plan:
        shards = permuted([SHARDS, *self.seed, epoch], len(self.shards), self.kind)
        # Of like size: one bad shard would leave nothing to replace its samples in a last window of its own.
        count = -(-len(shards) // self.window_shards)
        size, longer = divmod(len(shards), count)
        starts = np.r_[0, np.cumsum(size + (np.arange(count) < longer))]
        return _Plan(epoch, shards, starts, np.cumsum(np.add.reduceat(self.sizes[shards], starts[:-1])))

    def _mixed(self, epoch: int, number: int) -> _Window:
        shards = self._plan.window(number)
        sizes = self.sizes[shards]
        key = [SAMPLES, *self.seed, epoch, number]
        return _Window(self.starts[shards], sizes, permutation(key, int(sizes.sum()), self.kind))

    def _prefetch(self, number: int) -> None:
        """Ask for the shards of this window, which is being read already, and of the one behind it."""
        plan, behind = self._plan, number + 1
        if behind == len(plan.ends):
            plan, behind = self._plan_epoch(plan.epoch + 1), 0
        rows = np.concatenate([self._plan.window(number), plan.window(behind)])
        self.dataset.prefetch(self.shards[rows].tolist())  # type: ignore[attr-defined]


class LanedOrder:
    """Each part of every global batch in an order of its own, over shards of its own.

    Ranks take consecutive parts of the batch. So with a multiple of the number of hosts as lanes, each host
    reads, and fetches, only its share of the shards, while the order stays the same for any number of ranks.
    """

    def __init__(self, orders: Sequence[Order], batch_size: int) -> None:
        """Deal a batch.

        Args:
            orders: The order in each lane.
            batch_size: Images in a step, of all ranks together; a multiple of the lanes.
        """
        self.orders, self.batch_size, self.share = orders, batch_size, batch_size // len(orders)

    def index(self, position: int) -> int:
        lane, own_position = self._locate(position)
        return self.orders[lane].index(own_position)

    def other(self, position: int, rng: np.random.Generator) -> int:
        lane, own_position = self._locate(position)
        return self.orders[lane].other(own_position, rng)

    def _locate(self, position: int) -> tuple[int, int]:
        """The lane of a position, and its position in that lane."""
        step, slot = divmod(position, self.batch_size)
        lane, place = divmod(slot, self.share)
        return lane, step * self.share + place


class WeightedOrder:
    """Positions dealt to sources in exact proportion, each source in its own order and epochs.

    After any number of positions, each source has had its share to within one sample: positions are dealt by
    earliest deadline, the fair schedule of one processor among periodic tasks.
    """

    def __init__(self, orders: Sequence[Order], weights: np.ndarray, starts: Sequence[int]) -> None:
        """Deal one period.

        Args:
            orders: The order of each source.
            weights: Shares of the sources, adding up to 1.
            starts: Number of each source's first sample in the mixture.
        """
        self.orders, self.starts = orders, starts
        self.counts = whole_shares(weights, PERIOD)
        self.pattern = deal(tuple(self.counts.tolist()))  # (PERIOD,) source of each position
        self.turns = np.empty(PERIOD, np.int64)  # earlier positions of the period that have the same source
        for source, count in enumerate(self.counts):
            self.turns[self.pattern == source] = np.arange(count)

    def index(self, position: int) -> int:
        source, own_position = self._locate(position)
        return self.starts[source] + self.orders[source].index(own_position)

    def other(self, position: int, rng: np.random.Generator) -> int:
        source, own_position = self._locate(position)
        return self.starts[source] + self.orders[source].other(own_position, rng)

    def _locate(self, position: int) -> tuple[int, int]:
        """The source of a position, and which of that source's samples it takes."""
        period, place = divmod(position, PERIOD)
        source = int(self.pattern[place])
        return source, period * int(self.counts[source]) + int(self.turns[place])


def whole_shares(weights: np.ndarray, total: int) -> np.ndarray:
    """Weights as whole numbers that add up to `total`, by largest remainders."""
    exact = weights * total
    counts = np.floor(exact).astype(np.int64)
    most_short = np.argsort(counts - exact, kind="stable")[: total - counts.sum()]
    counts[most_short] += 1
    return counts


@lru_cache(maxsize=8)  # every lane deals the same
def deal(counts: tuple[int, ...]) -> np.ndarray:
    """Deal sum(counts) positions to sources, evenly: each is always within one of its exact share.

    A source's k-th position may not come before its exact share exceeds k, and is due when it reaches k + 1;
    of those that may come, the one due first does.
    """
    total, dealt = sum(counts), [0] * len(counts)
    pattern = np.empty(total, np.int64)
    for position in range(total):
        may_come = [s for s in range(len(counts)) if dealt[s] * total < (position + 1) * counts[s]]
        source = min(may_come, key=lambda s: -(-(dealt[s] + 1) * total // counts[s]))
        pattern[position] = source
        dealt[source] += 1
    return pattern
