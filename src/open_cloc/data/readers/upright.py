"""Pictures turned as their EXIF orientation asks, for boxes that were drawn on what viewers show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from open_cloc.data.annotations import RawSample, SampleDataset, finish, raw_sample
from open_cloc.errors import UserError
from open_cloc.pictures import upright
from open_cloc.samples import RegionSample

CHOICES = ("keep", "apply")


def exif_option(value: str, where: str) -> bool:
    """Whether `exif=...` asks for turning.

    Raises:
        UserError: If it is no such choice.
    """
    if value not in CHOICES:
        raise UserError(f"exif in {where!r} must be one of {', '.join(CHOICES)}; got {value!r}")
    return value == "apply"


class Upright:
    """Another data set with its pictures turned; boxes, sizes and texts stay as they are.

    Whatever else the data set has, such as `class_names`, is found here too.
    """

    def __init__(self, dataset: SampleDataset) -> None:
        """Wrap an opened data set."""
        self.dataset = dataset

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not there yet while a worker process unpickles
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> RegionSample:
        """A sample with its picture turned and its boxes checked; pixels take the place of a turned picture.

        Raises:
            SampleError: If anything is wrong with it.
        """
        return finish(self.raw(index))

    def raw(self, index: int) -> RawSample:
        """A sample with its picture turned and its boxes as in the file.

        Raises:
            SampleError: If the picture is not there, or is none.
        """
        raw = raw_sample(self.dataset, index)
        image = upright(raw.image, f"image of sample {raw.key!r}")
        # What normalised boxes were measured on is the turned picture, too.
        size_hw = (
            (image.shape[0], image.shape[1]) if raw.normalized and hasattr(image, "shape") else raw.size_hw
        )
        return replace(raw, image=image, size_hw=size_hw)
