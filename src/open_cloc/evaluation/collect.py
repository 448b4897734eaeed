"""All embeddings of a data set, in its order, with the texts that belong to them.

Shapes: X images or regions of a data set, D shared embedding.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from open_cloc.boxes import box_areas, whole_pixels
from open_cloc.data.annotations import SampleDataset
from open_cloc.errors import UserError
from open_cloc.evaluation.batches import read_batches
from open_cloc.evaluation.method import Method, cleaning_of
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.samples import RegionSample


class ImageFeatures(NamedTuple):
    """All pictures of a data set, in its order.

    Attributes:
        features: (X, D) float32 of unit length.
        samples: The samples without their pictures.
        picture_index: (X,) number of each sample's picture; equal files have one, counted as they first come.
    """

    features: Tensor
    samples: list[RegionSample]
    picture_index: Tensor


class RegionFeatures(NamedTuple):
    """All regions of a data set, in its order.

    Attributes:
        features: (X, D) float32 of unit length.
        texts: Cleaned texts of the regions, X of them.
        image_index: (X,) number of each region's image.
        areas: (X,) area of each box in pixels of the picture that it was measured on.
        num_images: Images read, those without regions included.
    """

    features: Tensor
    texts: list[str]
    image_index: Tensor
    areas: Tensor
    num_images: int


def collect_images(method: Method, dataset: SampleDataset, config: EvaluationConfig) -> ImageFeatures:
    """Embed every picture of a data set.

    Raises:
        UserError: If there is no sample, or one cannot be used.
    """
    rows, samples, pictures = [], [], []
    numbers: dict[bytes, int] = {}
    for batch in read_batches(dataset, method.canvas, config):
        rows.append(method.embed_images(batch).cpu())
        samples += [RegionSample(s.key, b"", s.captions, s.regions, s.metadata) for s in batch.samples]
        pictures += [numbers.setdefault(_digest(s.image), len(numbers)) for s in batch.samples]
    return ImageFeatures(torch.cat(rows), samples, torch.tensor(pictures))


def _digest(image: bytes | Path | np.ndarray) -> bytes:
    """What equal pictures share."""
    if isinstance(image, np.ndarray):
        return hashlib.blake2b(str(image.shape).encode() + image.tobytes()).digest()
    return hashlib.blake2b(image if isinstance(image, bytes) else image.read_bytes()).digest()


def collect_regions(method: Method, dataset: SampleDataset, config: EvaluationConfig) -> RegionFeatures:
    """Embed every region of a data set.

    Raises:
        UserError: If there is no region, or a sample cannot be used.
    """
    features: list[Tensor] = []
    texts: list[str] = []
    counts: list[int] = []
    areas: list[np.ndarray] = []
    for batch in read_batches(dataset, method.canvas, config):
        texts += [text for sample in batch.samples for text in region_texts(sample, method)]
        counts += [len(sample.regions) for sample in batch.samples]
        areas += [
            box_areas(whole_pixels(own, sample.measured_hw(geometry.source_hw)))
            for sample, own, geometry in zip(batch.samples, batch.boxes, batch.geometries)
        ]
        features.append(method.embed_regions(batch, batch.boxes).cpu())
    if not texts:
        raise UserError(f"dataset has no regions in its {len(counts)} images; expected at least one")
    image_index = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    of_boxes = torch.from_numpy(np.concatenate(areas))
    return RegionFeatures(torch.cat(features), texts, image_index, of_boxes, len(counts))


def region_texts(sample: RegionSample, method: Method) -> list[str]:
    """Texts of a sample's regions, as a method reads them.

    Raises:
        UserError: If one is empty; an evaluation leaves no region out.
    """
    texts = list(map(cleaning_of(method), (region.text for region in sample.regions)))
    if not all(texts):
        raise UserError(f"region without text: region {texts.index('')} of sample {sample.key!r}")
    return texts
