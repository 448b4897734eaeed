"""Intervals against slow resampling, and against the truth of a simulated world."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from open_cloc.evaluation import intervals
from open_cloc.evaluation.intervals import (
    calibration_error,
    linear_around,
    mean_over,
    mean_over_classes,
    measure,
)


def draws(num_images: int) -> np.ndarray:
    """(S, I) images of each draw, as `measure` draws them."""
    rng = np.random.default_rng(intervals.SEED)
    return rng.integers(0, num_images, (intervals.RESAMPLES, num_images))


def things(num_images: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hits, classes and images of 40 things; images 3 and 7 have none."""
    rng = np.random.default_rng(seed)
    images = np.sort(rng.choice([i for i in range(num_images) if i not in (3, 7)], 40))
    return rng.random(40) < 0.6, rng.integers(0, 5, 40), images


def test_means_and_class_means_equal_slow_resampling() -> None:
    hits, classes, images = things()
    micro, macro = [], []
    for drawn in draws(12):
        rows = np.concatenate([np.flatnonzero(images == image) for image in drawn])
        micro.append(hits[rows].mean())
        macro.append(np.mean([hits[rows][classes[rows] == c].mean() for c in set(classes[rows])]))
    arrays = torch.tensor(hits), torch.tensor(classes), torch.tensor(images)
    estimates = {
        "micro": mean_over(arrays[0], arrays[2], 12),
        "macro": mean_over_classes(*arrays, 12),
    }
    values, found, _ = measure(estimates, 12)
    assert values["micro"] == pytest.approx(hits.mean())
    assert values["macro"] == pytest.approx(np.mean([hits[classes == c].mean() for c in range(5)]))
    for name, slow in (("micro", micro), ("macro", macro)):
        assert found[name] == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=1e-12)
        assert found[name][0] < values[name] < found[name][1]


def test_weighted_means_equal_slow_resampling() -> None:
    hits, _, images = things(seed=1)
    weights = np.random.default_rng(2).random(40)
    slow = []
    for drawn in draws(12):
        rows = np.concatenate([np.flatnonzero(images == image) for image in drawn])
        slow.append(np.average(hits[rows], weights=weights[rows]))
    estimate = mean_over(torch.tensor(hits), torch.tensor(images), 12, torch.tensor(weights))
    values, found, _ = measure({"x": estimate}, 12)
    assert values["x"] == pytest.approx(np.average(hits, weights=weights))
    assert found["x"] == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=1e-12)


def test_the_first_order_of_a_mean_is_near_its_resampling() -> None:
    hits, _, images = (torch.tensor(array) for array in things(seed=3))
    mean = hits.double().mean()
    estimates = {
        "exact": mean_over(hits, images, 12),
        "linear": linear_around(mean.item(), (hits.double() - mean) / len(hits), images, 12),
    }
    values, found, _ = measure(estimates, 12)
    assert values["linear"] == pytest.approx(values["exact"])
    assert found["linear"] == pytest.approx(found["exact"], abs=0.03)


def test_draws_do_not_depend_on_how_many_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hits, classes, images = (torch.tensor(array) for array in things())
    estimates = {"a": mean_over(hits, images, 12), "b": mean_over_classes(hits, classes, images, 12)}
    whole = measure(estimates, 12)

    def is_the_same() -> bool:
        again = measure(estimates, 12)
        equal = all(np.array_equal(again.draws[name], whole.draws[name]) for name in estimates)
        return equal and again[:2] == whole[:2]

    assert is_the_same()
    monkeypatch.setattr(intervals, "NUMBERS_AT_ONCE", 12 * 77)
    assert is_the_same()
    with torch.inference_mode():
        assert is_the_same()


def test_what_occurs_in_few_images_is_measured_where_it_is_drawn() -> None:
    """A group of two images of twelve is missing from some of the draws: these say nothing of it."""
    _, found, drawn = measure({"rare": mean_over(torch.tensor([1.0, 0.0]), torch.tensor([4, 5]), 12)}, 12)
    assert found["rare"] == (0, 1)
    assert 0.05 < np.isnan(drawn["rare"]).mean() < 0.15  # (10/12)^12


def test_one_image_says_nothing_about_others() -> None:
    values, found, _ = measure({"a": mean_over(torch.tensor([1, 0]), torch.tensor([0, 0]), 1)}, 1)
    assert (values, found) == ({"a": 0.5}, {})


def test_nor_does_one_of_several_on_which_a_metric_rests() -> None:
    hits, images = torch.tensor([1, 0, 1]), torch.tensor([4, 4, 7])
    estimates = {"one": mean_over(hits[:2], images[:2], 12), "two": mean_over(hits, images, 12)}
    values, found, drawn = measure(estimates, 12)
    assert set(values) == {"one", "two"}
    assert set(found) == set(drawn) == {"two"}


@pytest.mark.parametrize("seed", range(40))
def test_a_calibration_error_lies_among_its_draws(seed: int) -> None:
    """Also of guesses that are as sure as they are right, where any draw looks worse than the whole."""
    rng = np.random.default_rng(seed)
    sure, images = (
        torch.from_numpy(rng.uniform(0.1, 1, 300)),
        torch.from_numpy(np.sort(rng.integers(0, 100, 300))),
    )
    hits = torch.from_numpy(rng.random(300) < sure.numpy())
    values, found, drawn = measure({"e": calibration_error(sure, hits, images, 100)}, 100)
    low, high = found["e"]
    assert 0 <= low <= values["e"] <= high
    assert drawn["e"].min() >= 0


def test_draws_stay_where_values_can_be() -> None:
    """A distance near 0, whose first order goes below."""
    influence = torch.tensor([-1.0, 1.0, -0.5, 0.5]) / 4
    values, found, drawn = measure({"d": linear_around(0.1, influence, torch.arange(4), 4, least=0.0)}, 4)
    assert values["d"] == pytest.approx(0.1)
    assert found["d"][0] == drawn["d"].min() == 0


def world(rng: np.random.Generator, num_images: int) -> tuple[Tensor, Tensor]:
    """Hits and images of a world in which 0.6 of the things are hit, and those of an image are alike."""
    chances = rng.beta(1.2, 0.8, num_images)  # of each image: the mean is 0.6
    counts = rng.integers(1, 7, num_images)
    images = np.repeat(np.arange(num_images), counts)
    return torch.tensor(rng.random(len(images)) < chances[images]), torch.tensor(images)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """400 data sets of 60 images each; things taken for independent would hold it in 4 of 5 only."""
    rng = np.random.default_rng(5)
    held = held_if_independent = 0
    for _ in range(400):
        hits, images = world(rng, 60)
        _, found, _ = measure({"x": mean_over(hits, images, 60)}, 60)
        held += found["x"][0] <= 0.6 <= found["x"][1]
        mean = hits.double().mean().item()
        error = 1.96 * (mean * (1 - mean) / len(hits)) ** 0.5
        held_if_independent += abs(mean - 0.6) <= error
    # Four standard errors of a share of 400 around 0.945, what 60 images allow.
    assert 0.90 <= held / 400 <= 0.985
    assert held_if_independent / 400 < 0.88
