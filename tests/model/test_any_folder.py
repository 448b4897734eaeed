"""Model folders of any shape: what a stranger's config says is taken or refused in one sentence, never more.

Hypothesis changes one good folder in one place at a time, or writes any JSON in the place of a file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from open_cloc.config import from_dict
from open_cloc.errors import RunError, UserError
from open_cloc.evaluation.methods import open_method
from open_cloc.inference.predictor import Predictor, load
from open_cloc.model.create import ModelConfig, build_model
from open_cloc.training.recipe import Recipe
from open_cloc.training.recipes import scenes_cloc
from tests.tiny import picture, tiny_model

# One after another in a minute; `--hypothesis-seed=random` and more examples for a longer hunt.
few = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)

NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 2, 3, 7, 10**9, -(10**9), 2**31, 2**63, 10**30, 0.5, -0.5, 1e-9, 1e30, 1e308]),
    st.integers(-5, 300),
    st.floats(allow_nan=True, allow_infinity=True),
)
WORDS = st.one_of(
    st.sampled_from(["", "..", "/etc", "text_tower", "owner/name", "none", "tok", "avg", "eos", "max", "\0"]),
    st.text(max_size=8),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, WORDS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(WORDS | st.just("width"), inner, max_size=3)
    ),
    max_leaves=6,
)


def places_in(document: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value in a document."""
    yield at
    if isinstance(document, dict):
        for key, value in document.items():
            yield from places_in(value, (*at, key))


def replaced(document: Any, at: tuple[Any, ...], value: Any) -> Any:
    """A document in which the value at a path is another one."""
    if not at or not isinstance(document, dict):
        return value
    return {**document, at[0]: replaced(document.get(at[0]), at[1:], value)}


@st.composite
def changed(draw: st.DrawFn, document: Any, extra: tuple[tuple[Any, ...], ...] = ()) -> Any:
    """A document with up to two values changed; `extra` are places of keys that it lacks."""
    places = [*places_in(document), *extra]
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.sampled_from(places))
        document = replaced(document, at, draw(VALUES))
    return document


def survive(action: Callable[[], Any]) -> None:
    """Do what a user would, where no error but ours may come, in one line."""
    said = ""
    try:
        action()
    except (UserError, RunError) as error:
        said = str(error)
    assert "\n" not in said.strip()


def ask(predictor: Predictor) -> None:
    """All that a model can be asked."""
    image = predictor.encode(picture())
    image.embed([[0, 0, 10, 20]])
    image.classify(["a dog", "two cats"], [[0, 0, 10, 20]])
    image.find(["a dog"])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("any") / "model"
    tiny_model().save_pretrained(folder)
    return folder


CONFIG = {
    "model_cfg": tiny_model().model_cfg,
    **{name: tiny_model()._hub_mixin_config[name] for name in ("prompter", "preprocess")},
}
CONFIG = json.loads(json.dumps(CONFIG))
VISION = (
    *("image_size", "ls_init_value", "pool_type", "attentional_pool", "norm_kwargs", "act_kwargs", "qk_norm"),
    *("timm_model_name", "timm_pool", "mlp_ratio", "patch_dropout", "pos_embed_type", "final_ln_after_pool"),
)
TEXT = (
    *("vocab_size", "pool_type", "eos_id", "pad_id", "embed_cls", "hf_model_name", "hf_tokenizer_name"),
    *("tokenizer_kwargs", "tokenizer_mode", "mlp_ratio", "proj_type", "norm_kwargs", "no_causal_mask"),
)
FURTHER = (
    *(("model_cfg", name) for name in ("quick_gelu", "init_logit_bias", "init_logit_scale", "cast_dtype")),
    *(("model_cfg", "vision_cfg", name) for name in VISION),
    *(("model_cfg", "text_cfg", name) for name in TEXT),
)


@few
@given(config=changed(CONFIG, FURTHER))
def test_any_config_of_a_model(saved: Path, config: Any) -> None:
    (saved / "config.json").write_text(json.dumps(config))
    survive(lambda: ask(load(saved, "cpu")))
    survive(lambda: build_model(ModelConfig(f"folder:{saved}")))


