"""Zero-shot classification and retrieval of whole images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from PIL import Image
from tiny_data import NAMES, Samples

from open_cloc.cli.data import main
from open_cloc.errors import UserError
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.run import evaluate
from open_cloc.inference.predictor import Predictor
from open_cloc.model.cloc import CLOC
from open_cloc.samples import RegionSample


def test_classification_labels_come_from_metadata_or_the_only_caption(model: CLOC, samples: Samples) -> None:
    expected = evaluate(model, samples, "zeroshot_classification")
    labelled = Samples(
        RegionSample(s.key, s.image, (), (), {"label": s.captions[0].upper()}) for s in samples
    )
    assert evaluate(model, labelled, "zeroshot_classification")["metrics"] == expected["metrics"]
    two = Samples([RegionSample("s0", samples[0].image, ("a", "b"))])
    with pytest.raises(UserError, match="exactly one caption"):
        evaluate(model, two, "zeroshot_classification")


def test_retrieval_with_several_captions_per_image_equals_loops(model: CLOC, samples: Samples) -> None:
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


def test_retrieval_is_clip_benchmarks(model: CLOC, samples: Samples) -> None:
    """Captions repeat, in a picture and in two: where the order of ties decides theirs, ours is between."""
    theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    captions = [
        (f"a {NAMES[i % 7]}", f"a {NAMES[i % 3]} {i}", f"a {NAMES[i % 7]}") for i in range(len(samples))
    ]
    ks = (1, 3, 6, 9)
    data = Samples(RegionSample(s.key, s.image, own) for s, own in zip(samples, captions))
    metrics = evaluate(model, data, "zeroshot_retrieval", EvaluationConfig(recall_k=ks))["metrics"]
    predictor = Predictor(model)
    images = torch.from_numpy(np.stack([predictor.encode_image(s.pixels()) for s in samples]))
    texts = torch.from_numpy(predictor.encode_text([text for own in captions for text in own]))
    owners = torch.arange(len(samples)).repeat_interleave(3)
    agreed = 0
    for name, scores, right in (
        ("image", texts @ images.T, owners[:, None] == torch.arange(len(samples))),
        ("text", images @ texts.T, torch.arange(len(samples))[:, None] == owners),
    ):
        for k in ks:
            one, other = (
                float((theirs.recall_at_k(scores[:, order], right[:, order], k) > 0).float().mean())
                for order in (torch.arange(scores.shape[1]), torch.arange(scores.shape[1]).flip(0))
            )
            low, high = sorted((one, other))
            assert low - 1e-6 <= metrics[f"{name}_retrieval_recall@{k}"] <= high + 1e-6
            agreed += one == other
    assert agreed >= 6


def test_rows_of_one_picture_are_one_image(model: CLOC, samples: Samples) -> None:
    """As open_clip's tables have a row for each caption."""
    each = Samples(
        RegionSample(f"{s.key}-{i}", s.image, (f"{s.captions[0]} {i}",)) for s in samples for i in "ab"
    )
    whole = Samples(
        RegionSample(s.key, s.image, tuple(f"{s.captions[0]} {i}" for i in "ab")) for s in samples
    )
    expected, found = (evaluate(model, data, "zeroshot_retrieval") for data in (whole, each))
    assert found["metrics"] == expected["metrics"]
    assert found["intervals"] == expected["intervals"]
    assert (found["protocol"]["num_samples"], found["protocol"]["num_images"]) == (
        2 * len(samples),
        len(samples),
    )


def _class_folders(folder: Path, samples: Samples) -> str:
    """The samples' pictures in folders of the first four names, and a folder of each name that is empty."""
    words = [f"n{number:08d} {name}, {name}s" for number, name in enumerate(NAMES)]
    (folder / "words.txt").write_text("\n".join(words))
    for number in range(len(NAMES)):
        (folder / f"val/n{number:08d}").mkdir(parents=True)
    for number, sample in enumerate(samples):
        Image.fromarray(sample.pixels()).save(folder / f"val/n{number % 4:08d}/{number}.png")
    return f"class_folders:{folder / 'val'},names={folder / 'words.txt'}"


@pytest.mark.parametrize("protocol", ["", "clip"])
def test_classes_of_folders_that_do_not_occur_compete(
    model: CLOC, samples: Samples, tmp_path: Path, protocol: str
) -> None:
    spec = _class_folders(tmp_path, samples)
    config = EvaluationConfig(protocol=protocol) if protocol else EvaluationConfig()
    result = evaluate(model, spec, "zeroshot_classification", config)
    predictor = Predictor(model)
    templates = [each("{}") for each in OPENAI_IMAGENET_TEMPLATES] if protocol else ["{}"]
    texts = []
    for name in NAMES:
        rows = predictor.encode_text([template.format(name) for template in templates])
        mean = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(0)
        texts.append(mean / np.linalg.norm(mean))
    right: dict[int, list[tuple[bool, bool]]] = {}
    for number, sample in enumerate(samples):
        own = predictor.encode_image(sample.pixels())
        nearest = sorted(range(len(NAMES)), key=lambda name: -float(own @ texts[name]))
        right.setdefault(number % 4, []).append((nearest[0] == number % 4, number % 4 in nearest[:5]))
    hits = np.array([pair for pairs in right.values() for pair in pairs])
    assert result["metrics"]["acc1"] == pytest.approx(hits[:, 0].mean())
    assert result["metrics"]["acc5"] == pytest.approx(hits[:, 1].mean())
    each_class = [np.mean([first for first, _ in pairs]) for pairs in right.values()]
    assert result["metrics"]["mean_per_class_recall"] == pytest.approx(np.mean(each_class))
    assert (result["protocol"]["num_classes"], result["protocol"]["num_images"]) == (len(NAMES), 9)
    assert result["protocol"]["classes"] == "categories of the data set"
    main(["convert", spec, str(tmp_path / "shards")])
    again = evaluate(model, f"shards:{tmp_path / 'shards'}", "zeroshot_classification", config)
    assert again["metrics"] == pytest.approx(result["metrics"])
    assert again["protocol"]["classes_digest"] == result["protocol"]["classes_digest"]


