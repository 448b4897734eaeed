"""The model source of FiftyOne: regions of a dataset embedded, named, and found by texts."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import open_cloc
from open_cloc.errors import UserError
from open_cloc.inference.predictor import Predictor
from open_cloc.integrations import fiftyone as source
from tests.integrations.mongo_in_memory import mongo_in_memory
from tests.tiny import picture

BOXES = {"cup": [0.1, 0.2, 0.5, 0.6], "mug": [0.0, 0.0, 1.0, 1.0], "mat": [0.4, 0.1, 0.3, 0.8]}  # x, y, w, h
OPTIONS = {"box_format": "xywh", "normalized": True}


@pytest.fixture(scope="module")
def fo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """FiftyOne with an empty zoo, a database in memory, and nobody told."""
    home = tmp_path_factory.mktemp("fiftyone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIFTYONE_DO_NOT_TRACK", "true")
        patch.setenv("FIFTYONE_CONFIG_PATH", str(home / "config.json"))
        fiftyone = pytest.importorskip("fiftyone", reason="FiftyOne is not installed: make test-hosts")
        pytest.importorskip("mongomock", reason="mongomock is not installed: make test-hosts")
        patch.setattr(fiftyone.config, "model_zoo_dir", str(home / "zoo"))
        patch.setattr(fiftyone.config, "show_progress_bars", False)
        with mongo_in_memory():
            yield fiftyone


@pytest.fixture(scope="module")
def zoo(fo: Any) -> Any:
    """FiftyOne's model zoo with our source in it."""
    assert source.add_to_zoo() == Path(fo.config.model_zoo_dir) / "open-cloc"
    source.add_to_zoo()  # once more is no error
    return importlib.import_module("fiftyone.zoo")


@pytest.fixture(scope="module")
def model(zoo: Any, weights: str) -> Any:
    return zoo.load_zoo_model("open-cloc", weights=weights, device="cpu")


@pytest.fixture(scope="module")
def predictor(weights: str) -> Predictor:
    return open_cloc.load(weights, "cpu")


@pytest.fixture
def dataset(fo: Any, photos: Path) -> Iterator[Any]:
    """Three pictures: of three boxes, of two, and one that nobody has annotated."""
    made = fo.Dataset()
    for seed, names in enumerate((["cup", "mug", "mat"], ["mat", "cup"], None)):
        sample = fo.Sample(filepath=str(photos / f"{seed}.png"), kind=fo.Classification(label="indoors"))
        if names:
            sample["ground_truth"] = fo.Detections(
                detections=[fo.Detection(label=name, bounding_box=BOXES[name], color="red") for name in names]
            )
        made.add_sample(sample)
    yield made
    made.delete()


def expected(predictor: Predictor, seed: int, names: list[str]) -> np.ndarray:
    return predictor.encode(picture(seed=seed)).embed([BOXES[name] for name in names], **OPTIONS)


def test_the_source_is_a_model_of_the_zoo(zoo: Any, model: Any) -> None:
    assert "open-cloc" in zoo.list_zoo_models(tags="zero-shot")
    assert (model.media_type, model.has_embeddings, model.can_embed_prompts) == ("image", True, True)
    base = importlib.import_module("fiftyone.core.models").Model
    assert isinstance(model, base)
    assert "Weights are named" in Path(zoo.find_zoo_model("open-cloc")).read_text()


