"""How far metrics would move had the data set held other pictures: percentile bootstrap over images.

Images are drawn anew, with replacement, as many as there are, and each metric is computed of each draw.
Regions of one picture stay together: they are alike, and as independent things they would promise too much.
Nearly all metrics are functions of sums over images, so a draw costs a weighted sum; the others say
themselves what they are on a draw. Nothing is embedded again.

Shapes: I images, X things (regions, phrases, captions or images), K sums of a metric, S draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0
NUMBERS_AT_ONCE = 2**22  # of a draw's weights or sums: 32 MiB
BINS = 15  # of confidence

HOW = {
    "kind": "percentile bootstrap over images; classes and galleries stay whole",
    "level": LEVEL,
    "resamples": RESAMPLES,
    "seed": SEED,
}

Interval: TypeAlias = tuple[float, float]


class Measured(NamedTuple):
    """Metrics by name.

    Attributes:
        values: On the data set as it is.
        intervals: Ends of each; none of what rests on a single image, which says nothing about others.
        draws: (S,) float32 values of each on other draws of the images, the same for every model.
    """

    values: dict[str, float]
    intervals: dict[str, Interval]
    draws: dict[str, np.ndarray]


class Estimate(NamedTuple):
    """A metric as a function of sums over images.

    Attributes:
        parts: (K, I) sparse float64, what each image adds to each of the sums.
        of_sums: (K, S) sums of S draws -> (S,) values; NaN where a draw says nothing.
        least: No value is below.
        centred: Draws lie around another value than the metric's, as it is no smooth function of its sums:
            they are moved.
    """

    parts: Tensor
    of_sums: Callable[[Tensor], Tensor]
    least: float = -math.inf
    centred: bool = False

    @property
    def value(self) -> float:
        """The metric on the data set as it is."""
        return self.of_sums(self.parts.sum(1).to_dense()[:, None]).item()

    @property
    def num_images(self) -> int:
        """How many images it rests on."""
        return len(self.parts.indices()[1].unique())


class Computed(NamedTuple):
    """A metric that is no function of a few sums, such as one of ranked things; its draws are moved.

    Attributes:
        of_draws: (I, S) how often each image is drawn -> (S,) float64 values.
        num_images: I.
    """

    of_draws: Callable[[Tensor], Tensor]
    num_images: int
    least: float = 0.0
    centred: bool = True

    @property
    def value(self) -> float:
        """The metric on the data set as it is."""
        return self.of_draws(torch.ones(self.num_images, 1, dtype=torch.float64)).item()


Statistic: TypeAlias = "Estimate | Computed"


def mean_over(values: Tensor, images: Tensor, num_images: int, weights: Tensor | None = None) -> Estimate:
    """The mean over things.

    Args:
        values: (X,) of each thing.
        images: (X,) number of the image that each belongs to.
        num_images: I, those without a thing included.
        weights: (X,) what each counts; 1 unless told.
    """
    weights = torch.ones(len(values)) if weights is None else weights
    rows = torch.tensor([0, 1]).repeat_interleave(len(values))
    sums = torch.cat([values.double() * weights, weights.double()])
    return Estimate(_sparse(rows, images.repeat(2), sums, (2, num_images)), _ratio)


def mean_over_classes(hits: Tensor, classes: Tensor, images: Tensor, num_images: int) -> Estimate:
    """The mean of each class's own mean, over classes that occur.

    Args:
        hits: (X,) of each thing.
        classes: (X,) its class.
        images: (X,) its image.
        num_images: I.
    """
    count = int(classes.max()) + 1
    rows = torch.cat([classes, classes + count])
    sums = torch.cat([hits.double(), torch.ones(len(hits), dtype=torch.float64)])
    return Estimate(_sparse(rows, images.repeat(2), sums, (2 * count, num_images)), _mean_of_ratios)


def calibration_error(confidences: Tensor, hits: Tensor, images: Tensor, num_images: int) -> Estimate:
    """How far confidence is from accuracy: the mean over things of their bin's gap between the two.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, with 15 bins of equal width.

    Args:
        confidences: (X,) probability of each guess.
        hits: (X,) whether it is right.
        images: (X,) the image of each.
        num_images: I.
    """
    bins = (confidences * BINS).long().clamp(max=BINS - 1)
    rows = torch.cat([bins, bins, torch.full_like(bins, BINS)])
    gaps = torch.cat([confidences.double(), -hits.double(), torch.ones(len(bins), dtype=torch.float64)])
    parts = _sparse(rows, images.repeat(3), gaps, (BINS + 1, num_images))
    # Gaps that are small by chance are larger in nearly every draw.
    return Estimate(parts, lambda sums: sums[:BINS].abs().sum(0) / sums[BINS], least=0.0, centred=True)


def linear_around(
    value: float, influence: Tensor, images: Tensor, num_images: int, least: float = -math.inf
) -> Estimate:
    """A smooth function of the data by its first order: for what is no mean, such as a rank or a distance.

    Args:
        value: The function on the data as it is.
        influence: (X,) its derivative by the weight of each thing.
        images: (X,) the image of each.
        num_images: I.
        least: The function has no value below, which its first order does not know.
    """
    influence = influence.double()
    parts = _sparse(torch.zeros_like(images), images, influence, (1, num_images))
    return Estimate(parts, lambda sums: value + sums[0] - influence.sum(), least)


def measure(estimates: Mapping[str, Statistic], num_images: int) -> Measured:
    """Values, intervals and draws of estimates by name."""
    values = {name: estimate.value for name, estimate in estimates.items()}
    several = {name: estimate for name, estimate in estimates.items() if estimate.num_images > 1}
    if not several:
        return Measured(values, {}, {})
    drawn = _drawn(list(several.values()), num_images)
    found = {name: ends_of(row) for name, row in zip(several, drawn)}
    return Measured(values, found, {name: row.astype(np.float32) for name, row in zip(several, drawn)})


def ends_of(draws: np.ndarray) -> Interval:
    """The interval that draws (S,) of a number say."""
    low, high = np.nanquantile(draws, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)).tolist()
    return low, high


def _drawn(estimates: list[Statistic], num_images: int) -> np.ndarray:
    """Every metric of every draw: (metrics, S)."""
    summed = [estimate for estimate in estimates if isinstance(estimate, Estimate)]
    nothing = torch.zeros(0, num_images, dtype=torch.float64).to_sparse()
    together = torch.cat([nothing, *(estimate.parts for estimate in summed)])
    sizes = [len(estimate.parts) for estimate in summed]
    chunks = []
    for weights in _draws(num_images, max(1, NUMBERS_AT_ONCE // max(num_images, len(together)))):
        sums = iter(
            torch.sparse.mm(together, weights).split(sizes) if summed else ()
        )  # (K, s) of each metric
        rows = [
            estimate.of_sums(next(sums)) if isinstance(estimate, Estimate) else estimate.of_draws(weights)
            for estimate in estimates
        ]
        chunks.append(torch.stack(rows))
    drawn = torch.cat(chunks, dim=1)
    for row, estimate in zip(drawn, estimates):
        if estimate.centred:
            # Ranked things drawn twice look better than they are, for one: the draws lie around another value
            # than the metric's, by as much as the metric itself lies beside the truth.
            row += estimate.value - row.nanmean()
        row.clamp_(min=estimate.least)
    return drawn.numpy()


def _draws(num_images: int, at_once: int) -> Iterator[Tensor]:
    """How often each image is drawn, (I, s) float64, s draws at once and S altogether."""
    rng = np.random.default_rng(SEED)
    for start in range(0, RESAMPLES, at_once):
        count = min(at_once, RESAMPLES - start)
        chosen = rng.integers(0, num_images, (count, num_images)) + num_images * np.arange(count)[:, None]
        counts = np.bincount(chosen.ravel(), minlength=count * num_images).reshape(count, num_images)
        yield torch.from_numpy(counts.T.astype(np.float64))


def _sparse(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    places = torch.stack([rows, columns])
    return torch.sparse_coo_tensor(places, values, shape, check_invariants=True).coalesce()


def _ratio(sums: Tensor) -> Tensor:
    return sums[0] / sums[1]


def _mean_of_ratios(sums: Tensor) -> Tensor:
    hits, counts = sums.split(len(sums) // 2)
    return (hits / counts).nanmean(0)
