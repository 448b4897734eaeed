"""The predictor against the model called by hand: pictures, one remembered picture, texts, loading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import open_cloc
from open_cloc.canvas import Geometry
from open_cloc.inference.predictor import Predictor, load
from open_cloc.model import embed
from open_cloc.model.embed import embed_texts
from tests.tiny import BOXES, PROMPTERS, picture, tiny_model


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(tiny_model())


@pytest.mark.parametrize("prompter", PROMPTERS)
@pytest.mark.parametrize("size_hw", [(50, 90), (90, 50), (64, 64), (7, 300)])
def test_regions_equal_the_model_called_by_hand(prompter: str, size_hw: tuple[int, int]) -> None:
    model = tiny_model(prompter)
    pixels = picture(*size_hw)
    height, width = size_hw
    boxes_px = np.array([[0, 0, width / 2, height / 2], [1.5, 2, width - 1, height]])
    geometry = Geometry.fit(size_hw, (64, 64), "longest")
    canvas = geometry.draw(pixels, model.preprocess.fill, "bicubic")
    images = torch.from_numpy(canvas).permute(2, 0, 1)[None]
    boxes = geometry.to_canvas(torch.tensor(boxes_px) / torch.tensor([width, height, width, height]))
    with torch.no_grad():
        state = model.encode_image(images, torch.tensor([geometry.content_box]))
        expected = F.normalize(model.encode_regions(state, {"box": boxes[None].float()}), dim=-1)[0]
        image = F.normalize(state.image_features, dim=-1)[0]
    predictor = Predictor(model)
    np.testing.assert_allclose(predictor.encode_regions(boxes_px, image=pixels), expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(predictor.encode_image(pixels), image.numpy(), atol=1e-6)


def test_outputs_are_float32_of_unit_length(predictor: Predictor) -> None:
    pixels = picture(50, 90)
    outputs = [
        predictor.encode_image(pixels)[None],
        predictor.encode_text(["a dog", "two cats on a mat"]),
        predictor.encode_regions(BOXES, image=pixels),
    ]
    for output, rows in zip(outputs, (1, 2, 3)):
        assert output.dtype == np.float32
        assert output.shape == (rows, 32)
        np.testing.assert_allclose(np.linalg.norm(output, axis=1), 1, atol=1e-5)


def test_set_image_equals_direct_call_and_runs_the_tower_once(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = picture(50, 90)
    direct = (
        predictor.encode_image(pixels),
        predictor.encode_regions(BOXES, image=pixels),
        predictor.classify_regions(BOXES, ["a", "b"], image=pixels),
        predictor.ground(["a dog"], image=pixels, candidates=50),
    )
    predictor.set_image(pixels)
    monkeypatch.setattr(predictor.model, "encode_image", None)  # whoever calls it now fails
    np.testing.assert_array_equal(predictor.encode_image(), direct[0])
    np.testing.assert_array_equal(predictor.encode_regions(BOXES), direct[1])
    assert predictor.classify_regions(BOXES, ["a", "b"]) == direct[2]
    assert predictor.ground(["a dog"], candidates=50) == direct[3]


def test_a_direct_call_leaves_the_set_image_alone(predictor: Predictor) -> None:
    first, second = picture(50, 90), picture(64, 64, seed=1)
    expected = predictor.encode_image(first)
    predictor.set_image(first)
    predictor.encode_image(second)
    np.testing.assert_array_equal(predictor.encode_image(), expected)


def test_no_image_names_set_image() -> None:
    for call in (lambda p: p.encode_image(), lambda p: p.encode_regions(BOXES)):
        with pytest.raises(RuntimeError, match="set_image"):
            call(Predictor(tiny_model()))


def test_paths_pil_and_arrays_agree(predictor: Predictor, tmp_path: Path) -> None:
    pixels = picture(50, 90)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = predictor.encode_image(pixels)
    for same in (Image.fromarray(pixels), tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_array_equal(predictor.encode_image(same), expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_pil_modes_are_converted(predictor: Predictor, mode: str) -> None:
    image = Image.fromarray(picture(50, 90)).convert(mode)
    expected = predictor.encode_image(np.asarray(image.convert("RGB")))
    np.testing.assert_array_equal(predictor.encode_image(image), expected)


def test_exif_orientation_is_not_applied(predictor: Predictor, tmp_path: Path) -> None:
    pixels = picture(50, 90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(
        predictor.encode_image(tmp_path / "turned.png"), predictor.encode_image(pixels)
    )


def test_box_formats_and_normalised_boxes_agree(predictor: Predictor) -> None:
    pixels = picture(50, 90)
    xyxy = np.array(BOXES, float)
    expected = predictor.encode_regions(xyxy, image=pixels)
    sides = xyxy[:, 2:] - xyxy[:, :2]
    forms = {
        "xywh": np.concatenate([xyxy[:, :2], sides], 1),
        "cxcywh": np.concatenate([xyxy[:, :2] + sides / 2, sides], 1),
        "xyxy": xyxy,
    }
    for name, boxes in forms.items():
        np.testing.assert_allclose(
            predictor.encode_regions(boxes, image=pixels, box_format=name), expected, atol=1e-5
        )
        relative = boxes / np.array([90, 50, 90, 50])
        given = predictor.encode_regions(relative, image=pixels, box_format=name, normalized=True)
        np.testing.assert_allclose(given, expected, atol=1e-5)


def test_classification_is_a_softmax_over_bare_labels(predictor: Predictor) -> None:
    pixels, labels = picture(50, 90), ["a dog", "two cats", "tree"]
    cosines = predictor.encode_regions(BOXES, image=pixels) @ predictor.encode_text(labels).T
    logits = np.exp(predictor.model.clip.logit_scale.item()) * cosines
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = predictor.classify_regions(BOXES, labels, image=pixels, top_k=5)
    for row, named in zip(expected, found):
        assert [label for label, _ in named] == [labels[i] for i in np.argsort(-row)]
        np.testing.assert_allclose([score for _, score in named], np.sort(row)[::-1], atol=1e-5)
    assert [len(named) for named in predictor.classify_regions(BOXES, labels, image=pixels, top_k=1)] == [
        1,
        1,
        1,
    ]


def test_sigmoid_models_score_each_label_by_itself() -> None:
    predictor = Predictor(tiny_model(init_logit_scale=float(np.log(10)), init_logit_bias=-10.0))
    pixels = picture(50, 90)
    (alone,) = predictor.classify_regions(BOXES[:1], ["a dog"], image=pixels)
    (both,) = predictor.classify_regions(BOXES[:1], ["a dog", "a cat"], image=pixels)
    cosine = float(predictor.encode_regions(BOXES[:1], image=pixels)[0] @ predictor.encode_text(["a dog"])[0])
    assert alone[0][1] == pytest.approx(1 / (1 + np.exp(10 - 10 * cosine)), rel=1e-3)
    assert dict(both)["a dog"] == pytest.approx(alone[0][1], rel=1e-4)


@pytest.mark.parametrize("prompter", PROMPTERS)
def test_many_boxes_in_chunks_equal_one_by_one(prompter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(tiny_model(prompter))
    pixels = picture(50, 90)
    whole = predictor.encode_regions(BOXES * 7, image=pixels)
    monkeypatch.setattr(embed, "most_floats", lambda device: 1)  # a chunk per box
    np.testing.assert_allclose(predictor.encode_regions(BOXES * 7, image=pixels), whole, atol=1e-5)
    assert predictor.encode_regions([], image=pixels).shape == (0, 32)
    assert predictor.classify_regions(np.zeros((0, 4)), ["a"], image=pixels) == []


@pytest.mark.parametrize("prompter", PROMPTERS)
@pytest.mark.parametrize("size_hw", [(50, 90), (90, 50), (7, 300)])
@pytest.mark.parametrize("candidates", [0, 60])
def test_grounded_boxes_lie_in_the_picture_and_score_their_own_embedding(
    prompter: str, size_hw: tuple[int, int], candidates: int
) -> None:
    predictor = Predictor(tiny_model(prompter))
    predictor.set_image(picture(*size_hw))
    phrases = ["a dog", "two cats", "a dog"]
    found = predictor.ground(phrases, candidates=candidates)
    assert [phrase for phrase, _, _ in found] == phrases
    boxes = np.array([box for _, box, _ in found])
    assert (boxes >= 0).all()
    assert (boxes[:, 2] <= size_hw[1]).all()
    assert (boxes[:, 3] <= size_hw[0]).all()
    cosines = (predictor.encode_regions(boxes) * predictor.encode_text(phrases)).sum(1)
    np.testing.assert_allclose([score for _, _, score in found], cosines, atol=1e-4)
    np.testing.assert_allclose(found[0][1], found[2][1], atol=1e-3)


def test_box_head_alone_equals_the_model(predictor: Predictor) -> None:
    pixels = picture(64, 64)
    model = predictor.model
    with torch.no_grad():
        state = model.encode_image(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        expected = model.ground(state, embed_texts(model, ["a dog"])[None])[0, 0].clamp(0, 1) * 64
    ((_, box, _),) = predictor.ground(["a dog"], image=pixels, candidates=0)
    np.testing.assert_allclose(box, expected.numpy(), atol=1e-3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [([], "at least one"), ("a dog", "list of strings"), (["a", ""], "row 1"), (["a", "a"], "distinct")],
)
def test_bad_labels(predictor: Predictor, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predictor.classify_regions(BOXES, labels, image=picture(50, 90))


def test_bad_phrases_texts_and_knobs(predictor: Predictor) -> None:
    pixels = picture(50, 90)
    with pytest.raises(ValueError, match="phrases"):
        predictor.ground([], image=pixels)
    with pytest.raises(ValueError, match="texts must be a list"):
        predictor.encode_text("a dog")
    with pytest.raises(ValueError, match="top_k"):
        predictor.classify_regions(BOXES, ["a"], image=pixels, top_k=0)
    with pytest.raises(ValueError, match="candidates"):
        predictor.ground(["a"], image=pixels, candidates=-1)


def test_bad_pictures(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not a picture")
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg"):
        predictor.encode_image(tmp_path / "missing.jpg")
    with pytest.raises(ValueError, match=r"text\.jpg"):
        predictor.encode_image(tmp_path / "text.jpg")
    for wrong in (np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3)), np.zeros((0, 5, 3), np.uint8), 3):
        with pytest.raises(ValueError, match="picture"):
            predictor.encode_image(wrong)


def test_load(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    loaded = open_cloc.load(tmp_path / "model", device="cpu")
    pixels = picture(50, 90)
    np.testing.assert_array_equal(
        loaded.encode_regions(BOXES, image=pixels), Predictor(model).encode_regions(BOXES, image=pixels)
    )
    assert open_cloc.CLOC is type(model)
    assert not loaded.model.training


def test_load_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="weights not found"):
        load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(ValueError, match="not a CLOC config"):
        load(tmp_path)
    with pytest.raises(ValueError, match="folder"):
        load(tmp_path / "config.json")
    tiny_model().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="device 'abacus'"):
        load(tmp_path / "model", device="abacus")
