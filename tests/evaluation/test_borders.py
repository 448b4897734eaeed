"""Boxes of whole pixels that lie exactly on a border: an overlap of a half, an area of 32 x 32."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from open_cloc.boxes import judged_overlaps, normalize_boxes, whole_pixels
from open_cloc.data.readers import open_reader
from open_cloc.data.shards.convert import convert_dataset
from open_cloc.evaluation.average_precision import AREAS
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.run import evaluate
from open_cloc.model.cloc import CLOC
from open_cloc.samples import Region, RegionSample, Text
from tests.evaluation.tiny_data import Samples

SIZES = [(141, 137), (103, 211), (127, 131), (149, 109)]


def pictures(number: int, boxes_px: np.ndarray, sizes: list[tuple[int, int]] = SIZES) -> Samples:
    """A picture for each box (N, 4) of whole pixels, each of a thing."""
    made = Samples()
    for row in range(number):
        size_hw = sizes[row % len(sizes)]
        box = normalize_boxes(boxes_px[row].astype(float), size_hw)
        text = Text("the thing", "referring", f"ref {row}")
        region = Region(tuple(box.tolist()), "thing", texts=(text,))
        pixels = np.full((*size_hw, 3), row, np.uint8)
        made.append(RegionSample(f"s{row}", pixels, (), (region,), {"image_id": row}))
    made.class_names = ("thing", "other")
    return made


def random_boxes(number: int, wide: int, high: int, rng: np.random.Generator) -> np.ndarray:
    """Boxes of one size at places of whole pixels, within 100 x 100."""
    corners = rng.integers(0, [101 - wide, 101 - high], (number, 2))
    return np.concatenate([corners, corners + np.array([wide, high])], 1)


@pytest.fixture(scope="module")
def halves() -> tuple[Samples, np.ndarray]:
    """Pictures with a box each, and the upper half of each box."""
    rng = np.random.default_rng(0)
    boxes = np.concatenate(
        [random_boxes(1, int(w), 2 * int(h), rng) for w, h in rng.integers(3, 40, (60, 2))]
    )
    upper = boxes.copy()
    upper[:, 3] = (boxes[:, 1] + boxes[:, 3]) // 2
    return pictures(60, boxes), upper


def write_detections(file: Path, boxes: np.ndarray) -> Path:
    """COCO's results: a box of whole pixels in each picture, each with a score of its own."""
    sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    rows = [
        {"image_id": n, "bbox": box, "score": 0.9 - n / 1000, "category_id": 0}
        for n, box in enumerate(sides.tolist())
    ]
    file.write_text(json.dumps(rows))
    return file


def test_overlaps_of_whole_pixels_are_what_they_are() -> None:
    """Against ratios of whole numbers, whichever size the picture has."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        size_hw = tuple(rng.integers(400, 5000, 2).tolist())
        low = rng.integers(0, 200, (2, 2))
        one, two = np.concatenate([low, low + rng.integers(1, 200, (2, 2))], 1)
        inside = np.minimum(one[2:], two[2:]) - np.maximum(one[:2], two[:2])
        shared = int(inside.clip(min=0).prod())
        total = sum(int((box[2:] - box[:2]).prod()) for box in (one, two)) - shared
        shares = [torch.from_numpy(normalize_boxes(box[None].astype(float), size_hw)) for box in (one, two)]
        assert judged_overlaps(*shares).item() == round(shared / total, 9)
        assert (whole_pixels(shares[0].numpy(), size_hw) == one).all()


def test_half_is_near_enough_for_grounding(
    model: CLOC, halves: tuple[Samples, np.ndarray], tmp_path: Path
) -> None:
    data, upper = halves
    config = EvaluationConfig(proposals=f"results:{write_detections(tmp_path / 'r.json', upper)}")
    found = evaluate(model, data, "grounding", config, method="whole")
    assert found["metrics"]["acc@0.5"] == 1
    assert found["metrics"]["mean_iou"] == 0.5


def test_half_is_too_far_for_an_expression(model: CLOC, halves: tuple[Samples, np.ndarray]) -> None:
    """ReCLIP's rule is above a half."""
    data, upper = halves
    seen = Samples()
    for sample, box in zip(data, upper):
        share = normalize_boxes(box.astype(float), sample.pixels().shape[:2])
        detection = Region(tuple(share.tolist()), "object", source="detection")
        seen.append(replace(sample, regions=(*sample.regions, detection)))
    found = evaluate(model, seen, "referring", EvaluationConfig(protocol="reclip-det"), method="whole")
    assert found["metrics"] == {"acc@0.5": 0, "mean_iou": 0.5}


