"""Answers of a method that are no answers: refused with the name of their sample, in every task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tiny_data import NAMES, WITH_MAPS, Samples, suited
from torch import Tensor
from torch.nn import functional as F

from open_cloc.canvas import CanvasConfig
from open_cloc.errors import UserError
from open_cloc.evaluation.batches import EvaluationBatch
from open_cloc.evaluation.checked import checked
from open_cloc.evaluation.method import FoundBoxes, GroundingMethod
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.run import evaluate
from open_cloc.evaluation.tasks import TASKS
from open_cloc.model.cloc import CLOC

WRONG = {"nan": float("nan"), "inf": float("inf"), "zero": 0.0}


class Random:
    """Finds the same unit vectors for the same places; one kind of answer may be broken in one place.

    Args:
        broken: `texts`, `images`, `regions`, `boxes` or `scores`.
        key: Sample whose last answer is broken.
        value: What stands there.
    """

    canvas = CanvasConfig((8, 8))

    def __init__(self, broken: str = "", key: str = "s4", value: float = float("nan")) -> None:
        self.broken, self.key, self.value = broken, key, value

    def describe(self) -> dict[str, Any]:
        return {"method": "random", "model": "none", "pretrained": ""}

    def describe_grounding(self) -> dict[str, Any]:
        return {}

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        last = len(texts) - 1 if self.broken == "texts" else -1
        return self._rows(len(texts), last)

    def embed_images(self, batch: EvaluationBatch) -> Tensor:
        keys = [sample.key for sample in batch.samples]
        return self._rows(len(keys), keys.index(self.key) if self._breaks("images", batch) else -1)

    def embed_regions(self, batch: EvaluationBatch, boxes: Sequence[np.ndarray]) -> Tensor:
        ends = np.cumsum([len(own) for own in boxes])
        keys = [sample.key for sample in batch.samples]
        last = ends[keys.index(self.key)] - 1 if self._breaks("regions", batch) else -1
        return self._rows(int(ends[-1]), int(last))

    def ground(self, batch: EvaluationBatch, phrases: Sequence[Sequence[str]]) -> FoundBoxes:
        count = sum(map(len, phrases))
        boxes, scores = torch.tensor([[0.1, 0.1, 0.6, 0.6]]).repeat(count, 1), torch.zeros(count)
        for kind, answers in (("boxes", boxes), ("scores", scores)):
            if self._breaks(kind, batch):
                keys = [sample.key for sample in batch.samples]
                answers[sum(map(len, phrases[: keys.index(self.key) + 1])) - 1] = self.value
        return FoundBoxes(boxes, scores)

    def embed_tokens(self, batch: EvaluationBatch) -> Tensor:
        count = len(batch.samples)
        return self._rows(16 * count, 0 if self._breaks("tokens", batch) else -1).view(count, 4, 4, 16)

    def _breaks(self, kind: str, batch: EvaluationBatch) -> bool:
        return self.broken == kind and self.key in [sample.key for sample in batch.samples]

    def _rows(self, count: int, broken: int) -> Tensor:
        rows = F.normalize(torch.randn(count, 16, generator=torch.Generator().manual_seed(count)), dim=1)
        if broken >= 0:
            rows[broken, :] = self.value
        return rows


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("batch_size", [1, 4, 32])
@pytest.mark.parametrize(
    "task", ["zeroshot_region_classification", "region_retrieval", "prompt_gain", "region_health"]
)
def test_the_region_is_named(samples: Samples, task: str, batch_size: int, value: float) -> None:
    config = EvaluationConfig(batch_size=batch_size)
    evaluate(Random(), samples, task, config)
    with pytest.raises(UserError, match=r"region 3 of sample 's4' is not (finite|of unit length)") as error:
        evaluate(Random("regions", value=value), samples, task, config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("task", ["zeroshot_classification", "zeroshot_retrieval"])
def test_the_picture_is_named(samples: Samples, task: str, value: float) -> None:
    with pytest.raises(UserError, match=r"picture of sample 's6' is not (finite|of unit length)"):
        evaluate(Random("images", "s6", value), samples, task, EvaluationConfig(batch_size=4))


@pytest.mark.parametrize("task", [task for task in TASKS if task not in ("grounding", "pointing")])
def test_the_text_is_named(samples: Samples, task: str) -> None:
    samples = suited(samples, task)
    samples.class_names = samples.class_names or NAMES
    with pytest.raises(UserError, match=r"feature of text '.*' is not finite: got nan, nan"):
        evaluate(Random("texts"), samples, task)


@pytest.mark.parametrize("kind", ["boxes", "scores"])
def test_the_phrase_is_named(samples: Samples, kind: str) -> None:
    last = list(dict.fromkeys(region.text.lower() for region in samples[4].regions))[-1]
    evaluate(Random(), samples, "grounding")
    with pytest.raises(UserError, match=rf"box and score of phrase '{last}' of sample 's4' is not finite"):
        evaluate(Random(kind), samples, "grounding", EvaluationConfig(batch_size=3))


@pytest.mark.parametrize("method", ["prompter", "roialign", "crop"])
@pytest.mark.parametrize("task", TASKS)
def test_a_model_with_damaged_weights_has_no_metrics(
    model: CLOC, samples: Samples, task: str, method: str
) -> None:
    if (task == "grounding" and method != "prompter") or (task == "pointing" and method == "crop"):
        pytest.skip("finds no boxes")
    if task in WITH_MAPS and method != "roialign":
        pytest.skip("knows no place")
    samples = suited(samples, task)
    with torch.no_grad():
        model.clip.visual.ln_post.weight[0] = float("nan")
    with pytest.raises(UserError, match=r"of sample 's[0-9]' is not finite"):
        evaluate(model, samples, task, EvaluationConfig(candidates=20), method=method)


def test_answers_of_another_number_are_refused(samples: Samples) -> None:
    class Short(Random):
        def embed_images(self, batch: EvaluationBatch) -> Tensor:
            return super().embed_images(batch)[1:]

    with pytest.raises(UserError, match="the method gives 8 answers; expected 9"):
        evaluate(Short(), samples, "zeroshot_retrieval")


def test_only_methods_that_find_boxes_say_so() -> None:
    names = ("canvas", "describe", "embed_texts", "embed_images", "embed_regions")
    bare = type("Bare", (), {name: getattr(Random, name) for name in names})()
    assert isinstance(checked(Random()), GroundingMethod)
    assert not isinstance(checked(bare), GroundingMethod)
