"""Several ways to embed a region at once, their cosines added: ReCLIP's crop and blur (arXiv 2204.05991).

Shapes: B images, R regions of one image, T texts, D shared embedding, M methods of all models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from open_cloc.errors import UserError
from open_cloc.evaluation.batches import EvaluationBatch
from open_cloc.evaluation.method import Method, Setup, Weights, cleaning_of, logit_scale_of
from open_cloc.evaluation.methods import open_method
from open_cloc.evaluation.methods.cloc_towers import MethodOfTowers
from open_cloc.evaluation.methods.crop import PictureMethod

RECLIP = "crop+blur"
WHOLE = np.array([[0.0, 0.0, 1.0, 1.0]])


class SummedMethod:
    """The features of several methods on the same models, one behind the other.

    A cosine of such features is the mean of the methods' own, which ranks as their sum does.

    Args:
        models: For each model its methods, M in all. The first one's canvas is that of the batches.
        name: What they are called together.
    """

    def __init__(self, models: Sequence[Sequence[Method]], name: str) -> None:
        self.models, self.name = models, name
        self.first = models[0][0]
        self.canvas, self.cleaning = self.first.canvas, cleaning_of(self.first)
        self.logit_scale = logit_scale_of(self.first)

    def describe(self) -> dict[str, Any]:
        """What made the numbers, as plain JSON; further models under `also`."""
        also = [methods[0].describe() | {"method": self.name} for methods in self.models[1:]]
        return {**self.first.describe(), "method": self.name, **({"also": also} if also else {})}

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (T, M * D) float32 of unit length."""
        return _joined([own[0].embed_texts(texts) for own in self.models for _ in own])

    def embed_images(self, batch: EvaluationBatch) -> Tensor:
        """Whole pictures of a batch -> (B, M * D) float32 of unit length."""
        found = [self.first.embed_images(batch)]
        # The batch is drawn for the first model: others draw the whole of each picture for themselves.
        found += [own[0].embed_regions(batch, [WHOLE] * len(batch.samples)) for own in self.models[1:]]
        return _joined([features for features, own in zip(found, self.models) for _ in own])

    def embed_regions(self, batch: EvaluationBatch, boxes: Sequence[np.ndarray]) -> Tensor:
        """Boxes of each picture of a batch -> (sum of R, M * D) float32 of unit length."""
        return _joined([method.embed_regions(batch, boxes) for own in self.models for method in own])


def _joined(features: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(features), dim=-1) / len(features) ** 0.5


def open_sum(what: str, setup: Setup, also: str = "") -> SummedMethod:
    """The sum of methods on the setup's model, and on a second one.

    Args:
        what: Their names, joined by `+`; ReCLIP's unless given.
        setup: The model, and how to measure.
        also: Weights of a second model, as those of the first are given, whose cosines are added too: ReCLIP
            takes RN50x16 and ViT-B/32. It draws its pictures for itself: `crop` and `blur` do.

    Raises:
        UserError: If there are not two methods, one does not read the towers of a model or, with two models,
            shares its pictures, or the models read texts differently.
    """
    names = (what or RECLIP).split("+")
    if len(set(names)) < max(2, len(names)):
        raise UserError(f"sum takes two different methods or more, such as sum:{RECLIP}; got {what!r:.60}")
    name = f"sum:{'+'.join(names)}"
    models = [_of_one_model(names, setup.weights, setup)]
    if also:
        models.append(_of_one_model(names, also, setup))
        name = f"{name},also={also}"
        shared = [part for part, method in zip(names, models[1]) if not isinstance(method, PictureMethod)]
        if shared:
            raise UserError(
                f"sum of two models takes crop and blur, which draw their pictures; got {shared[0]}"
            )
        if cleaning_of(models[0][0]) != cleaning_of(models[1][0]):
            raise UserError(
                f"sum takes two models that read texts alike; {also} does not read them as the first"
            )
    return SummedMethod(models, name)


def _of_one_model(names: Sequence[str], weights: Weights | None, setup: Setup) -> list[Method]:
    methods: list[Method] = []
    for name in names:
        method = open_method(name, weights, setup.config, setup.device)
        if not isinstance(method, MethodOfTowers):
            raise UserError(f"sum takes methods on the towers of one model; {name} brings its own")
        weights = method.towers.model  # loaded once
        methods.append(method)
    return methods
