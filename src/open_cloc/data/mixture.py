"""Several datasets as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from open_cloc.data.annotations import SampleDataset
from open_cloc.errors import UserError
from open_cloc.samples import RegionSample

PERIOD = 10_000  # positions after which the pattern of a weighted mixture repeats; weights are rounded to it
PIECE = 1_000  # samples of a dataset without shards that are taken for one


class Mixture:
    """Several datasets as one: numbered one behind the other, and drawn by weight if weights are given.

    Attributes:
        sources: The datasets.
        weights: Share of each source among the samples of a run, adding up to 1; None where each sample is
            seen once an epoch.
        starts: Number of each source's first sample.
    """

    weights: np.ndarray | None

    def __init__(self, sources: Sequence[SampleDataset], weights: Sequence[float] = ()) -> None:
        """Join datasets.

        Args:
            sources: The datasets, at least one, none of them empty.
            weights: A positive number for each source, in any unit; none for a plain concatenation.

        Raises:
            UserError: If a source is empty, the weights do not fit, or a weighted mixture is joined without.
        """
        if not sources:
            raise UserError("a mixture needs at least one dataset; got none")
        for number, source in enumerate(sources):
            if len(source) == 0:
                raise UserError(
                    f"dataset number {number} of the mixture is empty; expected at least one sample"
                )
            if isinstance(source, Mixture) and source.weights is not None and not len(weights):
                raise UserError(
                    f"dataset number {number} is a weighted mixture: its samples have no epoch to join; give "
                    "weights for the whole"
                )
        self.sources = tuple(sources)
        self.weights = _checked_weights(weights, len(sources)) if len(weights) else None
        self._ends = np.cumsum([len(source) for source in sources])
        self.starts = [0, *self._ends[:-1].tolist()]

    @property
    def shard_sizes(self) -> np.ndarray:
        """(shards,) samples of each shard of every source."""
        return np.concatenate([shard_sizes(source) for source in self.sources])

    @property
    def remote(self) -> bool:
        """Whether any source fetches its shards from elsewhere."""
        return any(is_remote(source) for source in self.sources)

    def prefetch(self, shards: Sequence[int]) -> None:
        """Let each source fetch its own of these shards in the background."""
        start = 0
        for source in self.sources:
            end = start + len(shard_sizes(source))
            if is_remote(source):
                own = [shard - start for shard in shards if start <= shard < end]
                source.prefetch(own)  # type: ignore[attr-defined]
            start = end

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> RegionSample:
        """A sample; whatever its source raises passes through."""
        source, own = self.locate(index)
        return source[own]

    def locate(self, index: int) -> tuple[SampleDataset, int]:
        """The source of a sample, and its number there."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self.sources[number], index - self.starts[number]


def _checked_weights(weights: Sequence[float], num_sources: int) -> np.ndarray:
    """Weights that add up to 1."""
    values = np.array(weights, np.float64)
    if len(values) != num_sources:
        raise UserError(f"weights must be one for each of {num_sources} datasets; got {len(values)}")
    positive = bool(np.isfinite(values).all() and (values > 0).all())
    if not positive or (values / values.sum() * PERIOD < 1).any():
        raise UserError(f"weights must be positive, none below 1/{PERIOD} of their sum; got {list(weights)}")
    return values / values.sum()


def is_remote(dataset: SampleDataset) -> bool:
    """Whether a dataset fetches whole shards and is told by `prefetch` which ones come next."""
    return bool(getattr(dataset, "remote", False))


def shard_sizes(dataset: SampleDataset) -> np.ndarray:
    """(shards,) samples of each shard; a dataset without shards is cut into pieces."""
    sizes = getattr(dataset, "shard_sizes", None)
    return sizes if sizes is not None else np.diff(np.r_[0 : len(dataset) : PIECE, len(dataset)])
