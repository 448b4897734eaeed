"""Evaluation: metrics against slow references, tasks on tiny models, batch invariance, and errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from open_cloc.cli import eval as command
from open_cloc.evaluation.features import EvaluationConfig, collect_regions
from open_cloc.evaluation.grounding import best_ious
from open_cloc.evaluation.metrics import classification_metrics, recall_at_k, top_matches
from open_cloc.evaluation.regions import other_texts
from open_cloc.evaluation.run import TASKS, FirstSamples, evaluate, result_table, task_name, write_result
from open_cloc.inference.predictor import Predictor
from open_cloc.model.create import ModelConfig, create_model
from open_cloc.model.embed import embed_texts
from open_cloc.model.prompter import PrompterConfig
from open_cloc.model.search import ground_phrases
from open_cloc.samples import Region, RegionSample

SIZES = [(40, 70), (64, 64), (90, 30), (33, 65), (20, 20)]
NAMES = ("red dog", "blue cat", "green tree", "small house", "old car", "white cup", "Tall Man")


class Samples(list):
    """The smallest data set there can be."""


@pytest.fixture
def model(tiny_model_cfg):
    prompter = PrompterConfig(readout="prompt", box_prior=True, box_content="none", pooled_residual=True)
    return create_model(ModelConfig(model_cfg=tiny_model_cfg, prompter=prompter)).eval()


@pytest.fixture
def samples():
    """9 pictures of five sizes, 0 to 4 regions each, some texts twice in a picture."""
    rng = np.random.default_rng(0)
    made = Samples()
    for i in range(9):
        corners = rng.uniform(0, 0.6, (i % 5, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(0.1, 0.4, corners.shape)], 1)
        texts = [NAMES[j] for j in rng.integers(len(NAMES), size=len(boxes))]
        if len(texts) == 4:
            texts[3] = texts[0]
        regions = tuple(Region(tuple(box.tolist()), text) for box, text in zip(boxes, texts))
        pixels = rng.integers(0, 256, (*SIZES[i % 5], 3), dtype=np.uint8)
        made.append(RegionSample(f"s{i}", pixels, (f"a {NAMES[i % 7]}",), regions))
    return made


# --- metrics against loops ---


def test_classification_metrics_equal_loops():
    rng = np.random.default_rng(1)
    features, classes = torch.tensor(rng.normal(size=(50, 8))), torch.tensor(rng.normal(size=(9, 8)))
    targets = rng.choice([0, 1, 2, 3, 5, 8], 50)
    first, five, per_class = [], [], {}
    for row, target in zip(features.numpy(), targets):
        order = sorted(range(9), key=lambda c: -float(row @ classes[c].numpy()))
        first.append(order[0] == target)
        five.append(target in order[:5])
        per_class.setdefault(target, []).append(order[0] == target)
    found = classification_metrics(top_matches(features, classes, 5), torch.tensor(targets))
    assert found["acc1"] == pytest.approx(np.mean(first))
    assert found["acc5"] == pytest.approx(np.mean(five))
    assert found["mean_per_class_recall"] == pytest.approx(np.mean([np.mean(v) for v in per_class.values()]))
    assert found["acc1"] != found["mean_per_class_recall"]


def test_acc5_is_left_out_where_it_says_nothing():
    top = top_matches(torch.eye(3), torch.eye(3), 5)
    assert classification_metrics(top, torch.arange(3)) == {"acc1": 1.0, "mean_per_class_recall": 1.0}


def test_retrieval_of_3_images_with_5_captions_each_by_hand():
    """Scores written out; image 0 owns captions 0-4, image 1 owns 5-9, image 2 owns 10-14."""
    scores = torch.full((15, 3), 0.0)
    owners = torch.arange(3).repeat_interleave(5)
    scores[torch.arange(15), owners] = 0.5  # right by default
    scores[0, 1] = 0.9  # caption 0: image 1 first, its own second
    scores[5, [0, 2]] = torch.tensor([0.8, 0.7])  # caption 5: its own image last
    scores[11, 0] = 0.6  # the best caption of image 0 is another's, 5; so is that of image 1, caption 0
    # So that dot products give these scores: images are the axes, captions the rows.
    images = torch.eye(3)
    to_image = recall_at_k(scores, images, owners, torch.arange(3), (1, 2, 3))
    assert to_image == {1: 12 / 15, 2: 14 / 15, 3: 1.0}
    # image 0: 5 (0.8), 11 (0.6), then its own four at 0.5; image 1: 0 (0.9), own; image 2: 5 (0.7), own
    to_text = recall_at_k(images, scores, torch.arange(3), owners, (1, 2, 3, 5))
    assert to_text == {1: 0.0, 2: 2 / 3, 3: 1.0, 5: 1.0}


def test_recall_with_repeated_labels_equals_loops(monkeypatch):
    rng = np.random.default_rng(2)
    queries, gallery = torch.tensor(rng.normal(size=(40, 6))), torch.tensor(rng.normal(size=(30, 6)))
    query_labels, gallery_labels = rng.integers(0, 8, 40), rng.integers(0, 8, 30)
    monkeypatch.setattr("open_cloc.evaluation.metrics.ROWS_PER_CHUNK", 7)
    found = recall_at_k(
        queries, gallery, torch.tensor(query_labels), torch.tensor(gallery_labels), (1, 4, 99)
    )
    for k in (1, 4, 99):
        hits = []
        for query, label in zip(queries.numpy(), query_labels):
            order = sorted(range(30), key=lambda g: -float(query @ gallery[g].numpy()))
            hits.append(any(gallery_labels[g] == label for g in order[:k]))
        assert found[k] == pytest.approx(np.mean(hits))


def test_best_ious_take_the_best_of_a_phrases_boxes():
    boxes = torch.tensor([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]])
    true = torch.tensor([[0, 0, 0.5, 1.0], [0, 0, 0.5, 0.5], [0.5, 0.5, 1, 0.75], [0.0, 0, 0.1, 0.1]])
    torch.testing.assert_close(best_ious(boxes, true, torch.tensor([0, 0, 1, 1])), torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(best_ious(boxes, true, torch.tensor([0, 1, 1, 1])), torch.tensor([0.5, 0.5]))


def test_other_texts_gives_each_region_a_box_of_another_text():
    assert other_texts(["a", "b"]) == [1, 0]
    assert other_texts(["a", "a", "b", "a"]) == [2, 2, 3, 2]


# --- tasks ---

CASES = [
    ("zeroshot_classification", ""),
    ("zeroshot_retrieval", ""),
    *[("zeroshot_region_classification", method) for method in ("prompter", "roialign", "crop")],
    *[("region_retrieval", method) for method in ("prompter", "roialign", "crop")],
    *[("grounding", method) for method in ("ranked", "head")],
    *[("prompt_gain", method) for method in ("prompter", "roialign")],
]


@pytest.mark.parametrize(("task", "method"), CASES)
def test_tasks_do_not_depend_on_the_batch_size(model, samples, task, method):
    results = [
        evaluate(model, samples, task, EvaluationConfig(method=method, batch_size=size, candidates=40))
        for size in (1, 8)
    ]
    json.dumps(results, allow_nan=False)
    assert results[0]["metrics"] == pytest.approx(results[1]["metrics"], abs=1e-4)
    assert all(results[0]["protocol"][name] > 0 for name in results[0]["protocol"] if name.startswith("num_"))
    assert results[0]["protocol"]["num_images"] == 9


@pytest.mark.parametrize("method", ["prompter", "roialign", "crop"])
def test_every_region_is_embedded_in_order_whatever_the_batch(model, samples, method):
    with torch.inference_mode():
        one, eight = (
            collect_regions(model, samples, EvaluationConfig(batch_size=size), method) for size in (1, 8)
        )
    assert one.texts == [region.text.lower() for sample in samples for region in sample.regions]
    assert one.image_index.tolist() == [i for i, s in enumerate(samples) for _ in s.regions]
    torch.testing.assert_close(one.features, eight.features, atol=1e-5, rtol=0)


def test_region_features_equal_the_predictors(model, samples):
    predictor = Predictor(model)
    with torch.inference_mode():
        features = collect_regions(model, samples, EvaluationConfig(), "prompter").features
    expected = [
        predictor.encode_regions(s.pixels(), [region.box for region in s.regions], normalized=True)
        for s in samples
    ]
    np.testing.assert_allclose(features.numpy(), np.concatenate(expected), atol=1e-5)


def test_crops_equal_whole_images_cut_by_hand(model, samples):
    predictor = Predictor(model)
    expected = []
    for sample in samples:
        height, width = sample.pixels().shape[:2]
        for region in sample.regions:
            x1, y1, x2, y2 = np.round(np.array(region.box) * [width, height, width, height]).astype(int)
            cut = Image.fromarray(sample.pixels()).crop((x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)))
            expected.append(predictor.encode_image(cut))
    with torch.inference_mode():
        features = collect_regions(model, samples, EvaluationConfig(), "crop").features
    np.testing.assert_allclose(features.numpy(), np.stack(expected), atol=1e-5)


def test_region_classification_equals_loops_and_groups_are_subsets(model, samples):
    seen, held_out = NAMES[:4], NAMES[4:]
    config = EvaluationConfig(groups={"seen": seen, "held_out": held_out})
    result = evaluate(model, samples, "zeroshot-region-classification", config)
    predictor = Predictor(model)
    names = sorted({region.text.lower() for s in samples for region in s.regions})
    texts = predictor.encode_text(names)
    hits = {"": [], "/seen": [], "/held_out": []}
    for sample in samples:
        for region in sample.regions:
            feature = predictor.encode_regions(sample.pixels(), [region.box], normalized=True)[0]
            hit = names[int(np.argmax(texts @ feature))] == region.text.lower()
            hits[""].append(hit)
            hits["/seen" if region.text in seen else "/held_out"].append(hit)
    for suffix, found in hits.items():
        assert result["metrics"][f"acc1{suffix}"] == pytest.approx(np.mean(found))
        assert result["protocol"][f"num_regions{suffix}"] == len(found)
    assert result["protocol"]["num_classes"] == len(names)


def test_class_names_of_the_data_set_or_the_config_are_used_in_full(model, samples):
    samples.class_names = (*NAMES, "zebra", "Zebra")
    result = evaluate(model, samples, "zeroshot_region_classification")
    assert result["protocol"]["num_classes"] == 8
    assert result["protocol"]["classes"] == "categories of the data set"
    with pytest.raises(ValueError, match="none of the 1 classes"):
        evaluate(model, samples, "zeroshot_region_classification", EvaluationConfig(classes=("zebra",)))


def test_grounding_of_a_perfect_box_head(model, samples, monkeypatch):
    """Each phrase's box head answers with the true box of the canvas; non-square pictures come back right."""
    truth = iter([s for s in samples if s.regions])

    def ground(state, text_features):
        sample = next(truth)
        from open_cloc.canvas import Geometry

        phrases = dict.fromkeys(region.text for region in sample.regions)
        boxes = [next(r.box for r in sample.regions if r.text == phrase) for phrase in phrases]
        geometry = Geometry.fit(sample.pixels().shape[:2], (64, 64), "longest")
        return geometry.to_canvas(torch.tensor(boxes))[None]

    monkeypatch.setattr(model, "ground", ground)
    result = evaluate(model, samples, "grounding", EvaluationConfig(method="head"))
    assert result["metrics"]["acc@0.5"] == 1
    assert result["metrics"]["mean_iou"] == pytest.approx(1, abs=1e-4)
    counts = {k: v for k, v in result["protocol"].items() if k.startswith("num_")}
    regions = sum(len(s.regions) for s in samples)
    phrases = sum(len({r.text for r in s.regions}) for s in samples)
    assert counts == {"num_images": 9, "num_regions": regions, "num_phrases": phrases}
    assert phrases < regions


