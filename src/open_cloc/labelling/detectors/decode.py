"""From what a detector's heads say of one picture to its `Detections`.

Shapes: N boxes, P phrases.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from open_cloc.boxes import convert_boxes
from open_cloc.errors import UserError
from open_cloc.labelling.detectors.canvas import Canvas
from open_cloc.labelling.recipe import DetectorConfig
from open_cloc.labelling.types import Detections, Failure

NOT_FINITE = "detector gave no finite output"
# The only cause in `Detections.dropped` that counts no box.
CUT = "phrase asked without its first words"

Detect = Callable[[Sequence[np.ndarray], Sequence[Sequence[str]]], list["Detections | Failure"]]


class Raw(NamedTuple):
    """A model's raw output for one picture.

    Attributes:
        boxes: Boxes (N, 4), normalised `cxcywh` of the canvas.
        scores: How well each box fits each phrase, (N, P) in [0, 1].
        cut: Number of phrases that were too long for the model.
    """

    boxes: Tensor
    scores: Tensor
    cut: int = 0


def decode(raw: Raw, canvas: Canvas, config: DetectorConfig) -> Detections | Failure:
    """Boxes of the picture, inside it, best first; whatever cannot be one is counted."""
    xyxy = canvas.to_picture(convert_boxes(raw.boxes.double(), "cxcywh"))
    return keep_boxes(xyxy, raw.scores, config, raw.cut)


def keep_boxes(boxes: Tensor, scores: Tensor, config: DetectorConfig, cut: int = 0) -> Detections | Failure:
    """Choose the raw boxes that are stored.

    Args:
        boxes: Boxes (N, 4), normalised `xyxy` of the picture, of any value.
        scores: How well each box fits each phrase, (N, P), of any value.
        config: Names the limits, `raw_score` and `max_boxes`.
        cut: Number of phrases that were too long for the model.

    Returns:
        The boxes whose best score is above `raw_score`, best first, clipped to the picture; a `Failure` where
        the model says nothing finite.
    """
    boxes, scores = boxes.detach().double().cpu(), scores.detach().float().cpu()
    finite = boxes.isfinite().all(1) & scores.isfinite().all(1)
    if len(finite) and not finite.any():
        return Failure(NOT_FINITE, f"all of {len(finite)} boxes have a number in them that is not finite")
    dropped = Counter({"not finite": int((~finite).sum()), CUT: cut})
    good = finite & (scores.nan_to_num().amax(1) > config.raw_score)
    boxes, scores = boxes[good], scores[good]
    inside = boxes.clamp(0, 1).float()  # what is compared is what is stored
    has_area = ((inside[:, 2:] - inside[:, :2]) > 0).all(1)
    was_empty = ((boxes[:, 2:] - boxes[:, :2]) <= 0).any(1)
    dropped["empty"] = int((~has_area & was_empty).sum())
    dropped["outside the picture"] = int((~has_area & ~was_empty).sum())
    boxes, scores = inside[has_area], scores[has_area]
    order = scores.amax(1).sort(descending=True, stable=True).indices
    dropped[f"beyond the best {config.max_boxes}"] = max(0, len(order) - config.max_boxes)
    order = order[: config.max_boxes]
    return Detections(boxes[order].numpy(), scores[order].numpy(), dict(+dropped))


def skip_without_phrases(
    detect: Detect, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]
) -> list[Detections | Failure]:
    """Run a detector on the pictures that have phrases; the others have no boxes, and cost nothing.

    Raises:
        UserError: If there are not as many lists of phrases as pictures, or a picture is no (H, W, 3) uint8.
    """
    if len(images) != len(phrases):
        raise UserError(f"every picture needs its phrases; got {len(images)} and {len(phrases)} lists")
    for row, image in enumerate(images):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise UserError(f"pictures must be (H, W, 3) uint8; got {image.dtype} {image.shape} in row {row}")
    results: list[Detections | Failure] = [no_detections(len(own)) for own in phrases]
    asked = [row for row, own in enumerate(phrases) if own]
    if asked:
        with torch.inference_mode():
            found = detect([images[row] for row in asked], [phrases[row] for row in asked])
        for row, result in zip(asked, found):
            results[row] = result
    return results


def no_detections(num_phrases: int) -> Detections:
    """No box of any of the phrases."""
    return Detections(np.zeros((0, 4), np.float32), np.zeros((0, num_phrases), np.float32))
