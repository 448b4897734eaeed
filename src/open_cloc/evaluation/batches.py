"""A data set once through, in order, with nothing left out.

Shapes: B images, R regions of one image, H W pixels of the canvas.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from open_cloc.boxes import grid_cells, overlap_fraction
from open_cloc.canvas import CanvasConfig, Geometry, mask_cells
from open_cloc.data.annotations import SampleDataset, checked_boxes, clean_sample
from open_cloc.data.bad_samples import problem_of
from open_cloc.data.collate import stack_images
from open_cloc.data.workers import run_workers
from open_cloc.errors import SampleError, UserError
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.samples import RegionSample


class EvaluationBatch(NamedTuple):
    """Samples in order, with their pictures on a method's canvas.

    Attributes:
        samples: The samples as read, every region included.
        images: (B, 3, H, W) uint8; the last batch may be smaller.
        content_boxes: (B, 4) normalised `xyxy` of the pictures inside the canvas.
        geometries: Maps of each picture's boxes to the canvas and back.
    """

    samples: list[RegionSample]
    images: Tensor
    content_boxes: Tensor
    geometries: list[Geometry]

    @property
    def boxes(self) -> list[np.ndarray]:
        """Boxes of all regions of each sample: (R, 4) float64 normalised `xyxy` of its picture."""
        return [np.array([r.box for r in sample.regions], float).reshape(-1, 4) for sample in self.samples]

    def to_canvas(self, boxes: Sequence[np.ndarray]) -> list[Tensor]:
        """Boxes (R, 4) of each picture -> (1, R, 4) float32 normalised `xyxy` of its canvas."""
        return [
            torch.from_numpy(geometry.to_canvas(own.astype(np.float32)))[None].clamp(0, 1)
            for own, geometry in zip(boxes, self.geometries)
        ]

    def masks(self, boxes: Sequence[np.ndarray]) -> list[Tensor]:
        """Outlines of the regions of each picture, (1, R, rows, columns) shares of the canvas's cells.

        One too thin to cover a pixel is its box.

        Args:
            boxes: Those that are asked about, (R, 4) of each sample.

        Raises:
            UserError: If they are not the samples' own, or one has no outline.
        """
        if not all(map(np.array_equal, boxes, self.boxes)):
            raise UserError(
                "outlines are of the data's own regions, other boxes have none: take a method by boxes, such "
                "as prompter or roialign"
            )
        return [
            torch.from_numpy(_outlines(sample, own, geometry))[None]
            for sample, own, geometry in zip(self.samples, boxes, self.geometries)
        ]


def _outlines(sample: RegionSample, boxes: np.ndarray, geometry: Geometry) -> np.ndarray:
    cells = mask_cells(geometry.target_hw)
    found = np.zeros((len(boxes), *cells), np.float32)
    for row, region in enumerate(sample.regions):
        if region.mask is None:
            raise UserError(
                f"region {row} of sample {sample.key!r} has no outline; readers with masks=true read them, "
                "such as coco:FILE,masks=true"
            )
        found[row] = geometry.masks_to_canvas(region.mask.pixels()[None], cells)[0]
    for row in np.flatnonzero(~found.any((1, 2))).tolist():
        box = torch.from_numpy(geometry.to_canvas(boxes[row : row + 1])).clamp(0, 1)
        found[row] = overlap_fraction(box[None].float(), grid_cells(cells, box.device)).view(cells)
    return found


def read_batches(
    dataset: SampleDataset, canvas: CanvasConfig, config: EvaluationConfig
) -> Iterator[EvaluationBatch]:
    """Every sample, in order, with a progress bar where someone may be looking.

    Raises:
        UserError: If there is none, or one cannot be used.
        MissingFileError: If a sample's picture is missing.
    """
    if not len(dataset):
        raise UserError("dataset is empty; expected at least one sample")
    steps = evaluation_batches(dataset, canvas, config.batch_size, config.workers)
    total = -(-len(dataset) // config.batch_size)
    return iter(tqdm(steps, total=total, desc="evaluating", unit="batch", leave=False, disable=None))


def evaluation_batches(
    dataset: SampleDataset, preprocess: CanvasConfig, batch_size: int = 64, workers: int = 0
) -> Iterator[EvaluationBatch]:
    """Go through a dataset once, in order, leaving nothing out.

    Raises:
        UserError: On the first sample that cannot be used; an evaluation never skips.
        MissingFileError: If that sample's picture is missing.
    """
    yield from run_workers(_EvaluationBatches(dataset, preprocess, batch_size), workers, pin=False)


class _EvaluationBatches:
    """The b-th evaluation batch."""

    def __init__(self, dataset: SampleDataset, preprocess: CanvasConfig, batch_size: int) -> None:
        self.dataset, self.preprocess, self.batch_size = dataset, preprocess, batch_size

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    @property
    def batch_bytes(self) -> int:
        """Size of a batch's pictures on the canvas."""
        height, width = self.preprocess.image_size
        return min(self.batch_size, len(self.dataset)) * 3 * height * width

    def __getitem__(self, number: int) -> EvaluationBatch:
        begin = number * self.batch_size
        indices = range(begin, min(begin + self.batch_size, len(self.dataset)))
        samples, images, geometries = [], [], []
        for index in indices:
            try:
                sample = clean_sample(self.dataset[index])
                checked_boxes(sample)
                pixels = sample.pixels()
            except UserError:
                raise
            except Exception as error:  # whatever a sample's data lead to
                raise SampleError(*problem_of(error, f"sample number {index}")[::-1]) from error
            geometry = Geometry.fit(pixels.shape[:2], self.preprocess.image_size, self.preprocess.resize_mode)
            images.append(geometry.draw(pixels, self.preprocess.fill, self.preprocess.interpolation))
            samples.append(sample)
            geometries.append(geometry)
        content = torch.tensor([geometry.content_box for geometry in geometries])
        return EvaluationBatch(samples, stack_images(images), content, geometries)
