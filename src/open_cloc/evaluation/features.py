"""What the evaluation tasks share: their options, their result, pictures and texts as features.

Shapes: B images, R regions of one image, T texts, D shared embedding.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from open_cloc.canvas import Geometry
from open_cloc.data.annotations import SampleDataset
from open_cloc.errors import UserError
from open_cloc.evaluation.batches import EvaluationBatch, evaluation_batches
from open_cloc.model.cloc import CLOC, ImageState
from open_cloc.model.embed import METHODS, embed_regions, embed_texts
from open_cloc.model.search import CANDIDATES
from open_cloc.samples import RegionSample
from open_cloc.texts import clean_text

REGION_METHODS = (*METHODS, "crop")


@dataclass(frozen=True)
class EvaluationConfig:
    """How to measure. All of it goes into the result's protocol.

    Attributes:
        method: How regions are embedded (`prompter`, `roialign`, `crop`) or phrases grounded (`ranked`,
            `head`); the task's first choice if empty.
        batch_size: Pictures (or crops) per forward pass.
        workers: Processes that decode pictures.
        recall_k: The K of recall@K; empty takes the task's own.
        classes: Class names to choose from; empty takes the data set's categories, else its distinct texts.
        template: How a class name becomes a text, such as `a photo of a {}`; the paper uses bare names.
        lower_case: Lower-case all texts, as training does.
        candidates: Size of the grid of boxes that `ranked` grounding looks at, at most.
        precision: `bf16` runs the towers under autocast.
        groups: Name -> texts of the regions that it holds; region metrics are given for each group too.
    """

    method: str = ""
    batch_size: int = 32
    workers: int = 0
    recall_k: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    template: str = "{}"
    lower_case: bool = True
    candidates: int = CANDIDATES
    precision: Literal["fp32", "bf16"] = "fp32"
    groups: Mapping[str, Collection[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1; got {self.batch_size}")
        if min(self.recall_k, default=1) < 1:
            raise UserError(f"recall_k must be at least 1; got {self.recall_k}")
        if "{}" not in self.template:
            raise UserError(f"template must hold {{}} for the class name; got {self.template!r}")
        if self.candidates < 1:
            raise UserError(f"candidates must be at least 1; got {self.candidates}; for none use method head")


class TaskResult(NamedTuple):
    """Numbers, and how they came about beyond what the config says."""

    metrics: dict[str, float]
    protocol: dict[str, Any]


class RegionFeatures(NamedTuple):
    """All regions of a data set, in its order.

    Attributes:
        features: (X, D) float32 of unit length.
        texts: X cleaned texts.
        image_index: (X,) number of each region's image.
        num_images: Images read, those without regions included.
    """

    features: Tensor
    texts: list[str]
    image_index: Tensor
    num_images: int


def choose_method(config: EvaluationConfig, methods: Sequence[str], task: str) -> str:
    """The config's method, or the task's first one.

    Raises:
        UserError: If the task has no such method.
    """
    if not config.method:
        return methods[0]
    if config.method not in methods:
        expected = ", ".join(methods) or "none"
        raise UserError(f"unknown method {config.method!r} for {task}; expected {expected}")
    return config.method


def autocast(model: CLOC, config: EvaluationConfig) -> AbstractContextManager:
    """The context in which the model runs."""
    if config.precision == "fp32":
        return nullcontext()
    return torch.autocast(model.device.type, torch.bfloat16)


def batches(dataset: SampleDataset, model: CLOC, config: EvaluationConfig) -> Iterator[EvaluationBatch]:
    """Every sample, in order, with a progress bar where someone may be looking.

    Raises:
        UserError: If there is none, or one cannot be used.
    """
    if not len(dataset):
        raise UserError("dataset is empty; expected at least one sample")
    steps = evaluation_batches(dataset, model.preprocess, config.batch_size, config.workers)
    total = -(-len(dataset) // config.batch_size)
    return iter(tqdm(steps, total=total, desc="evaluating", unit="batch", leave=False, disable=None))


def encode_batch(model: CLOC, batch: EvaluationBatch, config: EvaluationConfig) -> ImageState:
    """Run the image tower over a batch."""
    with autocast(model, config):
        return model.encode_image(batch.images.to(model.device), batch.content_boxes.to(model.device))


class TextCache:
    """Text features by text: each distinct one is encoded once."""

    def __init__(self, model: CLOC, config: EvaluationConfig) -> None:
        self.model, self.config = model, config
        self.known: dict[str, Tensor] = {}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (T, D) of unit length."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        with autocast(self.model, self.config):
            self.known |= dict(zip(new, embed_texts(self.model, new)))
        return torch.stack([self.known[text] for text in texts])


def region_texts(sample: RegionSample, config: EvaluationConfig) -> list[str]:
    """Cleaned texts of a sample's regions.

    Raises:
        UserError: If one is empty; an evaluation leaves no region out.
    """
    texts = [clean_text(region.text, config.lower_case) for region in sample.regions]
    if not all(texts):
        raise UserError(f"region without text: region {texts.index('')} of sample {sample.key!r}")
    return texts


def canvas_boxes(sample: RegionSample, geometry: Geometry) -> Tensor:
    """Boxes of all regions of a sample: (1, R, 4) normalised `xyxy` of the canvas."""
    boxes = np.array([region.box for region in sample.regions], np.float32).reshape(-1, 4)
    return torch.from_numpy(geometry.to_canvas(boxes))[None].clamp(0, 1)


def collect_regions(
    model: CLOC, dataset: SampleDataset, config: EvaluationConfig, method: str
) -> RegionFeatures:
    """Embed every region of a data set.

    Raises:
        UserError: If there is no region, or a sample cannot be used.
    """
    features: list[Tensor] = []
    texts: list[str] = []
    counts: list[int] = []
    for batch in batches(dataset, model, config):
        texts += [text for sample in batch.samples for text in region_texts(sample, config)]
        counts += [len(sample.regions) for sample in batch.samples]
        features.append(embed_batch_regions(model, batch, config, method).cpu())
    if not texts:
        raise UserError(f"dataset has no regions in its {len(counts)} images; expected at least one")
    image_index = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return RegionFeatures(torch.cat(features), texts, image_index, len(counts))


def embed_batch_regions(model: CLOC, batch: EvaluationBatch, config: EvaluationConfig, method: str) -> Tensor:
    """All regions of a batch, sample by sample: (sum of R, D) of unit length."""
    if method == "crop":
        crops = [crop for sample in batch.samples for crop in crop_regions(sample, model)]
        return embed_pictures(model, crops, config)
    boxes = [canvas_boxes(*pair) for pair in zip(batch.samples, batch.geometries)]
    return embed_boxes(model, encode_batch(model, batch, config), boxes, config, method)


def embed_boxes(
    model: CLOC, state: ImageState, boxes: Sequence[Tensor], config: EvaluationConfig, method: str
) -> Tensor:
    """Boxes of each image of a batch, (1, R, 4) with its own R -> (sum of R, D) of unit length.

    Image by image: no padding to the most crowded one, and a result that knows nothing of its neighbours.
    """
    with autocast(model, config):
        rows = [
            embed_regions(model, state.select(slice(i, i + 1)), own.to(model.device), method)[0]
            for i, own in enumerate(boxes)
        ]
    return torch.cat(rows)


def crop_regions(sample: RegionSample, model: CLOC) -> list[tuple[np.ndarray, Geometry]]:
    """Each region cut out of the original picture to whole pixels, with its place on a canvas."""
    if not sample.regions:
        return []
    pixels = sample.pixels()
    whole = Geometry.fit(pixels.shape[:2], model.preprocess.image_size, model.preprocess.resize_mode)
    crops = []
    for region in sample.regions:
        x1, y1, x2, y2 = whole.crop(region.box).window
        crop = np.ascontiguousarray(pixels[y1:y2, x1:x2])
        crops.append((crop, Geometry.fit(crop.shape[:2], whole.target_hw, whole.mode)))
    return crops


def embed_pictures(
    model: CLOC, pictures: Sequence[tuple[np.ndarray, Geometry]], config: EvaluationConfig
) -> Tensor:
    """Image features of pictures, each preprocessed like a whole image: (X, D) of unit length."""
    fill, interpolation = model.preprocess.fill, model.preprocess.interpolation
    rows = [torch.zeros(0, model.embed_dim, device=model.device)]
    for start in range(0, len(pictures), config.batch_size):
        some = pictures[start : start + config.batch_size]
        canvases = np.stack([geometry.draw(pixels, fill, interpolation) for pixels, geometry in some])
        images = torch.from_numpy(canvases).permute(0, 3, 1, 2).to(model.device)
        with autocast(model, config):
            features = model.encode_image(images).image_features
        rows.append(F.normalize(features.float(), dim=-1))
    return torch.cat(rows)
