"""Overlap of found boxes with true ones, and the refusal of methods that find none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_data import Samples, mentioned
from torch import Tensor

from open_cloc.canvas import Geometry
from open_cloc.errors import UserError
from open_cloc.evaluation.batches import evaluation_batches
from open_cloc.evaluation.methods import open_method
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.run import evaluate
from open_cloc.model.cloc import CLOC, ImageState
from open_cloc.samples import Region


@pytest.mark.parametrize("method", ["head", "prompter,grounding=head"])
def test_grounding_of_a_perfect_box_head(
    model: CLOC, samples: Samples, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Each phrase's box head answers with the true box of the canvas; non-square pictures come back right."""
    truth = iter([s for s in samples if s.regions])

    def ground(state: ImageState, text_features: Tensor) -> Tensor:
        sample = next(truth)
        phrases = dict.fromkeys(region.text for region in sample.regions)
        boxes = [next(r.box for r in sample.regions if r.text == phrase) for phrase in phrases]
        geometry = Geometry.fit(sample.pixels().shape[:2], (64, 64), "longest")
        return geometry.to_canvas(torch.tensor(boxes))[None]

    monkeypatch.setattr(model, "ground", ground)
    result = evaluate(model, samples, "grounding", method=method)
    assert result["metrics"]["acc@0.5"] == 1
    assert result["metrics"]["mean_iou"] == pytest.approx(1, abs=1e-4)
    assert (result["protocol"]["method"], result["protocol"]["candidates"]) == ("head", 0)
    counts = {k: v for k, v in result["protocol"].items() if k.startswith("num_")}
    regions = sum(len(s.regions) for s in samples)
    phrases = sum(len({r.text for r in s.regions}) for s in samples)
    assert counts == {"num_images": 9, "num_regions": regions, "num_phrases": phrases}
    assert phrases < regions


def test_ranked_boxes_are_the_default(model: CLOC, samples: Samples) -> None:
    protocol = evaluate(model, samples[:3], "grounding")["protocol"]
    assert (protocol["method"], protocol["candidates"]) == ("ranked", 600)


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def recalls(answers: Sequence[Sequence[Sequence[float]]], true: Sequence[Sequence[Sequence[float]]]) -> Any:
    """Recall at 1, 5 and 10 by hand: boxes best first, and the true boxes, of each query."""
    hits = [
        [any(overlap(box, own) >= 0.5 for own in meant for box in boxes[:k]) for k in (1, 5, 10)]
        for boxes, meant in zip(answers, true)
    ]
    return np.mean(hits, axis=0).tolist()


def test_recall_of_ranked_boxes(model: CLOC, samples: Samples) -> None:
    """The boxes that the method gives, counted slowly; the head has one box alone."""
    samples = Samples(
        replace(s, regions=tuple(replace(r, box=(*r.box[:2], 1.0, 1.0)) for r in s.regions)) for s in samples
    )
    method, answers, true = open_method("ranked", model), [], []
    with torch.inference_mode():
        for sample in samples:
            phrases = list(dict.fromkeys(region.text.lower() for region in sample.regions))
            (batch,) = evaluation_batches(Samples([sample]), method.canvas)
            found = method.ground(batch, [phrases])  # type: ignore[attr-defined]
            for row, phrase in enumerate(phrases):
                boxes = torch.cat([found.boxes[row, None], found.further[row]]).tolist()
                assert len(boxes) == 10
                answers.append(boxes)
                true.append([region.box for region in sample.regions if region.text.lower() == phrase])
    metrics = evaluate(model, samples, "grounding", method="ranked")["metrics"]
    expected = recalls(answers, true)
    assert [metrics[f"recall@{k}"] for k in (1, 5, 10)] == pytest.approx(expected)
    assert metrics["acc@0.5"] == metrics["recall@1"] < metrics["recall@5"] < metrics["recall@10"]
    head = evaluate(model, samples, "grounding", method="head")["metrics"]
    assert [name for name in head if "recall" in name] == ["recall@1"]
    more = evaluate(model, samples[:3], "grounding", EvaluationConfig(recall_k=(2, 15)))["metrics"]
    assert [name for name in more if "recall" in name] == ["recall@2", "recall@15"]


def test_a_method_that_finds_no_boxes_is_refused_with_those_that_do(model: CLOC, samples: Samples) -> None:
    message = r"method crop finds no boxes by itself: .* --proposals .*: prompter, ranked, head$"
    with pytest.raises(UserError, match=message):
        evaluate(model, samples, "grounding", method="crop")


def test_the_box_around_all_of_a_phrases_boxes(model: CLOC, samples: Samples) -> None:
    """As GLIP's merged boxes: what `evaluate` says of it is what the one box around them gives."""
    around = Samples()
    for sample in samples:
        boxes: dict[str, list[tuple[float, ...]]] = {}
        for region in sample.regions:
            boxes.setdefault(region.text, []).append(region.box)
        ends = {text: np.array(own) for text, own in boxes.items()}
        regions = tuple(
            Region((*own[:, :2].min(0).tolist(), *own[:, 2:].max(0).tolist()), text)
            for text, own in ends.items()
        )
        around.append(replace(sample, regions=regions))
    merged, alone = (
        evaluate(model, mentioned(data), "grounding", EvaluationConfig(protocol=f"flickr30k-{rule}"))
        for data, rule in ((samples, "merged"), (around, "any"))
    )
    assert merged["metrics"] == pytest.approx(alone["metrics"], abs=1e-6)
    assert "around all" in merged["protocol"]["repeated_phrases"]
    plain = evaluate(model, samples, "grounding")
    assert plain["metrics"]["mean_iou"] != merged["metrics"]["mean_iou"]
