"""Where regions come from."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from open_cloc.boxes import OK, box_problems
from open_cloc.errors import UserError
from open_cloc.model.region_sources import GRID, open_regions
from open_cloc.samples import Region, RegionSample
from tests.index.made import sample


def tops(what: str = "", share: float = 0.5) -> Any:
    """A source as a user may write one."""
    return lambda given, pixels: [Region((0.0, 0.0, 1.0, share), what, source="tops")]


def of(spec: str) -> list[Region]:
    given: RegionSample = sample(0)
    return open_regions(spec)(given, given.pixels())


def test_labels_are_the_datas_own() -> None:
    assert of("labels") == list(sample(0).regions)


@pytest.mark.parametrize("count", [1, 20, 500])
def test_a_grid_has_sizes_and_no_more_boxes_than_asked(count: int) -> None:
    regions = of(f"grid:{count}")
    assert 1 <= len(regions) <= count
    boxes = np.array([region.box for region in regions])
    assert (box_problems(boxes) == OK).all()
    assert {region.source for region in regions} == {"grid"}
    assert all(math.isnan(region.score) for region in regions)
    if count == 500:
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        assert areas.max() / areas.min() > 8


def test_the_grid_of_itself() -> None:
    assert [region.box for region in of("grid")] == [region.box for region in of(f"grid:{GRID}")]


def test_a_function_of_the_users() -> None:
    (region,) = of("tests.index.test_region_sources:tops:sky,share=0.3")
    assert (region.box, region.text) == ((0.0, 0.0, 1.0, 0.3), "sky")


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("grid:0", "whole number in 1..5000; got '0'"),
        ("grid:x", "whole number"),
        ("grid:999999", "whole number"),
        ("labels:x", "takes nothing more; got 'x'"),
        ("grids", "unknown source of boxes 'grids'; expected one of labels, grid"),
        ("grid:5,colour=red", "unknown option 'colour'"),
        ("tests.index.test_region_sources:none", "no source of boxes at"),
    ],
)
def test_wrong_specs(spec: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        open_regions(spec)
    assert reason in str(caught.value)