def test_prompt_gain_sees_a_model_that_ignores_its_boxes(model, samples, monkeypatch):
    def same_for_all(state, boxes):
        return state.image_features[:, None].expand(-1, boxes.shape[1], -1)

    monkeypatch.setattr("open_cloc.model.embed.METHODS", {"prompter": lambda m, *args: same_for_all(*args)})
    metrics = evaluate(model, samples, "prompt_gain")["metrics"]
    assert metrics["prompt_gain_shuffled_boxes"] == metrics["prompt_gain_whole_image"] == 0
    assert metrics["mean_region_cosine"] == pytest.approx(1, abs=1e-5)


def test_prompt_gain_of_a_model_that_reads_boxes(model, samples, monkeypatch):
    """A region's embedding is its text's, looked up by the box: true boxes score 1, shuffled ones 0."""
    predictor = Predictor(model)
    features = {
        tuple(np.round(region.box, 4)): predictor.encode_text([region.text.lower()])[0]
        for sample in samples
        for region in sample.regions
    }

    def look_up(_model, _state, boxes):
        keys = [tuple(np.round(box, 4)) for box in boxes[0].tolist()]
        return torch.tensor(np.stack([features.get(key, np.eye(32)[0]) for key in keys]))[None].float()

    monkeypatch.setattr("open_cloc.model.embed.METHODS", {"prompter": look_up})
    monkeypatch.setattr("open_cloc.canvas.Geometry.to_canvas", lambda _, boxes: boxes)
    metrics = evaluate(model, samples, "prompt_gain")["metrics"]
    assert metrics["acc1"] == 1
    assert metrics["acc1_shuffled_boxes"] == 0
    assert metrics["prompt_gain_shuffled_boxes"] == 1


