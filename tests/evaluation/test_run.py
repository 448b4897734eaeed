"""One task on one data set: results, whatever the batch size, and what stops a measurement."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_data import NAMES, Samples, method_for

from open_cloc.errors import MissingFileError, UserError
from open_cloc.evaluation.methods import open_method
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.run import FirstSamples, evaluate, result_table
from open_cloc.evaluation.tasks import TASKS, find_task, task_name
from open_cloc.model.cloc import CLOC
from open_cloc.model.embed import embed_texts
from open_cloc.model.search import ground_phrases
from open_cloc.samples import Region, RegionSample
from tests.data.readers.made import annotation, coco_document, write_coco

CASES = [
    ("zeroshot_classification", ""),
    ("zeroshot_retrieval", ""),
    *[("zeroshot_region_classification", method) for method in ("prompter", "roialign", "crop")],
    *[("region_retrieval", method) for method in ("prompter", "roialign", "crop")],
    *[("grounding", method) for method in ("ranked", "head")],
    *[("prompt_gain", method) for method in ("prompter", "roialign", "crop")],
]


@pytest.mark.parametrize(("task", "method"), CASES)
def test_tasks_do_not_depend_on_the_batch_size(model: CLOC, samples: Samples, task: str, method: str) -> None:
    results = [
        evaluate(model, samples, task, EvaluationConfig(batch_size=size, candidates=40), method=method)
        for size in (1, 8)
    ]
    json.dumps(results, allow_nan=False)
    assert results[0]["metrics"] == pytest.approx(results[1]["metrics"], abs=1e-4)
    counts = {name: n for name, n in results[0]["protocol"].items() if name.startswith("num_")}
    assert all(n > 0 for name, n in counts.items() if name != "num_mentions")  # of which these data tell none
    assert results[0]["protocol"]["num_images"] == 9


def test_training_mode_comes_back_and_the_model_is_evaluated_without_dropout(
    model: CLOC, samples: Samples
) -> None:
    model.train()
    evaluate(model, samples, "zeroshot_retrieval")
    assert model.training
    assert model.clip.visual.training


def test_bf16_runs_and_says_so_and_ranks_boxes_in_full_precision(model: CLOC, samples: Samples) -> None:
    result = evaluate(model, samples, "grounding", EvaluationConfig(precision="bf16", candidates=20))
    assert result["protocol"]["precision"] == "bf16"
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        state = model.encode_image(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
        phrases = embed_texts(model, ["a dog"])[None]
        found = ground_phrases(model, state, phrases, torch.tensor([[0.0, 0, 1, 1]]), 20)
    assert found.boxes.dtype == found.scores.dtype == torch.float32


# --- results --------------------------------------------------------------------------------------


def test_a_result_has_the_keys_of_clip_benchmark_and_a_protocol(model: CLOC, samples: Samples) -> None:
    result = evaluate(model, samples, "region_retrieval", dataset_name="mine:x", pretrained="p")
    keys = "dataset model pretrained task metrics intervals language protocol"
    assert set(result) == set(keys.split())
    assert set(result["metrics"]) == {"region_to_text_recall@10", "text_to_region_recall@10"}
    assert (result["dataset"], result["model"], result["pretrained"]) == ("mine:x", "ViT-64x2-patch16", "p")
    told = "image_size resize_mode interpolation prompter precision device rules versions left_out_by_reader"
    assert set(told.split()) <= set(result["protocol"])
    assert "num_texts" in result_table(result)
    assert "region_retrieval (prompter) on mine:x\n" in result_table(result)


def test_the_table_shows_intervals_and_where_they_come_from(model: CLOC, samples: Samples) -> None:
    result = evaluate(model, samples, "zeroshot_region_classification")
    (value, (low, high)) = result["metrics"]["acc1"], result["intervals"]["acc1"]
    assert low <= value <= high
    assert result["protocol"]["intervals"]["resamples"] == 1000
    assert f"{value:.4f}  [{low:.4f}, {high:.4f}]\n" in result_table(result)
    assert "95% intervals, 1000 resamples of the images" in result_table(result)
    assert "quoted" not in result_table(result)
    assert evaluate(model, samples, "zeroshot_region_classification")["intervals"] == result["intervals"]
    single = evaluate(model, samples[2:3], "zeroshot_region_classification")
    assert single["intervals"] == {}
    assert "intervals" not in single["protocol"]
    assert "[" not in result_table(single)


def test_folders_and_specs_do_as_well_as_models_and_data_sets(model: CLOC, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    result = evaluate(str(tmp_path), "scenes:val,num_samples=3", "zeroshot-retrieval", device="cpu")
    assert (result["pretrained"], result["dataset"]) == (str(tmp_path), "scenes:val,num_samples=3")
    assert result["task"] == "zeroshot_retrieval"
    assert result["protocol"]["num_images"] == 3
    assert evaluate(tmp_path, "scenes:val,num_samples=3", "zeroshot_retrieval", device="cpu") == result
    with pytest.raises(MissingFileError, match="nowhere"):
        evaluate("nowhere", "scenes:val", "zeroshot_retrieval")


def test_an_open_method_is_used_as_it_is(model: CLOC, samples: Samples) -> None:
    expected = evaluate(model, samples, "region_retrieval", method="crop")
    method = open_method("crop", model)
    assert evaluate(method, samples, "region_retrieval") == expected
    with pytest.raises(UserError, match="open already"):
        evaluate(method, samples, "region_retrieval", method="roialign")


def test_first_samples_keep_class_names(samples: Samples) -> None:
    samples.class_names = NAMES
    few = FirstSamples(samples, 4)
    assert (len(few), few[3].key, few.class_names) == (4, "s3", NAMES)
    assert not hasattr(few, "dropped")
    with pytest.raises(IndexError):
        few[4]


# --- bad input ------------------------------------------------------------------------------------


def test_unknown_tasks() -> None:
    with pytest.raises(UserError, match=", ".join(TASKS)):
        find_task("zeroshot")
    assert task_name("prompt-gain") == "prompt_gain"
    assert find_task("prompt-gain") is find_task("open_cloc.evaluation.tasks.prompt_gain:prompt_gain")


@pytest.mark.parametrize("task", TASKS)
def test_an_empty_data_set_and_an_unknown_method_fail(model: CLOC, samples: Samples, task: str) -> None:
    with pytest.raises(UserError, match="empty"):
        evaluate(model, Samples(), task, method=method_for(task))
    with pytest.raises(UserError, match="unknown method 'magic'"):
        evaluate(model, samples, task, method="magic")


@pytest.mark.parametrize(
    "task", ["zeroshot_region_classification", "region_retrieval", "grounding", "prompt_gain"]
)
def test_no_regions_and_wrong_regions_fail(model: CLOC, samples: Samples, task: str) -> None:
    pixels = samples[0].image
    bare = Samples([RegionSample("s0", pixels)])
    with pytest.raises(UserError, match=r"no regions|two different"):
        evaluate(model, bare, task)
    nameless = Samples([*samples, RegionSample("bad", pixels, (), (Region((0, 0, 1, 1), " "),))])
    with pytest.raises(UserError, match="'bad'"):
        evaluate(model, nameless, task)
    outside = Samples([*samples, RegionSample("bad", pixels, (), (Region((0, 0, 70, 40), "a"),))])
    with pytest.raises(UserError, match="'bad'"):
        evaluate(model, outside, task)


def test_missing_captions_broken_pictures_and_empty_groups_fail(model: CLOC, samples: Samples) -> None:
    with pytest.raises(UserError, match="captions"):
        evaluate(model, Samples([RegionSample("s0", samples[0].image)]), "zeroshot_retrieval")
    with pytest.raises(UserError, match="'bad'"):
        evaluate(model, Samples([RegionSample("bad", b"nothing", ("a",))]), "zeroshot_retrieval")
    with pytest.raises(UserError, match="group 'rare'"):
        evaluate(model, samples, "grounding", EvaluationConfig(groups={"rare": ["unicorn"]}, candidates=20))


@pytest.mark.parametrize("task", ["zeroshot-region-classification", "region_retrieval", "zeroshot_retrieval"])
@pytest.mark.parametrize("method", ["ranked", "head", "ranked,grounding=head"])
def test_ways_to_find_phrases_are_for_phrases(model: CLOC, samples: Samples, task: str, method: str) -> None:
    with pytest.raises(UserError, match=r"^method (ranked|head) finds phrases, which .*; expected one of"):
        evaluate(model, samples, task, method=method)


def test_results_hold_no_secrets_of_urls(model: CLOC, samples: Samples) -> None:
    spec = "shards:https://me:hunter2@host/{0..9}.tar?sig=hunter2,cache=here"
    result = evaluate(
        model, samples, "zeroshot_retrieval", dataset_name=spec, pretrained="s3://me:hunter2@b/m"
    )
    assert result["dataset"] == "shards:https://***@host/{0..9}.tar,cache=here"
    assert "hunter2" not in json.dumps(result)


def test_entries_that_could_not_be_used_end_an_evaluation(model: CLOC, tmp_path: Path) -> None:
    """What belongs to no sample is missed by nobody else: an evaluation would be of fewer regions."""
    broken = [annotation([0, 0, 9, 9]), annotation([0, 0, 9, 9], image_id=5)]
    path = write_coco(tmp_path, coco_document(annotations=broken))
    with pytest.raises(
        UserError, match=r"unknown image_id: 1.* max_bad_fraction leaves them out, and counts them"
    ):
        evaluate(model, f"coco:{path}", "region_retrieval")


def test_what_is_left_out_by_rule_is_told(
    model: CLOC, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [annotation([0, 0, 50, 40]), annotation([0, 0, 9, 9], iscrowd=1, id=3)]
    path = write_coco(tmp_path, coco_document(annotations=rows))
    evaluate(model, f"coco:{path}", "region_retrieval")
    assert "not used: crowd annotations: 1" in caplog.text


def test_what_may_be_left_out_is_counted(model: CLOC, tmp_path: Path) -> None:
    """A picture that is not there and a wrong box: the numbers are those of the rest alone."""
    names, boxes = ("a.jpg", "b.jpg", "gone.jpg"), ([0, 0, 50, 40], [1, 1, 20, 20], [3, 3, 9, 9])
    images = [{"id": n, "file_name": name, "width": 64, "height": 48} for n, name in enumerate(names)]
    rows = [annotation(box, image_id=n, id=n) for n, box in enumerate(boxes)]
    whole = coco_document(images=images, annotations=[*rows, annotation([60, 0, 50, 5], image_id=0, id=7)])
    path = write_coco(tmp_path, whole)
    for name in names[:2]:
        Image.new("RGB", (64, 48), "red").save(path.parent / "images" / name)
    (path.parent / "images" / "gone.jpg").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"past the right edge|outside"):
        evaluate(model, f"coco:{path}", "region_retrieval")
    found = evaluate(model, f"coco:{path}", "region_retrieval", max_bad_fraction=0.02)
    assert found["protocol"]["num_left_out"] == 2
    assert sum(found["protocol"]["left_out"].values()) == 2
    (path.parent / "rest.json").write_text(json.dumps(coco_document(images=images[:2], annotations=rows[:2])))
    rest = evaluate(model, f"coco:{path.parent / 'rest.json'}", "region_retrieval")
    assert found["metrics"] == rest["metrics"]
    with pytest.raises(UserError, match=r"past max_bad_fraction=0\.01"):
        evaluate(model, f"coco:{path}", "region_retrieval", max_bad_fraction=0.01)
    with pytest.raises(UserError, match=r"must be in \[0, 1\]"):
        evaluate(model, f"coco:{path}", "region_retrieval", max_bad_fraction=7)
