"""Where an index takes its regions from: each is a function from a sample to regions of its picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from open_cloc.config import call_with_options, lookup, parse_spec
from open_cloc.errors import UserError
from open_cloc.model.search import candidate_grid
from open_cloc.samples import Region, RegionSample

# A sample and its pixels (H, W, 3) -> regions.
RegionSource: TypeAlias = Callable[[RegionSample, np.ndarray], list[Region]]

# Kind -> `module:function` taking (what, **options).
REGIONS = {
    "labels": "open_cloc.index.regions:from_labels",
    "grid": "open_cloc.index.regions:from_grid",
}
OF_GRID = "grid"  # source of its regions
GRID = 60  # boxes of a picture: three or four sizes, which the Prompter makes nearly free
MOST_OF_GRID = 5000


def open_regions(spec: str, more: Mapping[str, Callable[..., RegionSource]] | None = None) -> RegionSource:
    """Open a source of regions by `KIND[:WHAT][,name=value...]`.

    Args:
        spec: `labels`; `grid:COUNT`; or `package.module:Name`, as everywhere.
        more: Further kinds of the caller's, functions of (what, **options).

    Raises:
        UserError: On an unknown kind or option.
    """
    table = {**REGIONS, **(more or {})}
    kind, what, options = parse_spec(spec, table)
    return call_with_options(lookup(table, kind, "regions"), what, options=options, where=spec)


def from_labels(what: str = "") -> RegionSource:
    """The regions that the data has.

    Raises:
        UserError: If anything stands behind the colon.
    """
    if what:
        raise UserError(f"regions labels takes nothing more; got {what!r}")
    return lambda sample, pixels: list(sample.regions)


def from_grid(what: str = "") -> RegionSource:
    """Boxes of several sizes and shapes all over each picture.

    Args:
        what: Most boxes of a picture.

    Raises:
        UserError: If it is no number in 1..5000.
    """
    count = int(what) if what.isdecimal() and len(what) < 6 else 0 if what else GRID
    if not 1 <= count <= MOST_OF_GRID:
        raise UserError(f"regions grid:COUNT must be a whole number in 1..{MOST_OF_GRID}; got {what!r}")
    boxes = [tuple(box) for box in candidate_grid(count).double().tolist()]
    regions = [Region(box, "", float("nan"), OF_GRID) for box in boxes]
    return lambda sample, pixels: list(regions)
