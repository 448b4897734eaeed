"""Kept tokens: as good as a fresh look, by content alone, and never those of another model or a bad file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from open_cloc.errors import MissingFileError
from open_cloc.inference.predictor import Predictor, load
from open_cloc.inference.tokens import TokenCache, content_of
from tests.tiny import BOXES, picture, tiny_model


@pytest.fixture(scope="module", params=["mean", "prompt", "roialign"])
def predictor(request: pytest.FixtureRequest) -> Predictor:
    return Predictor(tiny_model(request.param))


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_what_is_kept_answers_as_what_is_fresh(predictor: Predictor, tmp_path: Path) -> None:
    given = [picture(seed=seed) for seed in range(2)] + [picture(80, 40)]
    fresh = predictor.encode(given)
    cache = TokenCache(tmp_path, predictor)
    first, again = cache.encode(given), TokenCache(tmp_path, predictor).encode(given)
    assert len(files(tmp_path)) == 3
    for one, made, kept in zip(fresh, first, again):
        np.testing.assert_array_equal(made.embed(), one.embed())
        assert kept.size_hw == one.size_hw
        np.testing.assert_allclose(kept.embed(), one.embed(), atol=1e-6)
        boxes = np.array([[0, 0, 0.5, 1], [0.1, 0.2, 0.9, 0.8]])
        np.testing.assert_allclose(
            kept.embed(boxes, normalized=True), one.embed(boxes, normalized=True), atol=1e-3
        )
        (found,), (expected,) = kept.find(["a dog"]), one.find(["a dog"])
        assert found.score == pytest.approx(expected.score, abs=2e-3)
    labels = [region.labels[0].label for region in again[0].classify(["a dog", "a cat"], BOXES[:2])]
    assert labels == [region.labels[0].label for region in fresh[0].classify(["a dog", "a cat"], BOXES[:2])]


def test_only_unknown_pictures_go_through_the_tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(tiny_model())
    seen = []
    real = predictor.model.encode_image

    def counted(images: Any, *args: Any) -> Any:
        seen.append(len(images))
        return real(images, *args)

    monkeypatch.setattr(predictor.model, "encode_image", counted)
    cache = TokenCache(tmp_path, predictor)
    cache.encode([picture(), picture(seed=1), picture()])
    cache.encode([picture(seed=1), picture(seed=2)])
    assert cache.encode([]) == []
    cache.encode([picture()])
    assert seen == [2, 1]


def test_contents_of_all_forms_of_a_picture(tmp_path: Path) -> None:
    pixels = picture()
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    (tmp_path / "a.png").write_bytes(encoded.getvalue())
    (tmp_path / "b.png").write_bytes(encoded.getvalue())
    of_file = content_of(tmp_path / "a.png")
    assert of_file == content_of(str(tmp_path / "b.png")) == content_of(encoded.getvalue())
    of_pixels = content_of(pixels)
    assert of_pixels == content_of(Image.fromarray(pixels)) == content_of(pixels[::-1][::-1])
    assert len({of_file, of_pixels, content_of(picture(seed=1)), content_of(pixels.reshape(90, 50, 3))}) == 4
    with pytest.raises(MissingFileError):
        content_of(tmp_path / "none.png")


@pytest.mark.parametrize("damage", ["cut", "empty", "another file", "a number", "no metadata"])
def test_a_damaged_file_is_made_anew(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from safetensors.torch import load_file, save_file

    predictor = Predictor(tiny_model())
    cache = TokenCache(tmp_path, predictor)
    cache.encode([picture()])
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    if damage == "no metadata":
        save_file(load_file(path), path)
    else:
        changed = bytearray(whole)
        changed[-5] ^= 255
        parts = {
            "cut": whole[:-100],
            "empty": b"",
            "another file": b"<html>" * 50,
            "a number": bytes(changed),
        }
        path.write_bytes(parts[damage])
    expected = predictor.encode(picture()).embed([BOXES[1]])
    np.testing.assert_allclose(cache.encode([picture()])[0].embed([BOXES[1]]), expected, atol=1e-6)
    assert "is damaged, and is made anew" in caplog.text
    assert path.read_bytes() == whole
    kept = cache.get(content_of(picture()))
    assert kept is not None
    np.testing.assert_allclose(kept.embed([BOXES[1]]), expected, atol=1e-3)


def test_models_do_not_see_each_others(tmp_path: Path) -> None:
    one, other = Predictor(tiny_model("prompt")), Predictor(tiny_model("mean"))
    TokenCache(tmp_path, one).encode([picture()])
    assert TokenCache(tmp_path, other).get(content_of(picture())) is None
    (made,) = TokenCache(tmp_path, other).encode([picture()])
    np.testing.assert_array_equal(made.embed(), other.encode(picture()).embed())
    assert len(files(tmp_path)) == 2


def test_a_model_of_bfloat16(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    predictor = load(tmp_path / "model", "cpu", dtype="bf16")
    fresh = predictor.encode(picture())
    TokenCache(tmp_path / "tokens", predictor).encode([picture()])
    (kept,) = TokenCache(tmp_path / "tokens", predictor).encode([picture()])
    np.testing.assert_allclose(kept.embed([BOXES[1]]), fresh.embed([BOXES[1]]), atol=1e-3)
    np.testing.assert_allclose(kept.embed(), fresh.embed(), atol=1e-6)


@pytest.mark.parametrize("value", [1e6, float("nan")])
def test_tokens_that_half_does_not_hold_are_not_kept(
    value: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    predictor = Predictor(tiny_model())
    image = predictor.encode(picture())
    with torch.inference_mode():
        image.state.image_tokens[0, 0, 0] = value
    TokenCache(tmp_path, predictor).put("00", image)
    assert files(tmp_path) == []
    assert "not kept" in caplog.text


def test_a_full_disk_is_the_systems_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from open_cloc.inference import tokens

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokens, "save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        TokenCache(tmp_path, Predictor(tiny_model())).encode([picture()])
    assert str(caught.value.filename).endswith(".safetensors")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
