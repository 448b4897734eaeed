"""Phrase grounding among proposals, by any method that embeds boxes, against a slow reference."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_data import Samples, mentioned

from open_cloc.cli.main import main
from open_cloc.errors import UserError
from open_cloc.evaluation.batches import evaluation_batches
from open_cloc.evaluation.compare import compare
from open_cloc.evaluation.methods import open_method
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.run import evaluate
from open_cloc.model.cloc import CLOC
from open_cloc.model.region_sources import open_regions

Box = tuple[float, ...]


def overlap(one: Box, other: Box) -> float:
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def chance(scores: list[float], right: list[bool], k: int) -> float:
    """Chance that a right box is among the first k, where those of equal scores stand in random order."""
    for score in sorted(set(scores), reverse=True):
        ties = [good for other, good in zip(scores, right) if other == score]
        places = min(k, len(ties))
        if any(ties):
            return 1 - math.comb(ties.count(False), places) / math.comb(len(ties), places)
        k -= len(ties)
        if k <= 0:
            return 0.0
    return 0.0


def with_ids(samples: Samples) -> Samples:
    return Samples(replace(sample, metadata={"image_id": row}) for row, sample in enumerate(samples))


def write_results(path: Path, samples: Samples) -> Path:
    """Of all pictures but the second: the true boxes moved by a pixel, one twice, and a corner."""
    rows = []
    for row, sample in enumerate(samples):
        height, width = sample.pixels().shape[:2]
        boxes = [np.array(region.box) * [width, height, width, height] for region in sample.regions]
        moved = [[x1 + 1, y1, x2 - x1 - 1, y2 - y1] for x1, y1, x2, y2 in boxes]
        if row != 1:
            rows += [
                {"image_id": row, "bbox": list(map(float, box))} for box in (*moved, *moved[:1], (0, 0, 9, 9))
            ]
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize("rule", ["any", "merged"])
@pytest.mark.parametrize("kind", ["labels", "grid:12", "results"])
@pytest.mark.parametrize("name", ["roialign", "crop", "prompter", "blur", "whole"])
def test_it_is_the_slow_reference(
    model: CLOC, samples: Samples, name: str, kind: str, rule: str, tmp_path: Path
) -> None:
    """Of `whole` all boxes of a picture tie."""
    data = mentioned(with_ids(samples))
    spec = f"results:{write_results(tmp_path / 'r.json', data)}" if kind == "results" else kind
    config = EvaluationConfig(proposals=spec, protocol=f"flickr30k-{rule}", batch_size=2)
    result = evaluate(model, data, "grounding", config, method=name)
    method, source = open_method(name, model), open_regions(spec)
    hits, overlaps, best = [], [], []
    with torch.inference_mode():
        for sample in data:
            boxes = list({region.box: None for region in source(sample, sample.pixels())})
            (batch,) = evaluation_batches(Samples([sample]), method.canvas)
            rows = method.embed_regions(batch, [np.array(boxes).reshape(-1, 4)])
            for phrase in {region.text.lower(): None for region in sample.regions}:
                true = [region.box for region in sample.regions if region.text.lower() == phrase]
                if rule == "merged":
                    x1s, y1s, x2s, y2s = zip(*true)
                    true = [(min(x1s), min(y1s), max(x2s), max(y2s))]
                text = method.embed_texts([phrase])[0]
                scores = [float((row * text).sum()) for row in rows]
                ious = [max(overlap(box, own) for own in true) for box in boxes]
                hits.append([chance(scores, [iou >= 0.5 for iou in ious], k) for k in (1, 5, 10)])
                first = [iou for iou, score in zip(ious, scores) if score == max(scores)]
                overlaps.append(np.mean(first) if first else 0.0)
                best += [max(scores)] if scores else []
    metrics, protocol = result["metrics"], result["protocol"]
    expected = np.mean(hits, axis=0).tolist()
    assert [metrics[f"recall@{k}"] for k in (1, 5, 10)] == pytest.approx(expected, abs=1e-9)
    assert metrics["acc@0.5"] == metrics["recall@1"]
    assert metrics["mean_iou"] == pytest.approx(np.mean(overlaps), abs=1e-6)
    assert metrics["mean_score"] == pytest.approx(np.mean(best), abs=1e-6)
    assert metrics["recall@10"] > 0
    assert protocol["method"].startswith(name)
    assert protocol["proposals"] == spec
    assert protocol["num_phrases"] == len(hits)
    assert protocol["num_images_without_proposals"] == {"labels": 2, "grid:12": 0, "results": 1}[kind]


def test_methods_on_equal_proposals_are_compared(model: CLOC, samples: Samples) -> None:
    """Others are refused."""
    grid = EvaluationConfig(proposals="grid:12")
    one, two = (
        evaluate(model, samples, "grounding", grid, method=method, draws=True)
        for method in ("prompter", "roialign")
    )
    assert compare([one, two], ["one", "two"])["recall@5"][1].interval is not None
    own = evaluate(model, samples, "grounding", draws=True)
    with pytest.raises(UserError, match="their proposals differ"):
        compare([one, own], ["one", "own"])


def test_what_is_not_there_is_said(model: CLOC, samples: Samples, tmp_path: Path) -> None:
    data, path = with_ids(samples), tmp_path / "r.json"
    path.write_text("[]")
    config = EvaluationConfig(proposals=f"results:{path}")
    with pytest.raises(UserError, match=r"there are no proposals of results:.* in the 9 images"):
        evaluate(model, data, "grounding", config)
    path.write_text(json.dumps([{"image_id": 77, "bbox": [0, 0, 9, 9]}]))
    with pytest.raises(UserError, match="has boxes of 1 images that the data set does not have"):
        evaluate(model, data, "grounding", config)
    path.write_text(json.dumps([{"image_id": 0, "bbox": [0, 0, 9, 9]}]))  # where nothing is looked for
    metrics = evaluate(model, data, "grounding", config)["metrics"]
    assert metrics == {"acc@0.5": 0.0, "mean_iou": 0.0, "recall@1": 0.0}


def test_a_phrase_may_mean_a_crowd(model: CLOC, samples: Samples) -> None:
    """Whose box is then among those to choose from, as it is among those to be found."""
    crowds = Samples(
        replace(s, regions=tuple(replace(r, crowd=True) for r in s.regions[:1]) + s.regions[1:])
        for s in samples
    )
    config = EvaluationConfig(proposals="labels")
    plain, crowded = (evaluate(model, data, "grounding", config) for data in (samples, crowds))
    assert crowded["metrics"] == plain["metrics"]
    assert crowded["protocol"]["num_proposals"] == plain["protocol"]["num_proposals"]


def test_by_the_command(model: CLOC, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.save_pretrained(tmp_path / "model")
    args = ["eval", "grounding", "--weights", str(tmp_path / "model"), "--method", "crop"]
    args += ["--data", "scenes:val,image_size=64,num_samples=3"]
    assert main(args) == 2
    assert "method crop finds no boxes by itself" in capsys.readouterr().err
    assert main([*args, "--proposals", "labels", "--output", str(tmp_path / "r.json")]) == 0
    protocol = json.loads((tmp_path / "r.json").read_text())["protocol"]
    assert (protocol["proposals"], protocol["method"]) == ("labels", "crop")
