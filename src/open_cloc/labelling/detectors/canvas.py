"""Pictures as a detector takes them, and its boxes back: our own geometry, whatever the library's version.

The picture is scaled once and stands in the top-left corner of a canvas. All that a box needs is how much of
the canvas that is, so that the way there and the way back cannot drift apart.

Shapes: B pictures, N boxes, h w pixels of the picture on its canvas, H W pixels of the canvas.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from open_cloc.canvas import resize
from open_cloc.errors import UserError
from open_cloc.files import read_json

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Pillow's numbers of its filters, as configs have them.
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
# Where a checkpoint describes its pictures.
FILES = ("preprocessor_config.json", "processor_config.json")
SIDES, EDGES = ("height", "width"), ("shortest_edge", "longest_edge")


class Canvas(NamedTuple):
    """Where a picture lies.

    Attributes:
        content_hw: Size of the picture on the canvas (height, width), from the top-left corner.
        canvas_hw: Size of the canvas (height, width).
    """

    content_hw: tuple[int, int]
    canvas_hw: tuple[int, int]

    def to_picture(self, boxes: Tensor) -> Tensor:
        """Normalised `xyxy` boxes (..., 4) of the canvas -> of the picture; not clipped."""
        (height, width), (full_height, full_width) = self.content_hw, self.canvas_hw
        return boxes * boxes.new_tensor([full_width / width, full_height / height] * 2)


@dataclass(frozen=True)
class Preprocess:
    """What a checkpoint expects of its pictures.

    Attributes:
        mode: `pad` to a square, bottom and right, then to `size`; `squash` to `size`; `edges`: as large as
            `size` allows, as shortest and longest edge.
        size: Size of the canvas (height, width), or its (shortest, longest) edge.
        mean: Mean of each channel, of pixels in [0, 1].
        std: Standard deviation of each channel.
        pad_value: Value of the padding, of pixels in [0, 1] before the mean is taken off; None for the mean.
        interpolation: One of `canvas.INTERPOLATIONS`, such as `bilinear`; always antialiased.
    """

    mode: Literal["pad", "squash", "edges"]
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad_value: float | None
    interpolation: str

    def canvas(self, source_hw: tuple[int, int], min_area: int = 0) -> Canvas:
        """Where a picture of this (height, width) goes; `edges` pads a canvas under `min_area` pixels."""
        height, width = source_hw
        if min(source_hw) < 1:
            raise UserError(f"pictures must be at least 1 x 1; got (height, width) = {source_hw}")
        if self.mode == "squash":
            return Canvas(self.size, self.size)
        if self.mode == "pad":
            content = _scaled(source_hw, *(side / max(source_hw) for side in self.size))
            return Canvas(content, self.size)
        shortest, longest = self.size
        zoom = min(shortest / min(source_hw), longest / max(source_hw))
        short = max(1, round(min(source_hw) * zoom))
        # As the library rounds: same pixels, same output.
        long = max(short, int(max(source_hw) * zoom + 1e-6))
        content = (short, long) if height <= width else (long, short)
        # What the shorter side needs; only very thin pictures have less.
        needed = -(-min_area // max(content))
        return Canvas(content, (max(content[0], needed), max(content[1], needed)))

    def scale(self, image: np.ndarray) -> np.ndarray:
        """A picture (H, W, 3) uint8 as large as on its canvas: `draw` makes the same of both."""
        canvas = self.canvas(image.shape[:2])
        if canvas.content_hw == image.shape[:2] or self.canvas(canvas.content_hw) != canvas:
            return image  # rounding may ask for another size the second time
        return resize(np.ascontiguousarray(image), canvas.content_hw, self.interpolation)

    def draw(self, images: Sequence[np.ndarray], canvases: Sequence[Canvas], device: torch.device) -> Tensor:
        """Pictures (H, W, 3) uint8 on canvases of one size -> (B, 3, H, W) float32, normalised."""
        pixels = torch.zeros(len(images), *canvases[0].canvas_hw, 3, dtype=torch.uint8)
        for row, (image, canvas) in enumerate(zip(images, canvases)):
            height, width = canvas.content_hw
            if image.shape[:2] != canvas.content_hw:
                image = resize(np.ascontiguousarray(image), canvas.content_hw, self.interpolation)
            pixels[row, :height, :width] = torch.from_numpy(np.require(image, requirements=["C", "W"]))
        mean, std = (torch.tensor(x, device=device).view(3, 1, 1) for x in (self.mean, self.std))
        floats = pixels.to(device).permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std)  # (B, 3, H, W)
        fill = torch.zeros_like(mean) if self.pad_value is None else (self.pad_value - mean) / std
        for own, canvas in zip(floats, canvases):
            height, width = canvas.content_hw
            own[:, height:] = fill
            own[:, :, width:] = fill
        return floats.contiguous()

    def provenance(self) -> dict[str, Any]:
        """Every setting, as JSON types."""
        return json.loads(json.dumps(asdict(self)))


def _scaled(source_hw: tuple[int, int], zoom_y: float, zoom_x: float) -> tuple[int, int]:
    return max(1, round(source_hw[0] * zoom_y)), max(1, round(source_hw[1] * zoom_x))


def read_preprocess(folder: Path, default: Preprocess) -> Preprocess:
    """What a checkpoint's own file says of its pictures, and the default where it says nothing.

    Args:
        folder: The checkpoint.
        default: What the architecture expects; each detector knows its own.

    Raises:
        UserError: If the file asks for something that would change boxes or is not understood.
    """
    given = _read_config(folder)
    _check_steps(given, folder)
    if given.get("do_normalize") is False:
        given = {**given, "image_mean": (0.0,) * 3, "image_std": (1.0,) * 3}
    pads = default.mode == "pad" and given.get("do_pad", True) is not False
    size = given.get("size", default.size)
    has_sides = default.mode != "edges" or (isinstance(size, Mapping) and "height" in size)
    return Preprocess(
        "pad" if pads else "squash" if has_sides else "edges",
        _pair(size, SIDES, None, folder) if has_sides else _pair(size, EDGES, default.size[1], folder),
        tuple(float(x) for x in given.get("image_mean", default.mean)),
        tuple(float(x) for x in given.get("image_std", default.std)),
        float(given.get("pad_value", default.pad_value)) if pads else None,
        _interpolation(given["resample"], folder) if "resample" in given else default.interpolation,
    )


def _read_config(folder: Path) -> Mapping[str, Any]:
    for name in FILES:
        path = folder / name
        if path.is_file():
            config = read_json(path)
            own = config.get("image_processor") if name == "processor_config.json" else config
            if isinstance(own, dict):
                return own
    return {}


def _interpolation(resample: Any, folder: Path) -> str:
    if resample not in RESAMPLING:
        raise UserError(f"{folder}: unknown resample {resample!r}; expected one of {sorted(RESAMPLING)}")
    return RESAMPLING[resample]


def _check_steps(given: Mapping[str, Any], folder: Path) -> None:
    for name in ("do_resize", "do_rescale"):
        if given.get(name) is False:
            raise UserError(f"{folder}: pictures without {name.removeprefix('do_')} are not supported")
    size, crop = given.get("size"), given.get("crop_size")
    if given.get("do_center_crop") and crop != size:
        raise UserError(
            f"{folder}: a centre crop to {crop} would cut objects off; set do_center_crop to false"
        )
    factor = given.get("rescale_factor", 1 / 255)
    if abs(factor * 255 - 1) > 1e-3:
        raise UserError(f"{folder}: rescale_factor must be 1/255; got {factor}")


def _pair(value: Any, names: tuple[str, str], longest: int | None, folder: Path) -> tuple[int, int]:
    """A size in any of the forms that checkpoints have: a number, two numbers, or a table.

    Args:
        value: The size, as the checkpoint has it.
        names: Keys of the two numbers in a table.
        longest: What stands beside a single number; None for the number itself.
        folder: The checkpoint, for messages.
    """
    known: list[Any]
    if isinstance(value, Mapping):
        known = [value.get(name) for name in names]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        known = list(value)
    else:
        known = [value, longest or value]
    if len(known) != 2 or not all(isinstance(side, int) and side > 0 for side in known):
        raise UserError(f"{folder}: size must give {' and '.join(names)} in pixels; got {value!r}")
    return known[0], known[1]
