"""Prompt gain of methods whose answer to wrong boxes is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tiny_data import Samples
from torch import Tensor

from open_cloc.canvas import CanvasConfig
from open_cloc.evaluation.batches import EvaluationBatch
from open_cloc.evaluation.run import evaluate
from open_cloc.evaluation.tasks.prompt_gain import other_texts
from open_cloc.model.cloc import CLOC


class Oracle:
    """Knows the text of each true box, whichever sample it is in; any other box is "nothing" to it."""

    canvas = CanvasConfig((32, 32))

    def __init__(self, samples: Samples) -> None:
        self.texts = {tuple(r.box): r.text.lower() for sample in samples for r in sample.regions}
        self.names = ["nothing", *sorted(set(self.texts.values()))]

    def describe(self) -> dict[str, Any]:
        return {"method": "oracle", "model": "none", "pretrained": ""}

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return torch.eye(len(self.names))[[self.names.index(text) for text in texts]]

    def embed_images(self, batch: EvaluationBatch) -> Tensor:
        return self.embed_texts(["nothing"] * len(batch.samples))

    def embed_regions(self, batch: EvaluationBatch, boxes: Sequence[np.ndarray]) -> Tensor:
        texts = [self.texts.get(tuple(box), "nothing") for own in boxes for box in own.tolist()]
        return self.embed_texts(texts)


class Blind(Oracle):
    """Sees the same in every box."""

    def embed_regions(self, batch: EvaluationBatch, boxes: Sequence[np.ndarray]) -> Tensor:
        return self.embed_texts([self.names[1]] * sum(map(len, boxes)))


def test_other_texts_gives_each_region_a_box_of_another_text() -> None:
    assert other_texts(["a", "b"]) == [1, 0]
    assert other_texts(["a", "a", "b", "a"]) == [2, 2, 3, 2]
    assert other_texts([]) == []


def test_a_method_that_ignores_its_boxes(samples: Samples) -> None:
    metrics = evaluate(Blind(samples), samples, "prompt_gain")["metrics"]
    assert metrics["acc1"] == metrics["acc1_whole_image"] > 0
    assert metrics["prompt_gain_shuffled_boxes"] == metrics["prompt_gain_whole_image"] == 0
    assert metrics["mean_region_cosine"] == pytest.approx(1)


def test_a_method_that_reads_its_boxes(samples: Samples) -> None:
    result = evaluate(Oracle(samples), samples, "prompt_gain")
    metrics = result["metrics"]
    assert metrics["acc1"] == 1
    assert metrics["acc1_shuffled_boxes"] == 0
    assert metrics["prompt_gain_shuffled_boxes"] == 1
    # Where all classes tie, each is right by its share.
    assert metrics["prompt_gain_whole_image"] == pytest.approx(1 - 1 / result["protocol"]["num_classes"])
    used = [s for s in samples if len({r.text for r in s.regions}) > 1]
    assert result["protocol"]["num_images_used"] == len(used) < 9
    assert result["protocol"]["num_regions"] == sum(len(s.regions) for s in used)
    assert result["protocol"]["method"] == "oracle"


def test_three_kinds_of_boxes_share_one_pass(
    model: CLOC, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    encode = model.encode_image
    monkeypatch.setattr(model, "encode_image", lambda *args: passes.append(1) or encode(*args))
    evaluate(model, samples, "prompt_gain")
    assert len(passes) == 1
