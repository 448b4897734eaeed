"""Resize, crop, pad and flip as one object that moves a picture and its boxes together, and back.

Every step is an affine map of the picture's corners, so their composition is one too: a `Geometry` keeps the
window of the source that is used, the whole-pixel rectangle of the canvas that it fills, and whether the
canvas is mirrored. The box map is derived from exactly these numbers, hence never drifts from the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from open_cloc.errors import UserError

RESIZE_MODES = ("longest", "squash")

MAX_SIDE = 8192  # pixels: the largest canvas is 200 MB
MASK_CELL = 2  # pixels, at most, on a side of the cells in which outlines come to a model
MAX_LEVEL = 1000.0  # far beyond what a mean or a deviation of pixels may be

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

TORCH_INTERPOLATIONS = ("bilinear", "bicubic")

# Of pixels in [0, 1], as OpenAI trained CLIP; most models keep to them.
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

Array = TypeVar("Array", np.ndarray, torch.Tensor)


@dataclass(frozen=True)
class CanvasConfig:
    """How a picture becomes the tower's input.

    Attributes:
        image_size: (height, width) of the canvas in pixels.
        mean: Mean of each channel, of pixels in [0, 1].
        std: Standard deviation of each channel.
        resize_mode: `longest` (the long side resized, the rest padded, as in the paper) or `squash`. Never a
            centre crop: boxes must survive.
        interpolation: `bicubic` or `bilinear`.
        fill: Colour of the padding, RGB in 0..255.
    """

    image_size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    resize_mode: Literal["longest", "squash"] = "longest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    fill: tuple[int, int, int] = (122, 116, 104)

    def __post_init__(self) -> None:
        if self.resize_mode not in RESIZE_MODES:
            raise UserError(f"unknown resize_mode {self.resize_mode!r}; expected longest or squash")
        if self.interpolation not in TORCH_INTERPOLATIONS:
            raise UserError(f"unknown interpolation {self.interpolation!r}; expected bicubic or bilinear")
        if not all(1 <= side <= MAX_SIDE for side in self.image_size):
            raise UserError(f"image_size must lie in [1, {MAX_SIDE}] a side; got {tuple(self.image_size)}")
        if not all(abs(mean) < MAX_LEVEL for mean in self.mean):
            raise UserError(f"mean must be of pixels in [0, 1]; got {tuple(self.mean)}")
        if not all(1 / MAX_LEVEL < std < MAX_LEVEL for std in self.std):
            raise UserError(f"std must be above 0, of pixels in [0, 1]; got {tuple(self.std)}")
        if not all(0 <= level <= 255 for level in self.fill):
            raise UserError(f"fill must lie in [0, 255]; got {tuple(self.fill)}")


@dataclass(frozen=True)
class Geometry:
    """How a source picture comes to lie on a canvas.

    Attributes:
        source_hw: (height, width) of the source picture.
        target_hw: (height, width) of the canvas.
        mode: `longest` keeps the aspect ratio and pads (centred); `squash` fills the canvas.
        window: Part of the source that is used, (x1, y1, x2, y2) in whole source pixels.
        content: Where the window lands, (x1, y1, x2, y2) in whole canvas pixels, before mirroring.
        flipped: Whether the whole canvas is mirrored left to right at the end.
    """

    source_hw: tuple[int, int]
    target_hw: tuple[int, int]
    mode: str
    window: tuple[int, int, int, int]
    content: tuple[int, int, int, int]
    flipped: bool = False

    @classmethod
    def fit(cls, source_hw: tuple[int, int], target_hw: tuple[int, int], mode: str = "longest") -> Geometry:
        """Fit a whole picture onto a canvas.

        Args:
            source_hw: (height, width) of the picture.
            target_hw: (height, width) of the canvas.
            mode: `longest` (long side resized, rest padded evenly) or `squash`.

        Raises:
            UserError: If a side is under one pixel.
            ValueError: On an unknown mode.
        """
        if mode not in RESIZE_MODES:
            raise ValueError(f"unknown resize mode {mode!r}; expected one of {', '.join(RESIZE_MODES)}")
        for name, size_hw in (("source", source_hw), ("target", target_hw)):
            if min(size_hw) < 1:
                raise UserError(f"{name} size must be at least 1 x 1; got (height, width) = {size_hw}")
        height, width = (int(side) for side in source_hw)
        window = (0, 0, width, height)
        target = (int(target_hw[0]), int(target_hw[1]))
        return cls((height, width), target, mode, window, _place(window, target, mode))

    def crop(self, box: Sequence[float]) -> Geometry:
        """Use only a part of the source, refitted onto the same canvas.

        Args:
            box: The part, normalised `xyxy` of the *source* picture; rounded to whole pixels, at least one
                each way.
        """
        height, width = self.source_hw
        x1, x2 = _pixel_span(box[0], box[2], width)
        y1, y2 = _pixel_span(box[1], box[3], height)
        window = (x1, y1, x2, y2)
        return replace(self, window=window, content=_place(window, self.target_hw, self.mode))

    def flip(self) -> Geometry:
        """Mirror the canvas left to right; twice is the same as never."""
        return replace(self, flipped=not self.flipped)

    @property
    def content_box(self) -> tuple[float, float, float, float]:
        """Normalised `xyxy` of the picture inside the canvas, padding left out."""
        height, width = self.target_hw
        x1, y1, x2, y2 = self.content
        if self.flipped:
            x1, x2 = width - x2, width - x1
        return (x1 / width, y1 / height, x2 / width, y2 / height)

    def draw(
        self,
        pixels: np.ndarray,
        fill: tuple[int, int, int] = (0, 0, 0),
        interpolation: str = "bicubic",
    ) -> np.ndarray:
        """Draw the picture on the canvas.

        Args:
            pixels: (H, W, 3) uint8 of the source.
            fill: Colour of the padding.
            interpolation: A name of `INTERPOLATIONS`; always antialiased.

        Returns:
            (target height, target width, 3) uint8.

        Raises:
            ValueError: If the pixels are not of the source's size, or the interpolation is unknown.
        """
        if pixels.shape != (*self.source_hw, 3) or pixels.dtype != np.uint8:
            raise ValueError(
                f"picture must be (H, W, 3) uint8 of size {self.source_hw}; got {pixels.dtype} {pixels.shape}"
            )
        if interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise ValueError(f"unknown interpolation {interpolation!r}; expected one of {known}")
        x1, y1, x2, y2 = self.content
        left, top, right, bottom = self.window
        if (right - left, bottom - top) == (x2 - x1, y2 - y1):
            resized = pixels[top:bottom, left:right]
        else:
            resized = resize(pixels[top:bottom, left:right], (y2 - y1, x2 - x1), interpolation)
        canvas = np.empty((*self.target_hw, 3), np.uint8)
        # A row at a time is 28 times as fast as a pixel at a time.
        canvas[:] = np.tile(np.array(fill, np.uint8), (canvas.shape[1], 1))
        canvas[y1:y2, x1:x2] = resized
        return np.ascontiguousarray(canvas[:, ::-1]) if self.flipped else canvas

    def to_canvas(self, boxes: Array) -> Array:
        """Map normalised `xyxy` boxes (..., 4) of the source to the canvas; not clipped."""
        scale, shift = self._affine()
        mapped = _scale_and_shift(boxes, scale, shift)
        return _mirror(mapped) if self.flipped else mapped

    def from_canvas(self, boxes: Array) -> Array:
        """Map normalised `xyxy` boxes (..., 4) of the canvas back to the source; not clipped."""
        scale, shift = self._affine()
        return _scale_and_shift(_mirror(boxes) if self.flipped else boxes, 1 / scale, -shift / scale)

    def masks_to_canvas(self, masks: np.ndarray, cells: tuple[int, int] | None = None) -> np.ndarray:
        """Carry masks of the source to the canvas, each of its cells by the area that is covered.

        Args:
            masks: (R, H, W) bool, or shares in [0, 1], of a grid over the source, usually its pixels.
            cells: Rows and columns of cells that the canvas is cut into; its pixels unless given.

        Returns:
            (R, rows, columns) float32 in [0, 1]; zero in the padding.
        """
        cells = cells or self.target_hw
        height, width = masks.shape[1:]
        rows, columns = self._shares(1, height, cells[0]), self._shares(0, width, cells[1])
        canvases = np.empty((len(masks), *cells), np.float32)
        # One at a time: all of them as floats may be gigabytes.
        for canvas, mask in zip(canvases, masks):
            # Most of a large picture is not under the mask.
            used_y, used_x = _span(mask.any(1)), _span(mask.any(0))
            inside = mask[used_y, used_x].astype(np.float32)
            canvas[:] = rows[:, used_y] @ inside @ columns[:, used_x].T
        return canvases

    def _shares(self, axis: int, number: int, cells: int) -> np.ndarray:
        """(cells of the canvas, of the source): how much of each the latter fill, on axis 0 (x) or 1 (y)."""
        size, target = self.source_hw[1 - axis], self.target_hw[1 - axis]
        start, end = self.content[axis], self.content[axis + 2]
        used, used_end = self.window[axis], self.window[axis + 2]
        places = np.arange(number + 1) * size / number  # in pixels of the source
        edges = start + (places - used) * (end - start) / (used_end - used)
        # What lies outside of the window fills nothing.
        edges = edges.clip(start, end) * (cells / target)
        firsts = np.arange(cells)[:, None]
        shares = np.minimum(edges[1:], firsts + 1) - np.maximum(edges[:-1], firsts)
        shares = shares.clip(0).astype(np.float32)
        return shares[::-1] if axis == 0 and self.flipped else shares

    def _affine(self) -> tuple[np.ndarray, np.ndarray]:
        """(4,) factors and offsets from source to unmirrored canvas, both normalised, float64."""
        source, target = np.array(self.source_hw[::-1], float), np.array(self.target_hw[::-1], float)
        window, content = np.array(self.window, float), np.array(self.content, float)
        zoom = (content[2:] - content[:2]) / (window[2:] - window[:2])  # canvas pixels per source pixel
        scale = source * zoom / target
        shift = (content[:2] - window[:2] * zoom) / target
        return np.tile(scale, 2), np.tile(shift, 2)


def resize(pixels: np.ndarray, size_hw: tuple[int, int], interpolation: str = "bicubic") -> np.ndarray:
    """Scale a picture, antialiased.

    Bilinear and bicubic are torch's uint8 kernels: several times as fast as Pillow, within 1 of 255 of it.

    Args:
        pixels: (H, W, 3) uint8.
        size_hw: (height, width) of the result.
        interpolation: A name of `INTERPOLATIONS`.

    Returns:
        (height, width, 3) uint8.
    """
    if interpolation not in TORCH_INTERPOLATIONS:
        picture = Image.fromarray(pixels)
        return np.asarray(picture.resize(size_hw[::-1], INTERPOLATIONS[interpolation]))
    image = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)  # (3, H, W)
    scaled = interpolate(image[None], size=size_hw, mode=interpolation, antialias=True)[0]
    return scaled.permute(1, 2, 0).numpy()


def _span(used: np.ndarray) -> slice:
    """From the first True to behind the last."""
    places = np.flatnonzero(used)
    return slice(places[0], places[-1] + 1) if len(places) else slice(0, 0)


def mask_cells(canvas_hw: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the grid in which outlines come to a model, of a canvas (height, width)."""
    return (-(-canvas_hw[0] // MASK_CELL), -(-canvas_hw[1] // MASK_CELL))


def _place(
    window: tuple[int, int, int, int], target_hw: tuple[int, int], mode: str
) -> tuple[int, int, int, int]:
    """Whole-pixel rectangle of the canvas that a source window fills, centred."""
    width, height = window[2] - window[0], window[3] - window[1]
    target_height, target_width = target_hw
    if mode == "longest":
        zoom = min(target_height / height, target_width / width)
        width = min(target_width, max(1, round(width * zoom)))
        height = min(target_height, max(1, round(height * zoom)))
    else:
        width, height = target_width, target_height
    left, top = (target_width - width) // 2, (target_height - height) // 2
    return (left, top, left + width, top + height)


def _pixel_span(low: float, high: float, size: int) -> tuple[int, int]:
    """Nearest whole pixels to a normalised span, inside the picture and at least one pixel long."""
    first = min(max(round(low * size), 0), size - 1)
    return first, min(max(round(high * size), first + 1), size)


def _scale_and_shift(boxes: Array, scale: np.ndarray, shift: np.ndarray) -> Array:
    """Boxes (..., 4) times (4,) factors plus (4,) offsets, in the boxes' own precision."""
    if isinstance(boxes, torch.Tensor):
        return boxes * boxes.new_tensor(scale) + boxes.new_tensor(shift)
    return (boxes * scale + shift).astype(boxes.dtype)


def _mirror(boxes: Array) -> Array:
    """Mirror left to right: the right edge becomes the left one."""
    columns = (1 - boxes[..., 2], boxes[..., 1], 1 - boxes[..., 0], boxes[..., 3])
    if isinstance(boxes, torch.Tensor):
        return torch.stack(columns, dim=-1)
    return np.stack(columns, axis=-1)