def test_given_classes_come_before_those_of_folders(model: CLOC, samples: Samples, tmp_path: Path) -> None:
    spec = _class_folders(tmp_path, samples)
    config = EvaluationConfig(classes=NAMES[:4])
    protocol = evaluate(model, spec, "zeroshot_classification", config)["protocol"]
    assert (protocol["num_classes"], protocol["classes"]) == (4, "given")
    with pytest.raises(UserError, match="is none of the 2 classes"):
        evaluate(model, spec, "zeroshot_classification", EvaluationConfig(classes=NAMES[:2]))


def test_names_of_regions_are_no_classes_of_captions(model: CLOC, samples: Samples) -> None:
    expected = evaluate(model, samples, "zeroshot_classification")
    samples.class_names = NAMES  # captions are `a red dog`
    found = evaluate(model, samples, "zeroshot_classification")
    assert (found["protocol"], found["metrics"]) == (expected["protocol"], expected["metrics"])
    samples.class_names = tuple(f"a {name}" for name in (*NAMES, "thing"))
    protocol = evaluate(model, samples, "zeroshot_classification")["protocol"]
    assert (protocol["num_classes"], protocol["classes"]) == (8, "categories of the data set")
    samples.class_names = NAMES
    labelled = Samples(RegionSample(s.key, s.image, metadata={"label": s.captions[0]}) for s in samples)
    labelled.class_names = NAMES
    with pytest.raises(UserError, match="is none of the 7 classes"):
        evaluate(model, labelled, "zeroshot_classification")


def test_folders_that_a_model_reads_alike_are_refused(model: CLOC, samples: Samples, tmp_path: Path) -> None:
    """ImageNet's own list has a Cardigan and a cardigan."""
    spec = _class_folders(tmp_path, samples)
    (tmp_path / "words.txt").write_text((tmp_path / "words.txt").read_text().replace("blue cat", "Red Dog"))
    with pytest.raises(UserError, match="classes 'red dog' and 'Red Dog' of the data set are the same to"):
        evaluate(model, spec, "zeroshot_classification")


def test_pictures_without_labels_are_sent_to_class_folders(
    model: CLOC, samples: Samples, tmp_path: Path
) -> None:
    _class_folders(tmp_path, samples)
    with pytest.raises(UserError, match="class_folders:PATH opens a folder of pictures for each class"):
        evaluate(model, f"folder:{tmp_path / 'val'}", "zeroshot_classification")


def test_pictures_without_captions_may_be_left_out(tmp_path: Path, model: CLOC) -> None:
    """FLAIR's Urban1k has one blank caption: allowed to, retrieval goes on with the others."""
    rows = [{"image_id": n, "image": f"{n}.png", "caption": f"a {NAMES[n]}" if n else ""} for n in range(5)]
    for row in rows:
        Image.new("RGB", (8, 8), (40 * row["image_id"], 0, 90)).save(tmp_path / row["image"])
    (tmp_path / "annotations.json").write_text(json.dumps({"annotations": rows}))
    data, config = f"flair:{tmp_path / 'annotations.json'}", EvaluationConfig(protocol="flair")
    with pytest.raises(UserError, match="1 entry is broken"):
        evaluate(model, data, "zeroshot_retrieval", config)
    found = evaluate(model, data, "zeroshot_retrieval", config, max_bad_fraction=0.5)
    assert (found["protocol"]["num_images"], found["protocol"]["num_left_out"]) == (4, 1)


def test_a_sample_without_a_caption_counts_as_bad(model: CLOC, samples: Samples) -> None:
    bare = Samples([replace(samples[0], captions=()), replace(samples[1], captions=(" ",)), *samples[2:]])
    with pytest.raises(UserError, match="zeroshot_retrieval needs captions"):
        evaluate(model, bare, "zeroshot_retrieval")
    found = evaluate(model, bare, "zeroshot_retrieval", max_bad_fraction=0.5)
    assert found["protocol"]["left_out"] == {"no caption": 2}
    assert found["metrics"] == evaluate(model, Samples(bare[2:]), "zeroshot_retrieval")["metrics"]
    named = evaluate(model, bare, "zeroshot_region_classification", max_bad_fraction=0.5)
    assert named["protocol"]["num_left_out"] == 0
