"""Several datasets as one, by weight or one behind the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from open_cloc.data.mixture import PERIOD, Mixture, shard_sizes
from open_cloc.data.order import (
    WeightedOrder,
    deal,
    order_of,
    whole_shares,
)
from open_cloc.model.create import ModelConfig
from open_cloc.training.loop import open_data
from open_cloc.training.recipe import DataConfig, Recipe
from tests.data.numbered import Numbers, Plain, in_order


def test_a_concatenation_is_numbered_through_and_routes_prefetches() -> None:
    plain = Plain(Numbers("p", [3])[i] for i in range(3))
    near, far = Numbers("a", [2, 2]), Numbers("b", [1, 4], remote=True)
    joined = Mixture([plain, near, far])
    assert [joined[i].key for i in range(len(joined))] == [
        *("p0", "p1", "p2"),
        *("a0", "a1", "a2", "a3"),
        *("b0", "b1", "b2", "b3", "b4"),
    ]
    assert joined.shard_sizes.tolist() == [3, 2, 2, 1, 4]
    assert joined.remote
    joined.prefetch([4, 0, 2, 3])
    assert (near.asked, far.asked) == ([], [[1, 0]])
    with pytest.raises(IndexError):
        joined[12]
    order = order_of(joined, (0,), True, 0)
    assert sorted(in_order(order, 12)) == list(range(12))
    assert shard_sizes(Plain([plain[0]] * 2500)).tolist() == [1000, 1000, 500]


@pytest.mark.parametrize(
    "weights", [(0.7, 0.3), (1, 1), (5, 3, 1), (0.98, 0.01, 0.01), (1,), (3, 2, 2, 1, 1, 1)]
)
def test_every_prefix_and_window_has_its_exact_share(weights: tuple[float, ...]) -> None:
    shares = np.array(weights) / sum(weights)
    counts = whole_shares(shares, PERIOD)
    assert counts.sum() == PERIOD
    np.testing.assert_allclose(counts / PERIOD, shares, atol=1 / PERIOD)
    pattern = np.tile(deal(tuple(counts.tolist())), 2)
    for source, count in enumerate(counts):
        ahead = np.cumsum(pattern == source) - np.arange(1, 2 * PERIOD + 1) * count / PERIOD
        assert np.abs(ahead).max() < 1  # after any number of positions
        assert np.abs(ahead[250:] - ahead[:-250]).max() < 2  # in any window


def test_sources_run_their_own_epochs_in_their_share() -> None:
    sources = [Numbers("a", [6]), Numbers("b", [10])]
    mixture = Mixture(sources, [3, 1])
    order = order_of(mixture, (0,), True, 0)
    assert isinstance(order, WeightedOrder)
    keys = [mixture[index].key for index in in_order(order, 3 * PERIOD)]
    own = {name: [int(key[1:]) for key in keys if key[0] == name] for name in "ab"}
    assert len(own["a"]) == 3 * len(own["b"])
    for name, length in (("a", 6), ("b", 10)):
        epochs = [own[name][i : i + length] for i in range(0, len(own[name]) - length, length)]
        assert all(sorted(epoch) == list(range(length)) for epoch in epochs)
        assert len(set(map(tuple, epochs))) > 100
    twins = Mixture([Numbers("a", [50]), Numbers("b", [50])], [1, 1])
    dealt = in_order(order_of(twins, (0,), True, 0), 100)
    assert [i for i in dealt if i < 50] != [i - 50 for i in dealt if i >= 50]  # each has a seed of its own


def test_a_recipe_names_a_mixture() -> None:
    scenes = tuple(f"scenes:train,image_size=32,num_samples={count}" for count in (10, 30))
    recipe = Recipe("mixed", ModelConfig(), DataConfig(scenes, weights=(3, 1)))
    mixture = open_data(recipe)
    assert isinstance(mixture, Mixture)
    assert mixture.weights is not None
    assert mixture.weights.tolist() == [0.75, 0.25]
    joined = open_data(replace(recipe, data=DataConfig(scenes)))
    assert isinstance(joined, Mixture)
    assert (joined.weights, len(joined)) == (None, 40)
    with pytest.raises(
        ValueError, match=r"data\.weights must be one for each of 2 sets of data\.train; got \(1,\)"
    ):
        DataConfig(scenes, weights=(1,))


def test_wrong_mixtures_are_named() -> None:
    data = Numbers("a", [3])
    with pytest.raises(ValueError, match="weights must be one for each of 2 datasets; got 1"):
        Mixture([data, data], [1.0])
    for weights in ([1, 0], [1, -1], [1, float("nan")], [1, 1e-9]):
        with pytest.raises(
            ValueError, match="weights must be positive, none below 1/10000 of their sum; got"
        ):
            Mixture([data, data], weights)
    with pytest.raises(ValueError, match="dataset number 1 of the mixture is empty"):
        Mixture([data, Numbers("b", [0])])
    weighted = Mixture([data, data], [3, 1])
    with pytest.raises(ValueError, match="dataset number 1 is a weighted mixture"):
        Mixture([data, weighted])
    assert Mixture([data, weighted], [1, 1]).weights is not None
    with pytest.raises(ValueError, match="at least one dataset"):
        Mixture([])
