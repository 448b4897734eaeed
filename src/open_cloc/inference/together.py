"""Boxes of several pictures through the Prompter together: its weights are read once for all of them.

Shapes: R regions of a picture, D shared embedding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from open_cloc.inference.encoded import EncodedImage, Regions, require_numbers
from open_cloc.model.embed import embed_regions
from open_cloc.model.prompt_layer import join

WHOLE = (0.0, 0.0, 1.0, 1.0)


@torch.inference_mode()
def embed_together(images: Sequence[EncodedImage], boxes: Sequence[np.ndarray]) -> list[Regions]:
    """Embed boxes of pictures that one model has looked at.

    Pictures with about as many boxes go together, so that a picture with one box does not pay for another's
    thousand.

    Args:
        images: Pictures, one for each set of boxes.
        boxes: (R, 4) normalised `xyxy` of its picture each, checked (`boxes_of_picture`).

    Returns:
        The regions of each, in the order given.

    Raises:
        NotFiniteError: If the model has no number for one.
    """
    alike: dict[tuple[int, tuple[int, int]], list[int]] = defaultdict(list)
    for number, (image, own) in enumerate(zip(images, boxes, strict=True)):
        alike[(len(own) - 1).bit_length() if len(own) else -1, image.state.grid_size].append(number)
    found: dict[int, Regions] = {}
    for numbers in alike.values():
        found |= zip(numbers, _embed([images[i] for i in numbers], [boxes[i] for i in numbers]))
    return [found[number] for number in range(len(images))]


def _embed(images: Sequence[EncodedImage], boxes: Sequence[np.ndarray]) -> list[Regions]:
    """The regions of pictures whose boxes are padded to as many as one of them has."""
    given = np.full((len(images), max(map(len, boxes)), 4), WHOLE, np.float32)
    for row, image, own in zip(given, images, boxes):
        row[: len(own)] = image.on_canvas(own)
    state = images[0].state if len(images) == 1 else join([image.state for image in images])
    model = images[0].model
    rows = require_numbers(
        embed_regions(model, state, {"box": torch.from_numpy(given).to(model.device)}), "regions"
    )
    return [Regions(own_rows[: len(own)].clone(), own) for own_rows, own in zip(rows, boxes)]
