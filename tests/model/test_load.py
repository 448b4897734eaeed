"""Trained models by folder or hub id: what is passed on to the hub, and weights of 16 bits."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from open_cloc.errors import MissingFileError
from open_cloc.model import hub
from open_cloc.model.create import ModelConfig, build_model
from open_cloc.model.embed import embed_regions, embed_texts
from open_cloc.model.hub import find_folder
from open_cloc.model.load import choose_dtype, load_model
from open_cloc.model.prompter import PrompterConfig

IMAGES = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
BOXES = torch.tensor([[[0.0, 0.0, 0.5, 0.5], [0.2, 0.2, 0.8, 0.9]]] * 2)


@pytest.fixture
def saved(tiny_model_cfg: dict[str, Any], tmp_path: Path) -> Path:
    prompter = PrompterConfig(readout="prompt", box_prior=True, pooled_residual=True)
    build_model(ModelConfig(tiny_model_cfg, prompter=prompter)).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("dtype", ["bf16", torch.bfloat16])
@torch.no_grad()
def test_weights_of_16_bits_give_float32_embeddings(saved: Path, dtype: torch.dtype | str) -> None:
    whole, half = load_model(saved, "cpu"), load_model(saved, "cpu", dtype=dtype)
    assert {p.dtype for p in half.clip.visual.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in half.clip.text.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in half.prompter.parameters()} == {torch.float32}
    assert torch.equal(half.clip.logit_scale, whole.clip.logit_scale)
    for embed in (
        lambda model: embed_texts(model, ["a dog", "two cats"]),
        lambda model: embed_regions(model, model.encode_image(IMAGES), {"box": BOXES}),
        lambda model: model.pool_regions(model.encode_image(IMAGES), BOXES),
        lambda model: F.normalize(model.encode_image(IMAGES).image_features, dim=-1),
    ):
        expected, got = embed(whole), embed(half)
        assert got.dtype == torch.float32
        assert F.cosine_similarity(got, expected, dim=-1).min() > 0.999
        assert not torch.equal(got, expected)


def test_float32_is_what_was_saved(saved: Path) -> None:
    for dtype in (None, "fp32", torch.float32):
        assert {t.dtype for t in load_model(saved, "cpu", dtype=dtype).parameters()} == {torch.float32}
    assert choose_dtype("fp16") == torch.float16
    for wrong in ("float8", torch.int64, "bfloat16"):
        with pytest.raises(ValueError, match=r"unknown dtype '.*'; expected one of fp32, bf16, fp16"):
            choose_dtype(wrong)


def test_the_hub_gets_what_the_user_gave(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        hub, "snapshot_download", lambda *args, **kwargs: asked.append((args, kwargs)) or saved
    )
    load_model("me/model", "cpu", revision="v1", token="secret", cache_dir="/cache")
    texts = [f"text_tower/*.{suffix}" for suffix in ("json", "txt", "model")]
    patterns = ["config.json", "model.safetensors", *texts]  # what is read, and no `state/`
    expected = {"revision": "v1", "token": "secret", "cache_dir": "/cache", "allow_patterns": patterns}
    assert asked == [(("me/model",), expected)]
    assert find_folder("me/model", patterns=["*.json"]) == saved
    assert asked[1][1]["allow_patterns"] == ["*.json"]


def test_what_is_no_model_is_one_sentence(saved: Path, tmp_path: Path) -> None:
    for name, error, message in (
        (saved / "config.json", ValueError, "weights must be a model folder .*; got the file"),
        (
            tmp_path / "nothing",
            FileNotFoundError,
            "no folder .*nothing, and it is no hub id such as owner/name",
        ),
        ("me/nothing", FileNotFoundError, "no folder me/nothing, and the hub says: "),
        ("-me-/nothing", FileNotFoundError, "no folder -me-/nothing, and the hub says: "),
    ):
        with pytest.raises(error, match=message) as caught:
            load_model(name, "cpu")
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"a revision is for models on the hub; got 'v1' with the folder"):
        load_model(saved, "cpu", revision="v1")


def test_a_run_folder_names_the_model_in_it(saved: Path, tmp_path: Path) -> None:
    """The trained one, or else the newest checkpoint."""
    run = tmp_path / "run"
    hint = ""
    for name in ("start", "checkpoints/step_00000003", "checkpoints/step_00000006", "model"):
        shutil.copytree(saved, run / name)
        hint = f"; did you mean {run / name}?" if name != "start" else ""
        with pytest.raises(MissingFileError) as caught:
            load_model(run, "cpu")
        assert str(caught.value) == f"{run} is not a CLOC model: it holds no config.json{hint}"
