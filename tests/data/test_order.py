"""Which sample stands where: windows of shards, whole shuffles, lanes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from open_cloc.data.mixture import Mixture
from open_cloc.data.order import (
    PlainOrder,
    ShuffledOrder,
    WindowedOrder,
    laned_order,
    order_of,
)
from tests.data.numbered import SIZES, Numbers, in_order


def test_a_windowed_epoch_has_every_sample_once_and_mixes_only_a_window() -> None:
    order = WindowedOrder(Numbers("a", SIZES), (0,), window_shards=3)
    shard_of = np.repeat(np.arange(len(SIZES)), SIZES)
    epochs = [in_order(order, 28, 28 * epoch) for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(28))
        spans = {s: np.flatnonzero(shard_of[epoch] == s) for s in range(len(SIZES)) if SIZES[s]}
        for positions in spans.values():  # a shard comes within one window: at most 3 shards' samples
            assert positions.max() - positions.min() < 5 + 7 + 6
    assert len(set(map(tuple, epochs))) == 3
    first_shards = {tuple(dict.fromkeys(shard_of[epoch].tolist())) for epoch in epochs}
    assert len(first_shards) == 3  # the shards' order changes too
    windows = [Counter(shard_of[epoch[:n]].tolist()) for epoch, n in zip(epochs, (6, 6, 6))]
    assert any(len(window) > 1 for window in windows)


def test_a_window_of_all_shards_is_a_full_shuffle_and_of_one_keeps_shards_whole() -> None:
    whole = in_order(WindowedOrder(Numbers("a", SIZES), (0,), 100), 28)
    assert sorted(whole) == list(range(28))
    shard_of = np.repeat(np.arange(len(SIZES)), SIZES)
    single = shard_of[in_order(WindowedOrder(Numbers("a", SIZES), (0,), 1), 28)]
    assert np.count_nonzero(np.diff(single)) == np.count_nonzero(SIZES) - 1
    assert np.count_nonzero(np.diff(shard_of[whole])) > 10


ORDERS = {
    "plain": lambda: PlainOrder(28),
    "shuffled": lambda: ShuffledOrder(28, (5,)),
    "windowed": lambda: WindowedOrder(Numbers("a", SIZES), (5,), 3),
    "weighted": lambda: order_of(
        Mixture([Numbers("a", SIZES), Numbers("b", [4, 4], remote=True)], [2, 1]), (5,), True, 0
    ),
}


@pytest.mark.parametrize("kind", ORDERS)
def test_order_is_a_pure_function_of_the_position(kind: str) -> None:
    forwards = in_order(ORDERS[kind](), 100)
    order = ORDERS[kind]()
    jumps = np.random.default_rng(0).permutation(100)
    assert {int(p): order.index(int(p)) for p in jumps} == dict(enumerate(forwards))


@pytest.mark.parametrize("kind", ORDERS)
def test_a_replacement_is_a_sample_that_could_stand_there(kind: str) -> None:
    order = ORDERS[kind]()
    rng = np.random.default_rng(0)
    drawn = {order.other(40, rng) for _ in range(300)}
    assert len(drawn) > 3
    if kind == "windowed":
        plan = order._plan
        assert plan.epoch == 1
        window = plan.window(int(np.searchsorted(plan.ends, 40 - 28, side="right")))
        samples = [range(order.starts[s], order.starts[s] + SIZES[s]) for s in window]
        assert drawn == set().union(*samples)
    if kind == "weighted":  # of the same source
        source_a = order.index(40) < 28
        assert all((index < 28) == source_a for index in drawn)


def test_no_window_is_much_smaller_than_the_others() -> None:
    """A bad shard alone in the last one would end the run, as all its replacements would be bad."""
    order = WindowedOrder(Numbers("a", [2] * 17), (0,), 16)
    assert np.diff(order._plan.starts).tolist() == [9, 8]
    assert len({order.other(33, np.random.default_rng(i)) // 2 for i in range(100)}) == 8


def test_remote_shards_are_asked_for_a_window_ahead() -> None:
    data = Numbers("a", [2] * 5, remote=True)
    order = order_of(data, (0,), True, shuffle_shards=2)
    assert isinstance(order, WindowedOrder)
    in_order(order, 20)
    plans = [order._plan_epoch(epoch) for epoch in range(3)]
    windows = [plan.window(number).tolist() for plan in plans for number in range(len(plan.ends))]
    assert data.asked == [windows[i] + windows[i + 1] for i in range(6)]  # the last one: of the third epoch


def test_whole_epochs_stay_the_default_of_local_data() -> None:
    assert isinstance(order_of(Numbers("a", SIZES), (0,), True, 0), ShuffledOrder)
    assert isinstance(order_of(Numbers("a", SIZES, remote=True), (0,), True, 0), WindowedOrder)
    assert isinstance(order_of(Numbers("a", SIZES), (0,), True, 2), WindowedOrder)
    assert isinstance(order_of(Numbers("a", SIZES, remote=True), (0,), False, 0), PlainOrder)
    expected = np.random.default_rng([1, 7, 2]).permutation(28)  # as runs of version 0.1 have seen it
    assert in_order(order_of(Numbers("a", SIZES), (7,), True, 0), 28, 56) == expected.tolist()


def test_orders_of_few_samples_are_those_of_version_0_1() -> None:
    windowed = WindowedOrder(Numbers("a", SIZES), (5,), 3)
    expected = [9, 26, 10, 20, 22, 8, 11, 25, 24, 23, 27, 21, 0, 7, 2, 6, 12, 3, 1, 5, 4, 19, 17, 15, 18, 13]
    assert in_order(windowed, 28, 28) == [*expected, 14, 16]
    laned = laned_order(Numbers("a", [4] * 6), 3, True, 2, lanes=3, batch_size=6)
    expected = [13, 1, 17, 5, 11, 22, 14, 12, 4, 6, 10, 9, 3, 0, 16, 7, 20, 21, 2, 15, 18, 19, 8, 23]
    assert in_order(laned, 24, 24) == expected


def test_each_lane_has_shards_of_its_own_and_every_sample_once_an_epoch() -> None:
    sizes = [4] * 6
    data = Numbers("a", sizes, remote=True)
    order = laned_order(data, 3, True, 1, lanes=3, batch_size=6)
    slots = np.array(in_order(order, 24 * 3)).reshape(-1, 6)  # (steps, places in the batch)
    shards = slots // 4
    for lane in range(3):
        own = slots[:, 2 * lane : 2 * lane + 2]
        assert set(np.unique(shards[:, 2 * lane : 2 * lane + 2])) == {lane, lane + 3}
        epochs = own.reshape(3, 8)  # 8 samples a lane
        assert all(len(set(epoch)) == 8 for epoch in epochs.tolist())
        assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3
    assert {shard for asked in data.asked for shard in asked} == set(range(6))
    own_lanes = Numbers("a", sizes, remote=True)
    one_host = laned_order(own_lanes, 3, True, 1, lanes=3, batch_size=6)
    for step in range(12):  # a rank with the second third of the batch
        assert [one_host.index(6 * step + place) for place in (2, 3)] == slots[step, 2:4].tolist()
    assert {shard for asked in own_lanes.asked for shard in asked} == {1, 4}  # and fetches only its own


def test_lanes_of_mixtures_and_of_local_data() -> None:
    mixture = Mixture([Numbers("a", [5, 5, 5, 5]), Numbers("b", [9, 9])], [3, 1])
    order = laned_order(mixture, 0, True, 0, lanes=2, batch_size=8)
    keys = [mixture[index].key for index in in_order(order, 400)]
    assert sum(key[0] == "a" for key in keys) == 300
    rng = np.random.default_rng(0)
    shard_of = np.r_[np.repeat(range(4), 5), np.repeat([0, 1], 9)]
    for position in range(80):
        lane = position % 8 // 4
        assert shard_of[order.index(position)] % 2 == shard_of[order.other(position, rng)] % 2 == lane
    one = laned_order(mixture, 0, True, 0, lanes=1, batch_size=8)
    assert in_order(one, 50) == in_order(order_of(mixture, (0,), True, 0), 50)
    with pytest.raises(ValueError, match=r"loader\.lanes must divide the global batch of 8; got 3"):
        laned_order(mixture, 0, True, 0, lanes=3, batch_size=8)
    with pytest.raises(ValueError, match=r"2 shards cannot feed 4 lanes: lower loader\.lanes"):
        laned_order(mixture, 0, True, 0, lanes=4, batch_size=8)
    with pytest.raises(ValueError, match=r"needs loader\.shuffle"):
        laned_order(mixture, 0, False, 0, lanes=2, batch_size=8)
