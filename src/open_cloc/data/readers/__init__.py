"""Readers of annotation files: each turns one format into a dataset of `RegionSample`."""

from open_cloc.data.annotations import SampleDataset

__all__ = ["SampleDataset"]
