"""Computed orders: permutations, as random as written ones, of any length without memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_cloc.data.order import ShuffledOrder, WindowedOrder
from open_cloc.data.permutation import (
    COMPUTED,
    MOST_WRITTEN,
    WRITTEN,
    Blocks,
    Feistel,
    permutation,
    permuted,
)
from tests.data.numbered import Numbers

keys = st.lists(st.integers(0, 2**63), min_size=1, max_size=4)


@settings(max_examples=200, deadline=None)
@given(key=keys, length=st.integers(1, 3000))
def test_every_number_comes_once(key: list[int], length: int) -> None:
    assert sorted(Feistel(key, length)(np.arange(length)).tolist()) == list(range(length))


@settings(max_examples=50, deadline=None)
@given(key=keys, length=st.integers(MOST_WRITTEN + 1, 2**61), data=st.data())
def test_places_are_computed_one_by_one_as_together(key: list[int], length: int, data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=5))
    together = Feistel(key, length)(np.array(places))
    order = permutation(key, length)
    assert [order[place] for place in places] == together.tolist()
    assert ((together >= 0) & (together < length)).all()
    assert len(set(together.tolist())) == len(set(places))


def excess(counts: np.ndarray) -> float:
    """How many deviations chi-square lies above what uniform counts have; 5 is one in millions."""
    expected = counts.sum() / counts.size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    return float((chi_square - (counts.size - 1)) / np.sqrt(2 * (counts.size - 1)))


@pytest.mark.parametrize("length", [2, 3, 5, 10])
def test_short_orders_are_as_likely_as_others(length: int) -> None:
    """Every number at every place, and every pair of neighbours, equally often over many keys."""
    orders = np.stack([Feistel([7, key], length)(np.arange(length)) for key in range(2000)])
    at = np.stack([np.bincount(column, minlength=length) for column in orders.T])
    assert excess(at) < 5
    pairs = np.bincount((orders[:, :-1] * length + orders[:, 1:]).ravel(), minlength=length**2)
    off_diagonal = pairs.reshape(length, length)[~np.eye(length, dtype=bool)]
    assert excess(off_diagonal) < 5 * np.sqrt(length)  # neighbours of one order are not independent


@pytest.mark.parametrize("length", [MOST_WRITTEN + 1, 10**6, 2**20, 999_983])
def test_neighbours_of_long_orders_have_nothing_to_do_with_each_other(length: int) -> None:
    numbers = Feistel([3], length)(np.arange(100_000))
    bins = (numbers * 50 // length).astype(int)
    assert excess(np.bincount(bins, minlength=50)) < 5
    for apart in (1, 2, 7, 128, 1000):
        pairs = np.bincount(bins[:-apart] * 50 + bins[apart:], minlength=2500)
        assert excess(pairs) < 5, apart
        gaps = (numbers[apart:] - numbers[:-apart]) % length * 64 // length
        assert excess(np.bincount(gaps.astype(int), minlength=64)) < 5, apart
    assert excess(np.bincount(numbers % 97, minlength=97)) < 5


def test_orders_of_different_keys_have_nothing_to_do_with_each_other() -> None:
    length, places = 10**6, np.arange(100_000)
    for other in ([1, 0, 1], [1, 1, 0], [2, 0, 0]):
        pairs = (
            Feistel([1, 0, 0], length)(places) * 30 // length * 30
            + Feistel(other, length)(places) * 30 // length
        )
        assert excess(np.bincount(pairs, minlength=900)) < 5


def test_no_memory_grows_with_the_number_of_samples() -> None:
    tracemalloc.start()
    order = ShuffledOrder(10**10, (0,))
    seen = {order.index(position) for position in range(10**10 - 20_000, 10**10 + 20_000)}
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(seen) > 39_990  # of two epochs, which may share a few
    assert peak < 8e6  # the set of what was seen


def test_a_window_of_many_samples_has_each_of_them_once() -> None:
    sizes = [70_000, 0, 90_000, 40_000]
    order = WindowedOrder(Numbers("a", sizes), (0,), 100)
    numbers = np.array([order.index(position) for position in range(200_000)])
    assert np.array_equal(np.sort(numbers), np.arange(200_000))
    assert isinstance(order._window.order, Blocks)
    shards = np.searchsorted(np.cumsum(sizes), numbers, side="right")
    assert excess(np.bincount(shards[:10_000], minlength=4)[[0, 2]] / np.array([7, 9])) < 5


def test_short_orders_and_those_of_version_0_1_are_written_down() -> None:
    for length, kind in ((MOST_WRITTEN, COMPUTED), (MOST_WRITTEN + 1, WRITTEN)):
        order = permutation([1, 7, 2], length, kind)
        assert isinstance(order, np.ndarray)
        assert np.array_equal(order, np.random.default_rng([1, 7, 2]).permutation(length))
    assert np.array_equal(np.sort(permuted([5], MOST_WRITTEN + 5)), np.arange(MOST_WRITTEN + 5))
