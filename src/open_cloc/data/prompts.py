"""How regions are asked for in training, where not by their box: by points on them, or by their outline.

Shapes: R regions, P points of each; outlines come in cells of the canvas, `mask_cells` of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from open_cloc.canvas import Geometry, mask_cells
from open_cloc.masks import Mask
from open_cloc.samples import Region

MOST_POINTS = 3


def draw_prompts(
    regions: Sequence[Region],
    boxes: np.ndarray,
    geometry: Geometry,
    points: float,
    masks: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Points and outlines in place of two shares of the boxes, which exclude each other.

    Args:
        regions: R of them.
        boxes: (R, 4) normalised `xyxy` of the canvas.
        geometry: Where the picture lies on the canvas.
        points: Share that is asked for by points.
        masks: Share that is asked for by outlines.
        rng: Source of every random choice.

    Returns:
        As `draw_points` and `draw_masks` give them; None for what no share asks for.
    """
    draws = rng.random(len(regions))
    by_points = (draws >= masks) & (draws < masks + points)
    return (
        draw_points(regions, boxes, geometry, by_points, rng) if points else None,
        draw_masks(regions, geometry, draws < masks) if masks else None,
    )


def draw_points(
    regions: Sequence[Region],
    boxes: np.ndarray,
    geometry: Geometry,
    chosen: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Points on things, in place of some boxes (R, 4): (R, P, 2), NaN for the others.

    One to `MOST_POINTS` of them; where there are fewer, one repeats. They lie under the outline or, where
    none is known or in view, in the middle half of the box each way, where most boxes hold their thing.

    Args:
        regions: R of them.
        boxes: The regions' normalised `xyxy` of the canvas.
        geometry: Where the picture lies on the canvas.
        chosen: (R,) bool, which are asked for by points.
        rng: Source of every random choice.
    """
    count = len(boxes)
    places = rng.uniform(0.25, 0.75, (count, MOST_POINTS, 2))
    points = boxes[:, None, :2] + places * (boxes[:, None, 2:] - boxes[:, None, :2])
    used = rng.integers(1, MOST_POINTS + 1, count)
    for row in np.flatnonzero(chosen).tolist():
        mask = regions[row].mask
        if mask is not None:
            points[row] = _under(_on_canvas(mask, geometry), points[row], rng)
    unused = np.arange(MOST_POINTS) >= used[:, None]  # (R, P)
    points = np.where(unused[..., None], points[:, :1], points)
    points[~chosen] = np.nan
    return points.astype(np.float32)


def draw_masks(regions: Sequence[Region], geometry: Geometry, chosen: np.ndarray) -> np.ndarray | None:
    """Outlines in place of some boxes: (R, rows, columns) uint8, how much of each cell, of 255.

    Zeros for the other regions and for those without an outline; None where none has one.

    Args:
        regions: R of them.
        geometry: Where the picture lies on the canvas.
        chosen: (R,) bool, which are asked for by their outline.
    """
    if all(region.mask is None for region in regions):
        return None
    drawn = np.zeros((len(regions), *mask_cells(geometry.target_hw)), np.uint8)
    for row in np.flatnonzero(chosen).tolist():
        mask = regions[row].mask
        if mask is not None:
            drawn[row] = np.rint(_on_canvas(mask, geometry) * 255)
    return drawn


def stack_points(points: Sequence[np.ndarray | None], num_regions: int) -> Tensor | None:
    """What `draw_points` gave for each picture, padded to as many regions; None where it gave nothing."""
    return _stack(points, num_regions, np.nan)


def stack_masks(masks: Sequence[np.ndarray | None], num_regions: int) -> Tensor | None:
    """What `draw_masks` gave for each picture, padded to as many regions; None where it gave nothing."""
    return _stack(masks, num_regions, 0)


def _stack(parts: Sequence[np.ndarray | None], num_regions: int, fill: float) -> Tensor | None:
    known = [part for part in parts if part is not None]
    if not known:
        return None
    stacked = np.full((len(parts), num_regions, *known[0].shape[1:]), fill, known[0].dtype)
    for row, part in zip(stacked, parts):
        if part is not None:
            row[: len(part)] = part
    return torch.from_numpy(stacked)


def _on_canvas(mask: Mask, geometry: Geometry) -> np.ndarray:
    return geometry.masks_to_canvas(mask.pixels()[None], mask_cells(geometry.target_hw))[0]


def _under(cells: np.ndarray, instead: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Middles of cells, drawn by how much of them is covered; where nothing is, what stands `instead`."""
    rows, columns = cells.shape
    weights = cells.reshape(-1).astype(np.float64)
    if not weights.any():
        return instead
    drawn = rng.choice(len(weights), len(instead), p=weights / weights.sum())
    return (np.stack([drawn % columns, drawn // columns], 1) + 0.5) / (columns, rows)
