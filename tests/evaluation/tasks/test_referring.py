"""Referring expressions against a slow reference, in both settings of ReCLIP."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from open_cloc.errors import UserError
from open_cloc.evaluation.batches import evaluation_batches
from open_cloc.evaluation.methods import open_method
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.run import evaluate
from open_cloc.model.cloc import CLOC
from open_cloc.samples import Region, Text
from tests.data.readers.made import picture_of, reclip_lines, write_reclip
from tests.evaluation.tiny_data import NAMES, Samples

GT, DET = EvaluationConfig(protocol="reclip-gt"), EvaluationConfig(protocol="reclip-det")


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def made(samples: Samples) -> Samples:
    """Each picture's regions are candidates; some are meant by an expression or two, two by one together."""
    found = Samples()
    for number, sample in enumerate(samples):
        regions = []
        for row, region in enumerate(sample.regions):
            texts = [Text(f"the {NAMES[row]}", "referring", f"ref {number}-{row}, 0")] if row != 1 else []
            if row == 0:
                texts.append(Text("That ONE", "referring", f"ref {number}-{row}, 1"))
            if row in (2, 3):
                texts.append(Text("both", "referring", f"ref {number}, 0"))
            regions.append(replace(region, texts=tuple(texts)))
        x1, y1, x2, y2 = regions[0].box if regions else (0, 0, 1, 1)
        if len(regions) in (2, 4):  # of a detector, one near what is meant
            regions.append(Region((x1, y1, x2, (y1 + 3 * y2) / 4), "object", source="detection"))
            regions.append(Region((0.0, 0.0, 0.2, 0.2), "object", source="detection"))
        found.append(replace(sample, regions=tuple(regions)))
    return found


@pytest.mark.parametrize("config", [GT, DET], ids=["gt", "det"])
def test_it_is_the_slow_reference(model: CLOC, samples: Samples, config: EvaluationConfig) -> None:
    data = made(samples)
    result = evaluate(model, data, "referring", config)
    method = open_method("prompter", model)
    hits, overlaps, without = [], [], 0
    with torch.inference_mode():
        for sample in data:
            asked: dict[tuple[str, str], list[Region]] = {}
            for region in sample.regions:
                for text in region.texts:
                    asked.setdefault((text.source, text.text), []).append(region)
            if not asked:
                continue
            wanted = "detection" if config is DET else ""
            candidates = [r.box for r in sample.regions if r.source == wanted]
            without += not candidates
            candidates = candidates or [(0.0, 0.0, 1.0, 1.0)]
            (batch,) = evaluation_batches(Samples([sample]), method.canvas)
            rows = method.embed_regions(batch, [np.array(candidates)])
            for (_, text), meant in asked.items():
                scores = rows @ method.embed_texts([f"a photo of {text.lower()}"])[0]
                best = candidates[int(scores.argmax())]
                overlaps.append(max(overlap(best, region.box) for region in meant))
                hits.append(overlaps[-1] > 0.5)
    assert result["metrics"]["acc@0.5"] == pytest.approx(np.mean(hits))
    assert result["metrics"]["mean_iou"] == pytest.approx(np.mean(overlaps), abs=1e-6)
    assert result["protocol"]["num_expressions"] == len(hits)
    assert result["protocol"]["num_images_without_candidates"] == without
    assert 0 < result["metrics"]["acc@0.5"] < 1
    assert (without > 0) == (config is DET)


def test_a_choice_of_half_an_overlap_is_wrong(model: CLOC, samples: Samples) -> None:
    """ReCLIP's threshold is strict."""
    text = (Text("it", "referring", "ref 1, 0"),)
    for right, bottom in ((0.0, 0.5), (1.0, 0.51)):
        regions = (
            Region((0.0, 0.0, 1.0, 1.0), "mug", texts=text),
            Region((0.0, 0.0, 1.0, bottom), "object", source="detection"),
        )
        data = Samples([replace(samples[1], regions=regions)])
        assert evaluate(model, data, "referring", DET)["metrics"]["acc@0.5"] == right


def test_what_is_not_there_is_said(model: CLOC, samples: Samples) -> None:
    with pytest.raises(UserError, match="no referring expressions in its 9 images"):
        evaluate(model, samples, "referring")
    text = (Text("it", "referring", "ref 1, 0"),)
    data = Samples([replace(samples[1], regions=(Region((0, 0, 1, 1), "mug", texts=text),))])
    with pytest.raises(
        UserError, match=r"nothing was detected in the 1 images: open the data with detections="
    ):
        evaluate(model, data, "referring", DET)


def test_a_file_of_detections_lists_every_picture(model: CLOC, tmp_path: Path) -> None:
    """An empty list is a picture in which nothing was detected; a picture that is not listed was left out."""
    path = write_reclip(tmp_path)
    other = [
        line | {"image_id": 9, "file_name": "COCO_train2014_000000000009_1.jpg"} for line in reclip_lines()
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in (*reclip_lines(), *other)))
    picture_of(tmp_path, "train2014/COCO_train2014_000000000009.jpg")
    found = tmp_path / "dets.json"
    spec = f"reclip:{path},detections={found}"
    found.write_text(json.dumps({"581857": [[10, 5, 20, 10]], "9": [], "7": [[1, 2, 3, 4]]}))
    result = evaluate(model, spec, "referring", DET)
    assert result["protocol"]["num_images_without_candidates"] == 1
    assert result["protocol"]["left_out_by_reader"] == {"pictures of dets.json that no line names": 1}
    found.write_text(json.dumps({"581857": [[10, 5, 20, 10]], "7": []}))
    with pytest.raises(
        UserError, match=r"1 entry is broken \(picture without detections: 1\).* with \[\] if not"
    ):
        evaluate(model, spec, "referring", DET)
    found.write_text(json.dumps({"581857": [], "9": []}))
    with pytest.raises(UserError, match="nothing was detected in the 2 images"):
        evaluate(model, spec, "referring", DET)
    found.write_text(json.dumps({"7": [[1, 2, 3, 4]]}))
    with pytest.raises(
        UserError, match=r"detections of 1 images, and of none of the 2 pictures, such as 581857"
    ):
        evaluate(model, spec, "referring", DET)


def test_candidates_that_tie_share_a_hit(model: CLOC, samples: Samples) -> None:
    text = (Text("it", "referring", "ref 1, 0"),)
    regions = [Region((0, 0, 1, 1), "mug", texts=text), *[Region((0, 0, 1, 1), "mug")] * 3]
    data = Samples([replace(samples[1], regions=tuple(regions))])
    assert evaluate(model, data, "referring", GT)["metrics"]["acc@0.5"] == 1.0


def test_an_expression_stands_in_the_templates(model: CLOC, samples: Samples) -> None:
    """ReCLIP's script writes `a photo of` before each, and no protocol leaves it bare."""

    class Told:
        def __init__(self) -> None:
            self.texts: list[str] = []
            self.method = open_method("whole", model)

        def embed_texts(self, texts: list[str]) -> torch.Tensor:
            self.texts += texts
            return self.method.embed_texts(texts)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.method, name)

    data = made(samples)
    for config, expected in (
        (EvaluationConfig(), {"that one"}),
        (GT, {"a photo of that one"}),
        (EvaluationConfig(templates=("a {}", "the {}, here")), {"a that one", "the that one, here"}),
    ):
        method = Told()
        result = evaluate(method, data, "referring", config)  # type: ignore[arg-type]
        assert expected <= set(method.texts)
        assert result["protocol"]["rules"]["templates"] == list(config.rules.templates)
