"""A picture cut into windows as large as a model's canvas, and what a model sees of them laid together again.

Shapes: Q texts, D shared embedding, h w pixels of the resized picture, H W of the canvas.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from open_cloc.canvas import CanvasConfig, Geometry
from open_cloc.data.collate import stack_images
from open_cloc.errors import UserError
from open_cloc.evaluation.batches import EvaluationBatch
from open_cloc.evaluation.method import DenseMethod
from open_cloc.evaluation.protocols import DenseRules
from open_cloc.samples import RegionSample

LONGEST = 2048 / 224  # sides of the canvas that a resized picture has at most


def resized_hw(size_hw: tuple[int, int], canvas_hw: tuple[int, int], rules: DenseRules) -> tuple[int, int]:
    """(height, width) of a picture before it is cut: its short side as the rules say, in whole pixels."""
    side, more = min(canvas_hw), 0.0 if rules.sizes == "cut" else 0.5
    short, longest = (share * side for share in (rules.short_side, max(LONGEST, rules.short_side)))
    wanted, of = min((short, min(size_hw)), (longest, max(size_hw)), key=lambda pair: pair[0] / pair[1])
    height, width = (max(own, int(wanted * length / of + more)) for own, length in zip(canvas_hw, size_hw))
    return height, width


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin that cover a length; the last ends with it."""
    count = max(length - window + stride - 1, 0) // stride + 1
    return [max(0, min(number * stride, length - window)) for number in range(count)]


def cosines_of(
    method: DenseMethod,
    sample: RegionSample,
    pixels: np.ndarray,
    texts: Tensor,
    rules: DenseRules,
    batch: int,
) -> Tensor:
    """How near each place of a picture is to each text, or how likely the text is there, as the rules say.

    Args:
        method: Tells what is at each place.
        sample: The picture's, for messages.
        pixels: The picture.
        texts: (Q, D) of unit length.
        rules: How it is cut, and what is averaged.
        batch: Windows of a forward pass.

    Returns:
        (Q, h, w) of the resized picture, or of its places where that is seen at once; on the CPU.

    Raises:
        UserError: If it should be seen at once by a method that sees pictures of one size.
    """
    canvas = method.canvas
    height, width = resized_hw(pixels.shape[:2], canvas.image_size, rules)
    resized = Geometry.fit(pixels.shape[:2], (height, width), "squash")
    drawn = resized.draw(pixels, canvas.fill, rules.interpolation or canvas.interpolation)
    if rules.whole:
        return _cosines_at_once(method, sample, drawn, texts)
    total, counts = torch.zeros(len(texts), height, width), torch.zeros(height, width)
    places = list(_places((height, width), canvas, rules))
    for some in (places[i : i + batch] for i in range(0, len(places), batch)):
        tokens = method.embed_tokens(_as_batch(sample, drawn, some, canvas)).cpu()  # (B, rows, columns, D)
        cosines = (tokens.flatten(0, 2) @ texts.T).unflatten(0, tokens.shape[:3]).permute(0, 3, 1, 2)
        near = F.interpolate(cosines, canvas.image_size, mode="bilinear", align_corners=False)
        if rules.average == "probabilities":
            near = (rules.scale * near).softmax(1)
        for (y, x), window in zip(some, near):
            total[:, y : y + canvas.image_size[0], x : x + canvas.image_size[1]] += window
            counts[y : y + canvas.image_size[0], x : x + canvas.image_size[1]] += 1
    return total / counts


def _cosines_at_once(method: DenseMethod, sample: RegionSample, drawn: np.ndarray, texts: Tensor) -> Tensor:
    """The same of a picture (h, w, 3) that is seen at once: (Q, rows, columns) of its places.

    It is enlarged to whole patches first, as TIPS does it, but to the nearest of 256 values.
    """
    patch_hw = getattr(method, "patch_hw", None)
    if patch_hw is None:
        name = method.describe()["method"]
        raise UserError(
            f"method {name} sees pictures of one size alone; take a protocol of windows, such as tips"
        )
    size_hw = [-(-length // patch) * patch for length, patch in zip(drawn.shape[:2], patch_hw)]
    pixels = torch.from_numpy(drawn.copy()).permute(2, 0, 1)[None].float()  # (1, 3, h, w)
    enlarged = F.interpolate(pixels, size_hw, mode="bicubic", align_corners=False).round().clamp(0, 255)
    whole = Geometry.fit((size_hw[0], size_hw[1]), (size_hw[0], size_hw[1]), "squash")
    batch = EvaluationBatch([sample], enlarged.byte(), torch.tensor([whole.content_box]), [whole])
    return torch.einsum("hwd,qd->qhw", method.embed_tokens(batch)[0].cpu(), texts.cpu())


def _places(size_hw: tuple[int, int], canvas: CanvasConfig, rules: DenseRules) -> Iterator[tuple[int, int]]:
    """The upper left corner (y, x) of each window."""
    down, across = (
        starts(length, window, max(1, round(rules.stride * window)))
        for length, window in zip(size_hw, canvas.image_size)
    )
    yield from ((y, x) for y in down for x in across)


def _as_batch(
    sample: RegionSample, drawn: np.ndarray, places: list[tuple[int, int]], canvas: CanvasConfig
) -> EvaluationBatch:
    height, width = canvas.image_size
    windows = [np.ascontiguousarray(drawn[y : y + height, x : x + width]) for y, x in places]
    whole = Geometry.fit((height, width), (height, width), "squash")
    content = torch.tensor([whole.content_box] * len(places))
    return EvaluationBatch([sample] * len(places), stack_images(windows), content, [whole] * len(places))


def enlarged(values: Tensor, size_hw: tuple[int, int], at_once: int) -> Iterator[tuple[slice, Tensor]]:
    """Values (Q, h, w) resized to another (height, width), some rows at a time: these and (Q, rows, width).

    As `interpolate(mode="bilinear", align_corners=False)` gives it; large pictures have no room for all rows.

    Args:
        values: Of each place.
        size_hw: (height, width) that is wanted.
        at_once: Numbers that may be in memory, about.
    """
    height, width = size_hw
    wide = F.interpolate(values[None], (values.shape[1], width), mode="bilinear", align_corners=False)[0]
    rows = max(1, at_once // max(1, len(values) * width))
    ratio, last = values.shape[1] / height, values.shape[1] - 1
    for start in range(0, height, rows):
        own = torch.arange(start, min(start + rows, height), dtype=torch.float64)
        place = ((own + 0.5) * ratio - 0.5).clamp(0, last)
        low = place.long().clamp(max=last)
        share = (place - low).float()[:, None]
        high = (low + 1).clamp(max=last)
        yield slice(start, start + len(own)), wide[:, low] * (1 - share) + wide[:, high] * share