@pytest.mark.parametrize("batch_size", [None, 2])
def test_regions_of_a_picture_come_from_one_pass(
    model: Any,
    dataset: Any,
    predictor: Predictor,
    batch_size: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_at: list[int] = []
    encode = Predictor._encode

    def counted(self: Predictor, pictures: Any) -> Any:
        looked_at.append(len(pictures))
        return encode(self, pictures)

    monkeypatch.setattr(Predictor, "_encode", counted)
    dataset.apply_model(
        model, label_field="regions", boxes="ground_truth", batch_size=batch_size, skip_failures=False
    )
    assert looked_at == ([1, 1, 1] if batch_size is None else [2, 1])
    monkeypatch.undo()
    first, second, third = (sample.regions.detections for sample in dataset)
    assert third == []
    for seed, found, names in ((0, first, ["cup", "mug", "mat"]), (1, second, ["mat", "cup"])):
        assert [detection.label for detection in found] == names
        assert [detection.bounding_box for detection in found] == [BOXES[name] for name in names]
        assert {detection.color for detection in found} == {"red"}
        made = np.array([detection.embedding for detection in found])
        np.testing.assert_allclose(made, expected(predictor, seed, names), atol=1e-5)


def test_classes_name_the_boxes(zoo: Any, weights: str, dataset: Any, predictor: Predictor) -> None:
    classes = ["a dog", "two red cats"]
    namer = zoo.load_zoo_model("open-cloc", weights=weights, device="cpu", classes=classes)
    dataset.apply_model(namer, label_field="named", skip_failures=False)
    found = dataset.first().named.detections
    image = predictor.encode(picture(seed=0))
    named = image.classify(classes, list(BOXES.values()), top_k=1, **OPTIONS)
    assert [detection.label for detection in found] == [region.labels[0].label for region in named]
    scores = [region.labels[0].score for region in named]
    np.testing.assert_allclose([detection.confidence for detection in found], scores, atol=1e-5)
    assert [detection.label for detection in dataset.first().ground_truth.detections] == list(BOXES)


def test_texts_find_regions(fo: Any, model: Any, weights: str, dataset: Any, predictor: Predictor) -> None:
    """The brain's index, opened as another session would, loads the model by its name in the zoo."""
    brain = importlib.import_module("fiftyone.brain")
    dataset.apply_model(model, label_field="regions", boxes="ground_truth", skip_failures=False)
    brain.compute_similarity(
        dataset,
        patches_field="regions",
        embeddings="embedding",
        model="open-cloc",
        model_kwargs={"weights": weights, "device": "cpu"},
        brain_key="cloc",
        backend="sklearn",
    )
    dataset.clear_cache()
    names = [(0, name) for name in ("cup", "mug", "mat")] + [(1, name) for name in ("mat", "cup")]
    features = np.concatenate([expected(predictor, seed, [name]) for seed, name in names])
    order = np.argsort(-(features @ predictor.encode_text(["two red cats"])[0]))
    view = dataset.to_patches("regions").sort_by_similarity("two red cats", brain_key="cloc", k=3)
    found = [(int(Path(patch.filepath).stem), patch.regions.label) for patch in view]
    assert found == [names[row] for row in order[:3]]


def test_the_page(fo: Any, dataset: Any, run_the_page: Any) -> None:
    dataset.name = "photos"
    assert len(run_the_page("FiftyOne")["view"]) == 5


def test_pictures_and_prompts_are_embedded(model: Any, dataset: Any, predictor: Predictor) -> None:
    made = dataset.compute_embeddings(model, skip_failures=False)
    images = [predictor.encode(picture(seed=seed)).embed() for seed in range(3)]
    np.testing.assert_allclose(made, images, atol=1e-5)
    np.testing.assert_allclose(dataset.compute_embeddings(model, batch_size=2), images, atol=1e-5)
    np.testing.assert_array_equal(model.embed_prompt("a dog"), predictor.encode_text(["a dog"])[0])
    np.testing.assert_array_equal(model.embed_prompts(["a dog"]), predictor.encode_text(["a dog"]))


def test_crops_are_another_thing(model: Any, dataset: Any) -> None:
    """Patches that FiftyOne cuts out do not see their surroundings, as the page says."""
    dataset.apply_model(model, label_field="regions", boxes="ground_truth", skip_failures=False)
    annotated = dataset.limit(2)
    crops = annotated.compute_patch_embeddings(model, "ground_truth", skip_failures=False)
    regions = annotated.first().regions.detections
    crop = next(iter(crops.values()))
    assert crop.shape == (3, len(regions[0].embedding))
    assert np.abs(crop[0] - regions[0].embedding).max() > 1e-2


def test_the_form_of_the_app(zoo: Any) -> None:
    form = zoo.get_zoo_model("open-cloc").resolve_input(None)
    assert list(form.type.properties) == ["weights", "boxes", "classes"]
    assert form.type.properties["weights"].required


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("kind", "boxes must be in a field of Detections; 'kind' has Classification"),
        ("nowhere", "nowhere"),
    ],
)
def test_fields_without_boxes(model: Any, dataset: Any, field: str, reason: str) -> None:
    with pytest.raises((UserError, ValueError), match=reason) as caught:
        dataset.apply_model(model, label_field="regions", boxes=field, skip_failures=False)
    assert "\n" not in str(caught.value)


def test_fiftyone_skips_what_fails_and_tells_why(
    model: Any, dataset: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("fiftyone"), "propagate", True)
    with caplog.at_level(logging.WARNING, "fiftyone"):
        dataset.apply_model(model, label_field="regions", boxes="kind")
    assert "'kind' has Classification" in caplog.text


def test_wrong_orders(zoo: Any, model: Any, weights: str, dataset: Any) -> None:
    with pytest.raises(UserError, match="open-cloc needs weights: load_zoo_model"):
        zoo.load_zoo_model("open-cloc")
    with pytest.raises(UserError, match="unknown option 'weight'; expected one of weights, boxes, classes"):
        zoo.load_zoo_model("open-cloc", weights=weights, weight=3)
    with pytest.raises(UserError, match="classes must be a list of strings; got 'a dog'"):
        zoo.load_zoo_model("open-cloc", weights=weights, classes="a dog", device="cpu")
    with pytest.raises(
        UserError, match=r"boxes are a sample's: use dataset.apply_model\(model, boxes=FIELD\)"
    ):
        model.predict(picture())
    with pytest.raises(UserError, match="the model needs the field 'boxes' alone; got 'masks'"):
        dataset.apply_model(model, label_field="regions", masks="ground_truth")


def test_the_manifest_names_what_is_needed() -> None:
    manifest = json.loads(Path(source.__file__).with_name("manifest.json").read_text())
    (entry,) = manifest["models"]
    assert entry["base_name"] == source.NAME
    assert entry["requirements"]["packages"] == ["open-cloc"]