@pytest.mark.parametrize("height", [1, 2, 3, 4])
def test_precision_is_pycocotools_of_the_same_files(model: CLOC, height: int, tmp_path: Path) -> None:
    """Of boxes of 1, 3/4, 1/2 and 1/4 of the height."""
    coco = pytest.importorskip("pycocotools.coco").COCO
    judge = pytest.importorskip("pycocotools.cocoeval").COCOeval
    rng = np.random.default_rng(height)
    sides = rng.integers(3, 24, (60, 2))
    boxes = np.concatenate([random_boxes(1, int(w), 4 * int(h), rng) for w, h in sides])
    part = boxes.copy()
    part[:, 3] = boxes[:, 1] + (boxes[:, 3] - boxes[:, 1]) * height // 4
    data, file = pictures(60, boxes), write_detections(tmp_path / "r.json", part)
    data.class_names = ("thing",)
    config = EvaluationConfig(proposals=f"results:{file}")
    ours = evaluate(model, data, "detection", config, method="whole")["metrics"]
    there = [
        {"id": n + 1, "image_id": n, "category_id": 0, "iscrowd": 0, "area": int(w * h), "bbox": [x, y, w, h]}
        for n, (x, y, w, h) in enumerate(
            np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
        )
    ]
    with redirect_stdout(io.StringIO()):
        truth = coco()
        truth.dataset = {
            "images": [{"id": n} for n in range(60)],
            "categories": [{"id": 0}],
            "annotations": there,
        }
        truth.createIndex()
        judged = judge(truth, truth.loadRes(json.loads(file.read_text())), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    names = ("ap", "ap50", "ap75", "ap/small", "ap/medium", "ap/large")
    theirs = {name: value for name, value in zip(names, judged.stats) if value >= 0}
    assert ours == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize(("side", "group"), [(32, "medium"), (96, "large")])
def test_sizes_begin_where_they_say(model: CLOC, side: int, group: str) -> None:
    """Region classification: small below 32 x 32, large from 96 x 96 on. Detection: both ends, as COCO's."""
    boxes = random_boxes(40, side, side, np.random.default_rng(0))
    result = evaluate(model, pictures(40, boxes), "zeroshot_region_classification", method="whole")
    assert [name for name in result["metrics"] if name.startswith("acc1/")] == [f"acc1/{group}"]
    found = evaluate(model, pictures(40, boxes), "detection", method="whole")
    both = [name for name, (least, most) in AREAS.items() if name and least <= side**2 <= most]
    assert [name for name in found["metrics"] if name.startswith("ap/")] == [f"ap/{name}" for name in both]


def test_smaller_copies_keep_the_sizes_of_their_boxes(model: CLOC, tmp_path: Path) -> None:
    """Also copies of copies: what was measured on the first pictures stays so."""
    rng = np.random.default_rng(0)
    boxes = np.concatenate([random_boxes(1, int(s), int(s), rng) for s in (20, 30, 32, 40, 60, 95, 96, 99)])
    data = pictures(8, boxes)
    config = EvaluationConfig(protocol="clipself")
    data.class_groups = {"thing": ("thing",)}  # type: ignore[attr-defined]
    data.crowds = False  # type: ignore[attr-defined]
    convert_dataset(data, tmp_path / "smaller", max_side=64)
    convert_dataset(open_reader(f"shards:{tmp_path / 'smaller'}"), tmp_path / "again", max_side=16)
    task = "zeroshot_region_classification"
    sizes = {}
    for name in ("", "smaller", "again"):
        own = open_reader(f"shards:{tmp_path / name}") if name else data
        result = evaluate(model, own, task, EvaluationConfig(classes=("thing",)), method="whole")
        sizes[name] = {
            key: value for key, value in result["protocol"].items() if key.startswith("num_regions")
        }
        assert max(own[0].pixels().shape) == {"": 141, "smaller": 64, "again": 16}[name]
        strict = evaluate(model, own, task, replace(config, classes=("thing",)), method="whole")
        assert strict["protocol"]["num_regions"] == 8
    assert sizes[""] == sizes["smaller"] == sizes["again"]
    assert sizes[""]["num_regions/small"] == 2
    assert sizes[""]["num_regions/large"] == 2
