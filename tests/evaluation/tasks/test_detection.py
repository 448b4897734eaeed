"""Detection from proposals against a slow reference, and proposals of each kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

pytest.importorskip("pycocotools")

from open_cloc.errors import MissingFileError, SampleError, UserError
from open_cloc.evaluation.average_precision import Boxes, precision_estimates
from open_cloc.evaluation.batches import evaluation_batches
from open_cloc.evaluation.compare import compare
from open_cloc.evaluation.methods import open_method
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.run import FirstSamples, evaluate
from open_cloc.model.cloc import CLOC
from open_cloc.model.region_sources import open_regions
from open_cloc.samples import RegionSample
from tests.evaluation.tiny_data import NAMES, Samples


def with_ids(samples: Samples) -> Samples:
    rows = [
        RegionSample(s.key, s.image, s.captions, s.regions, {"image_id": 7 + n})
        for n, s in enumerate(samples)
    ]
    found = Samples(rows)
    found.class_names = NAMES
    return found


def write_results(path: Path, samples: Samples) -> Path:
    """Each true box shifted by a pixel, and a small one in a corner, with scores."""
    rows = []
    for number, sample in enumerate(samples):
        height, width = sample.pixels().shape[:2]
        for region in sample.regions:
            x1, y1, x2, y2 = np.array(region.box) * [width, height, width, height]
            rows.append({"image_id": 7 + number, "bbox": [x1 + 1, y1, x2 - x1, y2 - y1], "score": 0.9})
        rows.append({"image_id": 7 + number, "bbox": [0, 0, 9, 9], "score": 0.5, "category_id": 1})
    rows.append({"image_id": 7, "bbox": [10, 10, 0, 4], "score": 0.5})  # without area
    path.write_text(json.dumps(rows))
    return path


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["labels", "grid:12", "results"])
def test_it_is_the_slow_reference(model: CLOC, samples: Samples, kind: str, tmp_path: Path) -> None:
    data = with_ids(samples)
    spec = f"results:{write_results(tmp_path / 'r.json', data)}" if kind == "results" else kind
    result = evaluate(model, data, "detection", EvaluationConfig(proposals=spec), method="roialign")
    method, source = open_method("roialign", model), open_regions(spec)
    names = [name.lower() for name in NAMES]
    texts, scale = method.embed_texts(names), float(model.clip.logit_scale.exp())
    truth: list[tuple[list[float], int, int]] = []
    found: list[tuple[list[float], int, int, float]] = []
    for image, sample in enumerate(data):
        (batch,) = evaluation_batches(Samples([sample]), method.canvas)
        size = np.tile(sample.pixels().shape[1::-1], 2)
        truth += [((r.box * size).tolist(), names.index(r.text.lower()), image) for r in sample.regions]
        proposals = source(sample, sample.pixels())
        if not proposals:
            continue
        boxes = np.array([r.box for r in proposals])
        likely = (scale * method.embed_regions(batch, [boxes]) @ texts.T).softmax(1)
        own = []
        for row, (box, region) in enumerate(zip(boxes, proposals)):
            factor = 1.0 if np.isnan(region.score) else region.score
            own += [((box * size).tolist(), n, image, float(p) * factor) for n, p in enumerate(likely[row])]
        own.sort(key=lambda entry: -entry[3])
        kept: list[tuple[list[float], int, int, float]] = []
        for entry in own:
            rivals = [k for k in kept if k[1] == entry[1]]
            near = box_iou(torch.tensor([entry[0]]), torch.tensor([k[0] for k in rivals])) if rivals else None
            if kind == "labels" or near is None or float(near.max()) <= 0.5:
                kept.append(entry)
        found += kept[:100]
    tables = [
        Boxes(
            np.array([r[0] for r in rows]),
            np.array([r[1] for r in rows]),
            np.array([r[2] for r in rows]),
            np.array([r[3] for r in rows]) if rows is found else np.zeros(0),
        )
        for rows in (truth, found)
    ]
    expected = precision_estimates(*tables, len(names), len(data), 100, {})
    assert set(result["metrics"]) == set(expected)
    for name, estimate in expected.items():
        assert result["metrics"][name] == pytest.approx(estimate.value, abs=1e-3), name
    assert result["protocol"]["proposals"] == spec
    assert result["protocol"]["num_regions"] == len(truth)
    assert set(result["intervals"]) == set(expected)


def test_two_models_on_equal_proposals_are_compared(model: CLOC, samples: Samples, tmp_path: Path) -> None:
    """And on others they are not, whatever the file is called."""
    data, path = with_ids(samples), write_results(tmp_path / "r.json", samples)
    config = EvaluationConfig(proposals=f"results:{path}")
    one = evaluate(model, data, "detection", config, draws=True)
    two = evaluate(model, data, "detection", config, method="roialign", draws=True)
    one["protocol"]["detections"] += 1  # a method's own affair
    rows = compare([one, two], ["one", "two"])
    assert rows["ap"][1].interval is not None
    grid = evaluate(model, data, "detection", EvaluationConfig(proposals="grid:12"))
    with pytest.raises(UserError, match="their proposals differ"):
        compare([one, grid], ["one", "grid"])
    moved = json.loads(path.read_text())
    moved[0]["bbox"][0] += 0.25
    path.write_text(json.dumps(moved))
    other = evaluate(model, data, "detection", config)
    with pytest.raises(UserError, match="their proposals differ"):
        compare([one, other], ["one", "other"])


def test_intervals_hold_their_own_value(model: CLOC, samples: Samples) -> None:
    result = evaluate(model, with_ids(samples), "detection", EvaluationConfig(proposals="grid:12"))
    for name, (low, high) in result["intervals"].items():
        assert low - 1e-9 <= result["metrics"][name] <= high + 1e-9, name


def test_the_first_pictures_ask_for_some_results_alone(model: CLOC, samples: Samples, tmp_path: Path) -> None:
    config = EvaluationConfig(proposals=f"results:{write_results(tmp_path / 'r.json', samples)}")
    result = evaluate(model, FirstSamples(with_ids(samples), 3), "detection", config)
    assert result["protocol"]["num_images"] == 3


def test_frequencies_of_classes_are_groups(model: CLOC, samples: Samples) -> None:
    data = with_ids(samples)
    data.class_groups = {"rare": NAMES[:2], "frequent": NAMES[2:], "common": ("Tall Man",)}  # type: ignore[attr-defined]
    result = evaluate(model, data, "detection")
    assert {"ap/rare", "ap/frequent", "ap/small"} <= set(result["metrics"])
    named = evaluate(model, data, "zeroshot_region_classification")
    assert {"mean_per_class_recall/rare", "acc1/small"} <= set(named["metrics"])
    assert named["protocol"]["num_regions/rare"] + named["protocol"]["num_regions/frequent"] == 16


def test_texts_are_the_classes_where_nothing_else_is(model: CLOC, samples: Samples) -> None:
    result = evaluate(model, samples, "detection")
    assert result["protocol"]["classes"] == "distinct texts of the data set"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "a JSON list of objects"),
        ('[{"image_id": 1}]', "entry 0 needs image_id and bbox"),
        ('[{"image_id": 1, "bbox": [1, 2, 3]}]', "entry 0 needs a bbox"),
        ('[{"image_id": 1, "bbox": [1, 2, 3, "4"], "score": 1}]', "all numbers"),
        ('[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": null}]', "all numbers"),
        ('[{"image_id": 1, "bbox": [1, 2, -3, 4], "score": 0.5}]', "a width and a height of at least 0"),
        ('[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 2.5}]', r"a score in \[0, 1\]"),
        ('[{"image_id": 1, "bbox": [0.1, 0.2, 0.3, 0.4], "score": 1}]', "must be in pixels"),
    ],
)
def test_broken_results_are_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(UserError, match=message):
        open_regions(f"results:{tmp_path / 'r.json'}")


def test_proposals_that_fit_nothing_are_refused(model: CLOC, samples: Samples, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        open_regions(f"results:{tmp_path / 'none.json'}")
    with pytest.raises(UserError, match="lacks its file"):
        open_regions("results")
    path = write_results(tmp_path / "r.json", samples)
    corners = [{"image_id": 8, "bbox": [60, 30, 70, 40], "score": 0.5}]  # xyxy
    (tmp_path / "corners.json").write_text(json.dumps(corners))
    with pytest.raises(SampleError, match=r"\[60.0, 30.0, 70.0, 40.0\] leaves its picture of 64 x 64"):
        evaluate(
            model,
            with_ids(samples),
            "detection",
            EvaluationConfig(proposals=f"results:{tmp_path / 'corners.json'}"),
        )
    with pytest.raises(SampleError, match="results go by image_id, and sample 's0' has none"):
        evaluate(model, samples, "detection", EvaluationConfig(proposals=f"results:{path}"))
    path.write_text('[{"image_id": 1000, "bbox": [0, 0, 9, 9], "score": 0.5}]')
    with pytest.raises(UserError, match="boxes of 1 images that the data set does not have"):
        evaluate(model, with_ids(samples), "detection", EvaluationConfig(proposals=f"results:{path}"))
    bare = Samples(RegionSample(s.key, s.image) for s in with_ids(samples))
    bare.class_names = NAMES
    with pytest.raises(UserError, match="there are no regions in the 9 images"):
        evaluate(model, bare, "detection", EvaluationConfig(proposals="grid:4"))


def test_what_is_found_in_a_crowd_is_not_wrong(model: CLOC, tmp_path: Path) -> None:
    """The crowd is no box to be found either, and without it nothing is measured."""
    Image.new("RGB", (60, 40), "red").save(tmp_path / "a.jpg")
    boxes = {1: [2, 2, 10, 10], 2: [20, 2, 30, 30]}
    annotations = [
        {"id": n, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": int(n == 2)}
        for n, box in boxes.items()
    ]
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 60, "height": 40}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "c.json").write_text(json.dumps(document))
    found = [
        {"image_id": 1, "bbox": box, "score": score}
        for box, score in (([22, 4, 9, 9], 0.9), ([40, 20, 8, 8], 0.8), (boxes[1], 0.5))
    ]
    (tmp_path / "r.json").write_text(json.dumps(found))
    config = EvaluationConfig(proposals=f"results:{tmp_path / 'r.json'}")
    with pytest.raises(UserError, match=r"needs the 1 boxes of crowds.*open the data with ,crowds=true"):
        evaluate(model, f"coco:{tmp_path / 'c.json'}", "detection", config)
    result = evaluate(model, f"coco:{tmp_path / 'c.json'},crowds=true", "detection", config)
    assert result["metrics"]["ap"] == pytest.approx(1)
    counts = [result["protocol"][name] for name in ("num_regions", "num_crowds", "num_proposals")]
    assert counts == [1, 1, 3]


def test_groups_of_classes_have_their_own_precision(model: CLOC, samples: Samples) -> None:
    """AP50 of base and novel classes, as open-vocabulary COCO has it."""
    config = EvaluationConfig(groups={"base": NAMES[:4], "novel": NAMES[4:]})
    result = evaluate(model, with_ids(samples), "detection", config)
    assert {"ap50/base", "ap50/novel", "ap/base"} <= set(result["metrics"])
    with pytest.raises(UserError, match="'purple cow' is none of the 7 classes"):
        evaluate(model, with_ids(samples), "detection", EvaluationConfig(groups={"base": ("purple cow",)}))
