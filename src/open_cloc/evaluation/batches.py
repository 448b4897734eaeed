"""A data set once through, in order, with nothing left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from open_cloc.canvas import CanvasConfig, Geometry
from open_cloc.data.annotations import SampleDataset, checked_boxes
from open_cloc.data.workers import run_workers
from open_cloc.samples import RegionSample


class EvaluationBatch(NamedTuple):
    """Samples in order, with their pictures on the model's canvas.

    Attributes:
        samples: As read, every region included.
        images: (B, 3, H, W) uint8; the last batch may be smaller.
        content_boxes: (B, 4) normalised `xyxy` of the pictures inside the canvas.
        geometries: Map boxes to the canvas and back.
    """

    samples: list[RegionSample]
    images: Tensor
    content_boxes: Tensor
    geometries: list[Geometry]


def evaluation_batches(
    dataset: SampleDataset, preprocess: CanvasConfig, batch_size: int = 64, workers: int = 0
) -> Iterator[EvaluationBatch]:
    """Go through a dataset once, in order, leaving nothing out.

    Raises:
        UserError: On the first sample that cannot be used; an evaluation never skips.
        MissingFileError: If that sample's picture is missing.
    """
    for made in run_workers(_EvaluationBatches(dataset, preprocess, batch_size), workers, pin=False):
        if isinstance(made, Exception):
            raise made
        yield made


class _EvaluationBatches:
    """The b-th evaluation batch, or the error that prevents it."""

    def __init__(self, dataset: SampleDataset, preprocess: CanvasConfig, batch_size: int) -> None:
        self.dataset, self.preprocess, self.batch_size = dataset, preprocess, batch_size

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __getitem__(self, number: int) -> EvaluationBatch | ValueError | FileNotFoundError:
        begin = number * self.batch_size
        indices = range(begin, min(begin + self.batch_size, len(self.dataset)))
        samples, images, geometries = [], [], []
        for index in indices:
            try:
                sample = self.dataset[index]
                checked_boxes(sample)
                pixels = sample.pixels()
            except (ValueError, FileNotFoundError) as error:
                return error  # torch would wrap what is raised here in a worker's traceback
            geometry = Geometry.fit(pixels.shape[:2], self.preprocess.image_size, self.preprocess.resize_mode)
            images.append(geometry.draw(pixels, self.preprocess.fill, self.preprocess.interpolation))
            samples.append(sample)
            geometries.append(geometry)
        stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        content = torch.tensor([geometry.content_box for geometry in geometries])
        return EvaluationBatch(samples, stacked, content, geometries)
