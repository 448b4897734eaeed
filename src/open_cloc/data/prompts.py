"""How regions are asked for in training, where not by their box: by points, by an outline, by several boxes.

Shapes: R regions, P points or boxes of each; outlines come in cells of the canvas, `mask_cells` of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from open_cloc.canvas import Geometry, mask_cells
from open_cloc.masks import Mask
from open_cloc.samples import Region

MOST_POINTS = 3
MOST_BOXES = 3


class Shares(NamedTuple):
    """Which share of the regions is asked for by what, in place of their box; at most 1 together."""

    masks: float = 0
    points: float = 0
    box_sets: float = 0


class Prompts(NamedTuple):
    """What is asked by in place of some boxes; None where no share asks for it."""

    points: np.ndarray | None = None  # (R, P, 2) float32, NaN where the box asks
    masks: np.ndarray | None = None  # (R, rows, columns) uint8, zeros where the box asks
    box_sets: np.ndarray | None = None  # (R, P, 4) float32, NaN where the box asks


def draw_prompts(
    regions: Sequence[Region],
    boxes: np.ndarray,
    same: Sequence[np.ndarray],
    geometry: Geometry,
    shares: Shares,
    rng: np.random.Generator,
) -> Prompts:
    """Prompts in place of shares of the boxes, which exclude each other.

    Args:
        regions: R of them.
        boxes: (R, 4) normalised `xyxy` of the canvas.
        same: For each the boxes (S, 4) of other regions of the picture that have its text.
        geometry: Where the picture lies on the canvas.
        shares: Of each kind of prompt.
        rng: Source of every random choice.
    """
    draws = rng.random(len(regions))
    ends = np.cumsum(shares)
    by_masks, by_points, by_sets = (
        (draws >= end - share) & (draws < end) for share, end in zip(shares, ends, strict=True)
    )
    return Prompts(
        points=draw_points(regions, boxes, geometry, by_points, rng) if shares.points else None,
        masks=draw_masks(regions, geometry, by_masks) if shares.masks else None,
        box_sets=draw_box_sets(regions, boxes, same, geometry, by_sets, rng) if shares.box_sets else None,
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


def draw_box_sets(
    regions: Sequence[Region],
    boxes: np.ndarray,
    same: Sequence[np.ndarray],
    geometry: Geometry,
    chosen: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Sets of boxes in place of some boxes (R, 4): (R, P, 4), NaN for the others.

    Where other regions of the picture have its text, the set is of the region and of these; else it is of
    parts of the region. Its box is cut in four at a random place, and two opposite quarters or three of them
    are kept, drawn tight around the outline where one is known and in view. Where there are fewer than
    `MOST_BOXES`, one repeats.

    Args:
        regions: R of them.
        boxes: The regions' normalised `xyxy` of the canvas.
        same: For each the boxes (S, 4) of other regions of the picture that have its text.
        geometry: Where the picture lies on the canvas.
        chosen: (R,) bool, which are asked for by several boxes.
        rng: Source of every random choice.
    """
    sets = np.full((len(boxes), MOST_BOXES, 4), np.nan, np.float32)
    for row in np.flatnonzero(chosen).tolist():
        mask = regions[row].mask
        if len(same[row]):
            others = same[row][rng.permutation(len(same[row]))[: MOST_BOXES - 1]]
            members = np.concatenate([boxes[[row]], others])
        else:
            members = _quarters(boxes[row], rng)
            if mask is not None:
                members = _tightened(members, _on_canvas(mask, geometry))
        sets[row] = np.concatenate([members, members[:1].repeat(MOST_BOXES - len(members), 0)])
    return sets


def _quarters(box: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two opposite quarters of a box (4,), or three of them: (2 or 3, 4)."""
    x1, y1, x2, y2 = box
    cut = box[:2] + rng.uniform(0.25, 0.75, 2) * (box[2:] - box[:2])
    cx, cy = cut
    around = np.array([[x1, y1, cx, cy], [cx, y1, x2, cy], [cx, cy, x2, y2], [x1, cy, cx, y2]])
    first, count = rng.integers(4), rng.integers(2, MOST_BOXES + 1)
    return np.roll(around, first, 0)[::2] if count == 2 else np.roll(around, first, 0)[:MOST_BOXES]


def _tightened(boxes: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Boxes (P, 4) drawn tight around what is covered within them; as they are where nothing is in any."""
    rows, columns = cells.shape
    scale = np.array([columns, rows, columns, rows])
    tight = []
    for box in boxes:
        left, top = np.floor(box[:2] * scale[:2]).astype(int)
        right, bottom = np.ceil(box[2:] * scale[2:]).astype(int)
        ys, xs = np.nonzero(cells[top:bottom, left:right])
        if len(xs):
            ends = np.array([left + xs.min(), top + ys.min(), left + xs.max() + 1, top + ys.max() + 1])
            ends = ends / scale
            tight.append([*np.maximum(ends, box)[:2], *np.minimum(ends, box)[2:]])
    return np.array(tight) if tight else boxes


def stack_prompts(prompts: Sequence[Prompts], num_regions: int) -> dict[str, Tensor | None]:
    """What `draw_prompts` gave for each picture, by name, padded to as many regions; None where nothing."""
    return {
        name: _stack([getattr(own, name) for own in prompts], num_regions, 0 if name == "masks" else np.nan)
        for name in Prompts._fields
    }


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
