"""What an export is compared on, and how far it may be off.

Shapes: B pictures, U texts, D shared embedding, H W pixels of the canvas.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from open_cloc.canvas import Geometry
from open_cloc.data.bad_samples import read_usable
from open_cloc.data.readers import open_reader
from open_cloc.errors import RunError, UserError
from open_cloc.model.cloc import CLOC
from open_cloc.samples import RegionSample

SCENES = "scenes:val"
NUM_PICTURES, NUM_TEXTS = 16, 32
MOST = 1e-5  # of features of unit length, in float32: the order of sums differs


class Difference(NamedTuple):
    """One comparison.

    Attributes:
        what: What was compared.
        largest: Largest absolute difference of a feature's component, features of unit length.
        most: What it may be; None where it only tells, as for another way to resize pictures.
    """

    what: str
    largest: float
    most: float | None = MOST

    def __str__(self) -> str:
        limit = "" if self.most is None else f" (at most {self.most:g})"
        return f"{self.what}: {self.largest:.2g}{limit}"


class Inputs(NamedTuple):
    """Pictures and texts, and what the model makes of them.

    Attributes:
        pictures: The pictures as they are.
        pixels: (B, 3, H, W) float32, resized and normalised as the model does it.
        texts: The texts.
        images: (B, D) the pictures' features, of unit length.
        text_features: (U, D) the texts' features, of unit length.
    """

    pictures: list[Image.Image]
    pixels: Tensor
    texts: list[str]
    images: Tensor
    text_features: Tensor


@torch.inference_mode()
def open_inputs(model: CLOC, spec: str = "") -> Inputs:
    """The first pictures and texts of some data, and the model's features of them.

    Raises:
        UserError: If there is no picture that can be read.
    """
    samples = list(_first(spec or SCENES))
    if not samples:
        raise UserError(f"no picture to compare with can be read in {spec}")
    arrays = [sample.pixels() for sample in samples]
    texts = list(dict.fromkeys(text for sample in samples for text in _texts(sample)))[:NUM_TEXTS]
    texts = texts or ["a photo", "a dog on a mat"]
    config = model.preprocess
    drawn = [
        Geometry.fit(array.shape[:2], config.image_size, config.resize_mode).draw(
            array, config.fill, config.interpolation
        )
        for array in arrays
    ]
    canvases = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2)  # (B, 3, H, W)
    return Inputs(
        [Image.fromarray(array) for array in arrays],
        model.normalize_pixels(canvases),
        texts,
        unit(model.encode_image(canvases).image_features),
        unit(model.encode_text(model.tokenizer(texts))),
    )


def _first(spec: str) -> Iterator[RegionSample]:
    dataset: Any = open_reader(spec)
    found = 0
    for index in range(len(dataset)):
        sample, _ = read_usable(dataset, index)
        if sample is not None:
            yield sample
            found += 1
        if found == NUM_PICTURES:
            return


def _texts(sample: RegionSample) -> list[str]:
    return [*sample.captions, *(region.text for region in sample.regions)]


def unit(features: Tensor) -> Tensor:
    """Features (X, D) of unit length, float32."""
    return F.normalize(features.detach().float(), dim=-1)


def compare(what: str, found: Tensor, expected: Tensor, most: float | None = MOST) -> Difference:
    """The largest difference of two sets of features.

    Raises:
        RunError: If it is more than it may be, or no number.
    """
    difference = Difference(what, float((found.detach().float() - expected).abs().max()), most)
    if most is not None and not difference.largest <= most:
        raise RunError(f"the export is not the model: {difference}")
    return difference
