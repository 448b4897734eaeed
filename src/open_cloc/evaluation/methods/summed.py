"""Several ways to embed a region at once, their cosines added: ReCLIP's crop and blur (arXiv 2204.05991).

Shapes: R regions of one image, T texts, D shared embedding, M methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from open_cloc.errors import UserError
from open_cloc.evaluation.batches import EvaluationBatch
from open_cloc.evaluation.method import Method, Setup, cleaning_of, logit_scale_of
from open_cloc.evaluation.methods import open_method
from open_cloc.evaluation.methods.cloc_towers import MethodOfTowers

RECLIP = "crop+blur"


class SummedMethod:
    """The features of several methods on the same model, one behind the other.

    A cosine of such features is the mean of the methods' own, which ranks as their sum does.

    Args:
        methods: M of them, on one model.
        name: What they are called together.
    """

    def __init__(self, methods: Sequence[Method], name: str) -> None:
        first = methods[0]
        self.methods, self.name, self.first = methods, name, first
        self.canvas, self.cleaning = first.canvas, cleaning_of(first)
        self.logit_scale = logit_scale_of(first)

    def describe(self) -> dict[str, Any]:
        """What made the numbers, as plain JSON."""
        return {**self.first.describe(), "method": self.name}

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (T, M * D) float32 of unit length."""
        return self._repeated(self.first.embed_texts(texts))

    def embed_images(self, batch: EvaluationBatch) -> Tensor:
        """Whole pictures of a batch -> (B, M * D) float32 of unit length."""
        return self._repeated(self.first.embed_images(batch))

    def embed_regions(self, batch: EvaluationBatch, boxes: Sequence[np.ndarray]) -> Tensor:
        """Boxes of each picture of a batch -> (sum of R, M * D) float32 of unit length."""
        own = [method.embed_regions(batch, boxes) for method in self.methods]
        return torch.cat(own, dim=-1) / len(own) ** 0.5

    def _repeated(self, features: Tensor) -> Tensor:
        return features.repeat(1, len(self.methods)) / len(self.methods) ** 0.5


def open_sum(what: str, setup: Setup) -> SummedMethod:
    """The sum of methods on the setup's model.

    Args:
        what: Their names, joined by `+`; ReCLIP's unless given.
        setup: The model, and how to measure.

    Raises:
        UserError: If there are not two, or one does not read the towers of a model.
    """
    names = (what or RECLIP).split("+")
    if len(set(names)) < max(2, len(names)):
        raise UserError(f"sum takes two different methods or more, such as sum:{RECLIP}; got {what!r:.60}")
    methods: list[Method] = []
    weights = setup.weights
    for name in names:
        method = open_method(name, weights, setup.config, setup.device)
        if not isinstance(method, MethodOfTowers):
            raise UserError(f"sum takes methods on the towers of one model; {name} brings its own")
        weights = method.towers.model  # loaded once
        methods.append(method)
    return SummedMethod(methods, f"sum:{'+'.join(names)}")
