"""A language model that sees, saved and opened again; folders that are not one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from open_cloc.errors import ExistingFileError, MissingFileError, UserError
from open_cloc.mllm.language_model import open_language_model
from open_cloc.mllm.model import MLLMConfig, RegionLM, load
from open_cloc.mllm.small import SmallLM, small_language_model
from tests.tiny import picture, tiny_model

QUESTION, PLACES = "what is in <region> and where is <region> ?", [[5, 5, 40, 30], [45, 25]]


def build() -> RegionLM:
    lm, tokenizer = small_language_model(["what is in and where is ? [0 1 2]"], SmallLM(2, 32, 2, 48))
    torch.manual_seed(1)
    return RegionLM(
        tiny_model(), lm, tokenizer, MLLMConfig(bins=7, refer="both", template="see <image> {question}")
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[RegionLM, Path]:
    model, folder = build(), tmp_path_factory.mktemp("mllm") / "model"
    model.save_pretrained(folder)
    return model.eval(), folder


@pytest.fixture
def copied(saved: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved[1], tmp_path / "model"))


def test_it_answers_as_before(saved: Any) -> None:
    model, folder = saved
    back = load(folder, "cpu")
    assert back.config == model.config
    assert not back.training
    own, other = model.state_dict(), back.state_dict()
    assert own.keys() == other.keys()
    assert all(torch.equal(own[name], other[name]) for name in own)
    assert back.ask(picture(), QUESTION, PLACES) == model.ask(picture(), QUESTION, PLACES)


def test_nothing_but_safetensors_and_text(saved: Any) -> None:
    files = [path for path in saved[1].rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors", ".md"}
    assert sum(path.suffix == ".safetensors" for path in files) == 3


def test_a_tower_that_lies_elsewhere(saved: Any, tmp_path: Path) -> None:
    model, folder = saved
    model.save_pretrained(tmp_path / "light", tower=str(folder / "tower"))
    assert not (tmp_path / "light" / "tower").exists()
    back = load(tmp_path / "light", "cpu")
    assert back.ask(picture(), QUESTION, PLACES) == model.ask(picture(), QUESTION, PLACES)


def test_nothing_is_overwritten(saved: Any) -> None:
    with pytest.raises(ExistingFileError, match="must be new or empty"):
        saved[0].save_pretrained(saved[1])


def test_folders_that_are_none(tmp_path: Path, copied: Path) -> None:
    with pytest.raises(MissingFileError, match=r"it holds no mllm\.json"):
        load(tmp_path / "nothing", "cpu")
    (copied / "projectors.safetensors").unlink()
    with pytest.raises(MissingFileError, match="projectors"):
        load(copied, "cpu")


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "expected tower and config"),
        ({"tower": "tower"}, "expected tower and config"),
        ({"tower": 3, "config": {}}, "must name its tower as a text"),
        ({"tower": "tower", "config": {"bins": "x"}}, "bins must be a whole number"),
        ({"tower": "tower", "config": {"colour": 1}}, "unknown key 'colour'"),
        ({"tower": "no/such folder", "config": {}}, "weights not found"),
        ({"tower": "tower", "config": {"places": False}}, "weights of another architecture"),
    ],
)
def test_configs_of_strangers(copied: Path, document: Any, said: str) -> None:
    (copied / "mllm.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=said):
        load(copied, "cpu")


def test_projectors_of_another_width(copied: Path) -> None:
    path = copied / "projectors.safetensors"
    state = load_file(path)
    save_file({name: tensor[:4] for name, tensor in state.items()}, path)
    with pytest.raises(UserError, match="weights of another architecture"):
        load(copied, "cpu")


def test_a_language_model_that_lacks_weights(copied: Path) -> None:
    """transformers would fill them in at random."""
    path = copied / "lm" / "model.safetensors"
    state = load_file(path)
    kept = {
        name: tensor for name, tensor in state.items() if not name.endswith("layers.1.mlp.up_proj.weight")
    }
    assert len(kept) == len(state) - 1
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"is of another shape than its config: .*up_proj"):
        open_language_model(copied / "lm")


def test_pickles_are_not_opened(copied: Path) -> None:
    path = copied / "lm" / "model.safetensors"
    torch.save(load_file(path), copied / "lm" / "pytorch_model.bin")
    path.unlink()
    with pytest.raises(UserError):
        open_language_model(copied / "lm")


def test_no_code_of_the_folder_runs(copied: Path) -> None:
    path = copied / "lm" / "config.json"
    config = json.loads(path.read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}}
    path.write_text(json.dumps(config))
    (copied / "lm" / "mine.py").write_text(f"open({str(copied / 'ran')!r}, 'w').close()")
    with pytest.raises(UserError, match="cannot be opened"):
        open_language_model(copied / "lm")
    assert not (copied / "ran").exists()


def test_the_type_of_its_weights(tmp_path: Path) -> None:
    model = build()
    model.lm.to(torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    assert open_language_model(tmp_path / "half" / "lm", torch.float32)[0].dtype == torch.float32
    back = load(tmp_path / "half", "cpu")
    assert back.lm.dtype == torch.bfloat16
    assert back.project_image[1].weight.dtype == torch.float32
    assert isinstance(back.ask(picture(), QUESTION, PLACES).text, str)


def test_no_language_model_there(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no language model at"):
        open_language_model(tmp_path / "nothing")
