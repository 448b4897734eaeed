"""Outlines of things, as the run lengths that COCO keeps them in: a few hundred bytes each.

Shapes: H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from open_cloc.config import require
from open_cloc.errors import SampleError, UserError

BROKEN = "broken outline"
LARGEST = 2**27  # pixels: more are no picture
# A number is written in characters of five bits and a bit that says whether more follow, from `0` on.
FIRST, BITS, SIGN, MORE = ord("0"), 5, 16, 32


@dataclass(frozen=True)
class Mask:
    """Which pixels of a picture show a thing.

    Attributes:
        size_hw: (height, width) of the grid that lies over the whole picture, usually its own pixels.
        counts: COCO's compressed run lengths: of pixels off and on in turn, down one column after the other.
    """

    size_hw: tuple[int, int]
    counts: str

    @classmethod
    def of(cls, pixels: np.ndarray) -> Mask:
        """The mask of pixels (H, W) bool.

        Raises:
            UserError: If they are of another shape.
        """
        pixels = np.asarray(pixels, bool)
        if pixels.ndim != 2 or not pixels.size:
            raise UserError(f"a mask must be (H, W), of a pixel at least; got {pixels.shape}")
        flat = pixels.T.reshape(-1)
        ends = np.flatnonzero(np.diff(flat)) + 1
        runs = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
        height, width = pixels.shape
        return cls((height, width), _written([0, *runs] if flat[:1].any() else runs))

    @classmethod
    def of_runs(cls, size_hw: tuple[int, int], runs: list[int]) -> Mask:
        """The mask of run lengths that are not compressed.

        Raises:
            SampleError: If they do not fill the grid.
        """
        _check(size_hw, runs)
        return cls(size_hw, _written(runs))

    def runs(self) -> list[int]:
        """Its run lengths.

        Raises:
            SampleError: If they are none, or do not fill the grid.
        """
        runs = _read(self.counts)
        _check(self.size_hw, runs)
        return runs

    def box(self) -> tuple[float, float, float, float] | None:
        """Normalised `xyxy` around it; None where it covers no pixel.

        Raises:
            SampleError: If the run lengths are none, or do not fill the grid.
        """
        ends = np.cumsum([0, *self.runs()])
        height, width = self.size_hw
        starts, stops = ends[1:-1:2], ends[2::2]
        starts, stops = starts[stops > starts], stops[stops > starts]
        if not len(starts):
            return None
        first, last = starts // height, (stops - 1) // height  # columns
        is_whole = last > first  # goes on into the next column: all rows
        top = np.where(is_whole, 0, starts % height).min()
        bottom = np.where(is_whole, height, (stops - 1) % height + 1).max()
        return first.min() / width, top / height, (last.max() + 1) / width, bottom / height

    def pixels(self) -> np.ndarray:
        """(H, W) bool.

        Raises:
            SampleError: If the run lengths are none, or do not fill the grid.
        """
        runs = self.runs()
        height, width = self.size_hw
        return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def mask_of_polygons(polygons: list[list[float]], size_hw: tuple[int, int]) -> Mask:
    """What any of some polygons covers, by COCO's own rule for pixels on the edge.

    Args:
        polygons: x and y of the corners in turn, in pixels of the picture.
        size_hw: (height, width) of the picture.

    Raises:
        SampleError: If a corner lies more than a pixel outside, or a polygon has fewer than three.
        MissingExtraError: Without the extra `eval`.
    """
    height, width = size_hw
    clipped = []
    for polygon in polygons:
        corners = np.array(polygon, np.float64)
        if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2:
            raise SampleError(
                f"a polygon is x, y, x, y, ... of three corners at least; got {len(polygon)} numbers", BROKEN
            )
        xs, ys = corners[::2], corners[1::2]
        inside = (xs >= -1) & (xs <= width + 1) & (ys >= -1) & (ys <= height + 1)
        if not inside.all():  # NaN is not
            x, y = corners.reshape(-1, 2)[~inside][0]
            raise SampleError(f"corner ({x:g}, {y:g}) lies outside of {width} x {height}", BROKEN)
        clipped.append(np.stack([xs.clip(0, width), ys.clip(0, height)], 1).reshape(-1).tolist())
    tools: Any = require("pycocotools.mask", "eval")
    merged = tools.merge(tools.frPyObjects(clipped, height, width))
    return Mask(size_hw, merged["counts"].decode())


def _check(size_hw: tuple[int, int], runs: list[int]) -> None:
    height, width = size_hw
    if not 0 < height * width <= LARGEST:
        raise SampleError(f"an outline of {width} x {height} pixels is none", BROKEN)
    if min(runs, default=-1) < 0 or sum(runs) != height * width:
        raise SampleError(f"run lengths do not fill {width} x {height} pixels", BROKEN)


def _written(runs: list[int]) -> str:
    """Run lengths as text; from the fourth on, each as its difference to the one but one before."""
    text = bytearray()
    for place, run in enumerate(runs):
        value = run - runs[place - 2] if place > 2 else run
        while True:
            bits = value & (MORE - 1)
            value >>= BITS
            done = value == (-1 if bits & SIGN else 0)
            text.append(FIRST + (bits if done else bits | MORE))
            if done:
                break
    return text.decode()


def _read(counts: str) -> list[int]:
    values, value, shift = [], 0, 0
    for character in counts.encode(errors="surrogatepass"):
        bits = character - FIRST
        if not 0 <= bits < 2 * MORE or shift > 60:
            raise SampleError("run lengths hold what is no number", BROKEN)
        value |= (bits & (MORE - 1)) << shift
        shift += BITS
        if not bits & MORE:
            values.append(value - (1 << shift) if bits & SIGN else value)
            value, shift = 0, 0
    if shift:
        raise SampleError("run lengths end within a number", BROKEN)
    # Odd and even runs from the second on are sums of what is written.
    runs = values[:1]
    runs[1:] = [0] * (len(values) - 1)
    runs[1::2], runs[2::2] = accumulate(values[1::2]), accumulate(values[2::2])
    return runs