@few
@given(text=st.one_of(VALUES.map(json.dumps), st.text(max_size=30), st.just("[" * 10**5)))
def test_any_file_in_the_place_of_a_config(saved: Path, text: str) -> None:
    (saved / "config.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    survive(lambda: load(saved, "cpu"))


@few
@given(place=st.integers(0, 2000), values=st.binary(min_size=1, max_size=8))
def test_any_bytes_in_the_header_of_weights(saved: Path, place: int, values: bytes) -> None:
    (saved / "config.json").write_text(json.dumps(CONFIG))
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:place] + values + whole[place + len(values) :])
        survive(lambda: load(saved, "cpu"))
    finally:
        path.write_bytes(whole)


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in open_clip's layout."""
    folder = tmp_path_factory.mktemp("any") / "open_clip"
    folder.mkdir()
    torch.save(tiny_model().clip.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder


OPEN_CLIP = {
    "model_cfg": CONFIG["model_cfg"],
    "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"},
}


@few
@given(config=changed(OPEN_CLIP, FURTHER))
def test_any_config_of_open_clip(towers: Path, config: Any) -> None:
    (towers / "open_clip_config.json").write_text(json.dumps(config))
    survive(lambda: ask(Predictor(build_model(ModelConfig(f"folder:{towers}")))))


@pytest.fixture(scope="module")
def with_text_tower(text_tower: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose text tower is of transformers."""
    folder = tmp_path_factory.mktemp("any") / "with_text_tower"
    spec = f"timm:test_resnet,text={text_tower},embed_dim=24,context_length=16"
    build_model(ModelConfig(spec, image_size=64)).save_pretrained(folder)
    return folder


@settings(few, max_examples=20)  # transformers takes its time
@given(data=st.data())
def test_any_config_of_a_text_tower(with_text_tower: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["config.json", "tokenizer_config.json"]))
    path = with_text_tower / "text_tower" / name
    whole = path.read_text()
    extra = (("auto_map",), ("attn_implementation",), ("tokenizer_class",), ("num_labels",), ("vocab_file",))
    try:
        path.write_text(json.dumps(data.draw(changed(json.loads(whole), extra))))
        survive(lambda: ask(load(with_text_tower, "cpu")))
    finally:
        path.write_text(whole)


@settings(few, max_examples=20)  # transformers takes its time
@given(data=st.data())
def test_any_config_of_a_foreign_clip(
    hf_clip: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("any") / "clip"
    shutil.copytree(hf_clip, folder)
    name = data.draw(st.sampled_from(["config.json", "preprocessor_config.json", "tokenizer_config.json"]))
    extra = (("auto_map",), ("quantization_config",), ("text_config", "num_labels"), ("processor_class",))
    config = data.draw(changed(json.loads((folder / name).read_text()), extra))
    (folder / name).write_text(json.dumps(config))
    survive(lambda: open_method(f"hf_clip:{folder}", device="cpu").embed_texts(["a dog"]))
    shutil.rmtree(folder)


RECIPE = json.loads(json.dumps(asdict(scenes_cloc())))


@settings(few, max_examples=300)
@given(values=changed(RECIPE))
def test_any_recipe_of_json(values: Any) -> None:
    survive(lambda: from_dict(Recipe, values, "recipe"))


def test_the_good_folders_are_taken(saved: Path, towers: Path, with_text_tower: Path) -> None:
    """Else all of the above would survive anything."""
    (saved / "config.json").write_text(json.dumps(CONFIG))
    (towers / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP))
    for predictor in (
        load(saved, "cpu"),
        Predictor(build_model(ModelConfig(f"folder:{towers}"))),
        load(with_text_tower, "cpu"),
    ):
        assert np.isfinite(predictor.encode(picture()).embed()).all()
    assert from_dict(Recipe, RECIPE, "recipe") == scenes_cloc()