def test_training_mode_comes_back_and_the_model_is_evaluated_without_dropout(model, samples):
    model.train()
    evaluate(model, samples, "zeroshot_retrieval")
    assert model.training
    assert model.clip.visual.training


def test_classification_labels_come_from_metadata_or_the_only_caption(model, samples):
    expected = evaluate(model, samples, "zeroshot_classification")
    labelled = Samples(
        RegionSample(s.key, s.image, (), (), {"label": s.captions[0].upper()}) for s in samples
    )
    assert evaluate(model, labelled, "zeroshot_classification")["metrics"] == expected["metrics"]
    two = Samples([RegionSample("s0", samples[0].image, ("a", "b"))])
    with pytest.raises(ValueError, match="exactly one caption"):
        evaluate(model, two, "zeroshot_classification")


def test_retrieval_with_several_captions_per_image_equals_loops(model, samples):
    captions = [tuple(f"{name} number {i}" for name in NAMES[: 1 + i % 3]) for i in range(len(samples))]
    several = Samples(RegionSample(s.key, s.image, c) for s, c in zip(samples, captions))
    metrics = evaluate(model, several, "zeroshot_retrieval", EvaluationConfig(recall_k=(1, 3, 6)))["metrics"]
    predictor = Predictor(model)
    images = np.stack([predictor.encode_image(s.pixels()) for s in samples])
    owners = [i for i, own in enumerate(captions) for _ in own]
    scores = images @ predictor.encode_text([c for own in captions for c in own]).T  # (9, T)
    for k in (1, 3, 6):
        to_text = [any(owners[t] == i for t in np.argsort(-row)[:k]) for i, row in enumerate(scores)]
        to_image = [owner in np.argsort(-column)[:k] for owner, column in zip(owners, scores.T)]
        assert metrics[f"text_retrieval_recall@{k}"] == pytest.approx(np.mean(to_text))
        assert metrics[f"image_retrieval_recall@{k}"] == pytest.approx(np.mean(to_image))


