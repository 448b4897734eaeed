"""Names of regions, from whichever classes there are."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from tiny_data import NAMES, Samples

from open_cloc.errors import UserError
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.run import evaluate
from open_cloc.inference.predictor import Predictor
from open_cloc.model.cloc import CLOC
from open_cloc.samples import Region, RegionSample


def test_region_classification_equals_loops_and_groups_are_subsets(model: CLOC, samples: Samples) -> None:
    seen, held_out = NAMES[:4], NAMES[4:]
    config = EvaluationConfig(groups={"seen": seen, "held_out": held_out})
    result = evaluate(model, samples, "zeroshot-region-classification", config)
    predictor = Predictor(model)
    names = sorted({region.text.lower() for s in samples for region in s.regions})
    texts = predictor.encode_text(names)
    hits: dict[str, list[bool]] = {"": [], "/seen": [], "/held_out": []}
    for sample in samples:
        predictor.set_image(sample.pixels())
        for region in sample.regions:
            (feature,) = predictor.encode_regions(image=None, boxes=[region.box], normalized=True)
            hit = names[int(np.argmax(texts @ feature))] == region.text.lower()
            hits[""].append(hit)
            hits["/seen" if region.text in seen else "/held_out"].append(hit)
    for suffix, found in hits.items():
        assert result["metrics"][f"acc1{suffix}"] == pytest.approx(np.mean(found))
        assert result["protocol"][f"num_regions{suffix}"] == len(found)
    assert result["protocol"]["num_classes"] == len(names)


def test_class_names_of_the_data_set_or_the_config_are_used_in_full(model: CLOC, samples: Samples) -> None:
    samples.class_names = (*NAMES, "zebra", "Zebra")
    result = evaluate(model, samples, "zeroshot_region_classification")
    assert result["protocol"]["num_classes"] == 8
    assert result["protocol"]["classes"] == "categories of the data set"
    with pytest.raises(UserError, match="none of the 1 classes"):
        evaluate(model, samples, "zeroshot_region_classification", EvaluationConfig(classes=("zebra",)))


def test_templates_change_the_text(model: CLOC, samples: Samples) -> None:
    plain = evaluate(model, samples, "zeroshot_region_classification")
    config = EvaluationConfig(classes=tuple(f"a {name}" for name in NAMES))
    captions = [
        RegionSample(s.key, s.image, (), tuple(Region(r.box, f"a {r.text}") for r in s.regions))
        for s in samples
    ]
    spelled = evaluate(model, Samples(captions), "zeroshot_region_classification", config)
    samples.class_names = NAMES
    config = EvaluationConfig(templates=("a {}",))
    templated = evaluate(model, samples, "zeroshot_region_classification", config)
    assert templated["metrics"] == pytest.approx(spelled["metrics"])
    assert templated["protocol"]["rules"]["templates"] == ["a {}"]
    assert plain["protocol"]["rules"]["templates"] == ["{}"]


def test_classes_that_are_alike_as_far_as_the_model_reads_them_are_refused(
    model: CLOC, samples: Samples, caplog: pytest.LogCaptureFixture
) -> None:
    long = "red " * model.tokenize.context_length
    samples.class_names = (*NAMES, f"{long} by a tree", f"{long} in a car")
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(UserError, match=r"classes 'red red .* and 'red red .* are the same to this model"),
    ):
        evaluate(model, samples, "zeroshot_region_classification")
    assert "2 of 9 texts are longer than the 16 tokens this model reads" in caplog.text
    samples.class_names = (*NAMES, f"{long} by a tree")
    assert evaluate(model, samples, "zeroshot_region_classification")["protocol"]["num_classes"] == 8


def test_sizes_are_those_of_coco(model: CLOC) -> None:
    pixels = np.zeros((200, 400, 3), np.uint8)
    sides = {"small": 31, "medium": 40, "large": 100}
    regions = tuple(Region((0, 0, side / 400, side / 200), f"a {name}") for name, side in sides.items())
    edge = Region((0, 0, 32 / 400, 32 / 200), "a medium")  # 1,024 pixels are no longer small
    data = Samples(
        [RegionSample("s", pixels, (), (*regions, edge)), RegionSample("t", pixels, (), regions[:1])]
    )
    result = evaluate(model, data, "zeroshot_region_classification")
    counts = {name: result["protocol"][f"num_regions/{name}"] for name in sides}
    assert counts == {"small": 2, "medium": 2, "large": 1}
    total = sum(result["metrics"][f"acc1/{name}"] * count for name, count in counts.items())
    assert total / 5 == pytest.approx(result["metrics"]["acc1"])


def test_a_protocol_may_count_boxes_of_some_areas_alone(model: CLOC) -> None:
    """CLIPSelf's: from 8 x 8 pixels on, things and stuff apart."""
    pixels = np.zeros((100, 100, 3), np.uint8)
    sides = [("a mug", 7), ("a mug", 8), ("sky", 50), ("sky", 20), ("a cup", 30)]
    regions = tuple(Region((0, 0, side / 100, side / 100), text) for text, side in sides)
    data = Samples([RegionSample("s", pixels, (), regions), RegionSample("t", pixels, (), regions[2:])])
    data.class_groups = {"thing": ["a mug", "a cup"], "stuff": ["sky"]}  # type: ignore[attr-defined]
    result = evaluate(model, data, "zeroshot_region_classification", EvaluationConfig(protocol="clipself"))
    assert (result["protocol"]["num_regions"], result["protocol"]["num_other_areas"]) == (7, 1)
    groups = [result["metrics"][f"mean_per_class_recall/{name}"] for name in ("thing", "stuff")]
    assert (2 * groups[0] + groups[1]) / 3 == pytest.approx(result["metrics"]["mean_per_class_recall"])
    tiny = Samples([RegionSample("s", pixels, (), regions[:1])] * 2)
    tiny.class_groups = {"thing": ["a mug"]}  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="no box has 64 to 1"):
        evaluate(model, tiny, "zeroshot_region_classification", EvaluationConfig(protocol="clipself"))


def test_calibration_is_the_gap_of_confidence_and_accuracy(model: CLOC, samples: Samples) -> None:
    result = evaluate(model, samples, "zeroshot_region_classification")
    predictor = Predictor(model)
    names = sorted({region.text.lower() for s in samples for region in s.regions})
    texts = predictor.encode_text(names)
    scale = float(model.clip.logit_scale.exp().detach())
    assert result["protocol"]["logit_scale"] == pytest.approx(scale)
    bins: dict[int, list[float]] = {}
    for sample in samples:
        predictor.set_image(sample.pixels())
        for region in sample.regions:
            (feature,) = predictor.encode_regions(image=None, boxes=[region.box], normalized=True)
            logits = scale * texts @ feature
            likely = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            hit = names[int(np.argmax(logits))] == region.text.lower()
            bins.setdefault(min(14, int(likely.max() * 15)), []).append(float(likely.max()) - hit)
    expected = sum(abs(sum(gaps)) for gaps in bins.values()) / sum(map(len, bins.values()))
    assert result["metrics"]["calibration_error"] == pytest.approx(expected, abs=1e-5)


def test_a_model_without_softmax_has_no_calibration(tiny_model_cfg: dict, samples: Samples) -> None:
    sigmoid = CLOC({**tiny_model_cfg, "init_logit_bias": -10.0}).eval()
    result = evaluate(sigmoid, samples, "zeroshot_region_classification", method="roialign")
    assert "calibration_error" not in result["metrics"]
    assert result["protocol"]["logit_scale"] is None
