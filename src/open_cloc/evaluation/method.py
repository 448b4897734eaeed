"""What a task needs of a model: unit-length embeddings of texts, pictures and boxes, and how they are made.

Shapes: B images, R regions of one image, P phrases of one image, T texts, D shared embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from open_cloc.canvas import CanvasConfig
from open_cloc.evaluation.batches import EvaluationBatch
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.model.cloc import CLOC
from open_cloc.texts import TextCleaning

Weights: TypeAlias = CLOC | str | Path


class Method(Protocol):
    """A model together with a way to embed regions. Tasks see nothing else of it.

    Boxes are normalised `xyxy` of the sample's own picture, (R, 4) float64 for each sample of a batch, with
    any R: they need not be the sample's own regions.

    A method may also have `cleaning`, a `TextCleaning`: how its texts are read. Without it they are
    lower-cased, as in the paper. And `logit_scale`, by which its model multiplies cosines before a softmax:
    what takes a probability from them, such as a calibration, is measured only where there is one.
    """

    @property
    def canvas(self) -> CanvasConfig:
        """What the pictures of a batch are drawn on."""
        ...

    def describe(self) -> dict[str, Any]:
        """What made the numbers, as plain JSON.

        Returns:
            `method`, `model` and `pretrained` (empty if it is unknown), and whatever else changes numbers,
            such as the size of a picture, the precision and the device. It goes into the result's protocol.
        """
        ...

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (T, D) float32 of unit length."""
        ...

    def embed_images(self, batch: EvaluationBatch) -> Tensor:
        """Whole pictures of a batch -> (B, D) float32 of unit length."""
        ...

    def embed_regions(self, batch: EvaluationBatch, boxes: Sequence[np.ndarray]) -> Tensor:
        """Boxes of each picture of a batch -> (sum of R, D) float32 of unit length, picture by picture."""
        ...


def cleaning_of(method: Method) -> TextCleaning:
    """How a method's texts are read, before they are compared or embedded."""
    return getattr(method, "cleaning", TextCleaning())


def logit_scale_of(method: Method) -> float | None:
    """What a method's cosines are multiplied by before a softmax; None where nobody says."""
    return getattr(method, "logit_scale", None)


class FoundBoxes(NamedTuple):
    """Where the phrases of a batch are, picture by picture.

    Attributes:
        boxes: (sum of P, 4) float32 normalised `xyxy` of each phrase's picture, on the CPU.
        scores: (sum of P,) cosine similarity of each box's own region embedding and its phrase.
        further: (sum of P, K, 4) where else each phrase may be, best first, NaN where there are fewer than K;
            None of a method that knows one box alone.
    """

    boxes: Tensor
    scores: Tensor
    further: Tensor | None = None


@runtime_checkable
class GroundingMethod(Method, Protocol):
    """A method that can also find the box of a phrase."""

    def describe_grounding(self) -> dict[str, Any]:
        """How boxes are found, as plain JSON; added to the protocol of grounding tasks."""
        ...

    def ground(self, batch: EvaluationBatch, phrases: Sequence[Sequence[str]]) -> FoundBoxes:
        """The best box for each phrase of each picture of a batch."""
        ...


@runtime_checkable
class DenseMethod(Method, Protocol):
    """A method that can also tell what is at each place of a picture."""

    def embed_tokens(self, batch: EvaluationBatch) -> Tensor:
        """Pictures of a batch -> (B, rows, columns, D) float32 of unit length, places of the canvas."""
        ...


class Setup(NamedTuple):
    """What a method is opened with, beside its own options.

    Attributes:
        weights: A CLOC model, or the folder or hub id of one; None for a method that brings its own model.
        config: How to measure; a method reads `batch_size`, `precision` and `candidates`.
        device: Where weights are loaded to; None takes a GPU if there is one. A model stays where it is.
    """

    weights: Weights | None
    config: EvaluationConfig
    device: str | torch.device | None