def test_templates_change_the_text(model, samples):
    plain = evaluate(model, samples, "zeroshot_region_classification")
    config = EvaluationConfig(classes=tuple(f"a {name}" for name in NAMES))
    captions = [
        RegionSample(s.key, s.image, (), tuple(Region(r.box, f"a {r.text}") for r in s.regions))
        for s in samples
    ]
    spelled = evaluate(model, Samples(captions), "zeroshot_region_classification", config)
    samples.class_names = NAMES
    templated = evaluate(model, samples, "zeroshot_region_classification", EvaluationConfig(template="a {}"))
    assert templated["metrics"] == spelled["metrics"]
    assert templated["protocol"]["template"] == "a {}"
    assert plain["protocol"]["template"] == "{}"


def test_bf16_runs_and_says_so_and_ranks_boxes_in_full_precision(model, samples):
    result = evaluate(model, samples, "grounding", EvaluationConfig(precision="bf16", candidates=20))
    assert result["protocol"]["precision"] == "bf16"
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        state = model.encode_image(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
        phrases = embed_texts(model, ["a dog"])[None]
        found = ground_phrases(model, state, phrases, torch.tensor([[0.0, 0, 1, 1]]), 20)
    assert found.boxes.dtype == found.scores.dtype == torch.float32


# --- results and command ---


def test_result_file_follows_the_format(model, samples, tmp_path):
    result = evaluate(model, samples, "region_retrieval", dataset_name="mine:x", pretrained="p")
    assert set(result) == {"dataset", "model", "pretrained", "task", "metrics", "language", "protocol"}
    assert set(result["metrics"]) == {"region_to_text_recall@10", "text_to_region_recall@10"}
    assert result["model"] == "ViT-64x2-patch16"
    write_result(result, tmp_path / "new" / "result.json")
    assert json.loads((tmp_path / "new" / "result.json").read_text()) == result
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["result.json"]
    assert "num_texts" in result_table(result)


def test_command(model, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")
    argv = ["--weights", str(tmp_path / "model"), "--data", "scenes:val", "--limit", "3"]
    output = tmp_path / "result.json"
    code = command.main(["region-retrieval", *argv, "--recall_k", "1", "10", "--output", str(output)])
    assert code == 0
    result = json.loads(output.read_text())
    assert result["dataset"] == "scenes:val"
    assert result["protocol"]["num_images"] == result["protocol"]["limit"] == 3
    assert "text_to_region_recall@1 " in capsys.readouterr().out
    with pytest.raises(ValueError, match="zeroshot_retrieval"):
        command.main(["nonsense", *argv])
    with pytest.raises(FileNotFoundError, match="class names"):
        command.main(["grounding", *argv, "--classes", str(tmp_path / "none.txt")])


def test_first_samples_keep_class_names(samples):
    samples.class_names = NAMES
    few = FirstSamples(samples, 4)
    assert (len(few), few[3].key, few.class_names) == (4, "s3", NAMES)
    assert not hasattr(few, "dropped")
    with pytest.raises(IndexError):
        few[4]


# --- bad input ---


def test_unknown_names():
    with pytest.raises(ValueError, match=", ".join(TASKS)):
        task_name("zeroshot")
    assert task_name("prompt-gain") == "prompt_gain"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"recall_k": (0, 1)}, "recall_k"),
        ({"template": "a photo"}, "template"),
        ({"candidates": 0}, "candidates"),
    ],
)
def test_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(**changes)


