"""Boxes that a task names or chooses from, counted as they are given: every method sees the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from open_cloc.data.annotations import SampleDataset
from open_cloc.errors import UserError
from open_cloc.evaluation.batches import EvaluationBatch
from open_cloc.model.region_sources import open_regions
from open_cloc.samples import Region

OWN = "labels"  # proposals that are what is annotated


class Proposals:
    """A source of boxes, gone through once with a data set.

    Args:
        spec: `labels`, `grid:COUNT`, `results:FILE`, or `package.module:Name`.
        crowds: A box of a crowd is one like others; otherwise it is none.
    """

    def __init__(self, spec: str, crowds: bool = False) -> None:
        self.spec, self.crowds, self.source = spec, crowds, open_regions(spec)
        self.num_images = self.num_without = self.num = 0
        self._digest = hashlib.blake2b(digest_size=8)

    def of(self, batch: EvaluationBatch) -> list[list[Region]]:
        """The proposals of each picture of the next batch."""
        found = [
            [region for region in self.source(sample, sample.pixels()) if self.crowds or not region.crowd]
            for sample in batch.samples
        ]
        self.num_images += len(found)
        self.num += sum(map(len, found))
        self.num_without += sum(not own for own in found)
        self._digest.update(b"".join(boxes_of(own).tobytes() for own in found))
        return found

    def check(self, dataset: SampleDataset) -> None:
        """Look at what was given for a whole data set.

        Raises:
            UserError: If that was nothing, or a file has boxes of other pictures.
        """
        unmet = getattr(self.source, "num_unmet", 0)
        if unmet and not getattr(dataset, "is_a_part", False):
            raise UserError(
                f"{self.spec} has boxes of {unmet} images that the data set does not have, by image_id"
            )
        if not self.num:
            raise UserError(
                f"there are no proposals of {self.spec} in the {self.num_images} images; expected at least "
                "one"
            )

    def describe(self) -> dict[str, Any]:
        """What they were and how many, as plain JSON."""
        return {
            "proposals": self.spec,
            "num_proposals": self.num,
            "num_images_without_proposals": self.num_without,
            "proposals_digest": self._digest.hexdigest(),
        }


def boxes_of(regions: Sequence[Region]) -> np.ndarray:
    """Their boxes (R, 4)."""
    return np.array([region.box for region in regions], float).reshape(-1, 4)