@pytest.mark.parametrize("task", TASKS)
def test_an_empty_data_set_and_an_unknown_method_fail(model, samples, task):
    with pytest.raises(ValueError, match="empty"):
        evaluate(model, Samples(), task)
    with pytest.raises(ValueError, match="unknown method 'magic'"):
        evaluate(model, samples, task, EvaluationConfig(method="magic"))


@pytest.mark.parametrize(
    "task", ["zeroshot_region_classification", "region_retrieval", "grounding", "prompt_gain"]
)
def test_no_regions_and_wrong_regions_fail(model, samples, task):
    pixels = samples[0].image
    bare = Samples([RegionSample("s0", pixels)])
    with pytest.raises(ValueError, match=r"no regions|two different"):
        evaluate(model, bare, task)
    nameless = Samples([*samples, RegionSample("bad", pixels, (), (Region((0, 0, 1, 1), " "),))])
    with pytest.raises(ValueError, match="'bad'"):
        evaluate(model, nameless, task)
    outside = Samples([*samples, RegionSample("bad", pixels, (), (Region((0, 0, 70, 40), "a"),))])
    with pytest.raises(ValueError, match="'bad'"):
        evaluate(model, outside, task)


def test_missing_captions_broken_pictures_and_empty_groups_fail(model, samples):
    with pytest.raises(ValueError, match="captions"):
        evaluate(model, Samples([RegionSample("s0", samples[0].image)]), "zeroshot_retrieval")
    with pytest.raises(ValueError, match="'bad'"):
        evaluate(model, Samples([RegionSample("bad", b"nothing", ("a",))]), "zeroshot_retrieval")
    with pytest.raises(ValueError, match="group 'rare'"):
        evaluate(model, samples, "grounding", EvaluationConfig(groups={"rare": ["unicorn"]}, candidates=20))


def test_features_of_collect_regions_have_unit_length(model, samples):
    with torch.inference_mode():
        for method in ("prompter", "roialign", "crop"):
            features = collect_regions(model, samples, EvaluationConfig(), method).features
            torch.testing.assert_close(features, F.normalize(features, dim=-1))
