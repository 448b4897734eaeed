"""Folders of transformers and of open_clip from strangers: no code, no other folder, no network."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from safetensors.torch import save_file

from open_cloc.cli import main as cli
from open_cloc.errors import UserError
from open_cloc.evaluation.methods import open_method
from open_cloc.inference.predictor import Predictor, load
from open_cloc.labelling.detectors import open_detector
from open_cloc.labelling.recipe import DetectorConfig
from open_cloc.model.create import ModelConfig, build_model
from open_cloc.model.foreign import check_folder
from tests.tiny import picture, tiny_model

CODE = """
import pathlib
pathlib.Path({mark!r}).touch()
from transformers import BertConfig as Mine, BertModel as MyModel, BertTokenizerFast as MyTokenizer
"""


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What a stranger's code leaves behind."""
    return tmp_path / "ran"


@pytest.fixture
def folder(text_tower: Path, tmp_path: Path, mark: Path) -> Path:
    """A model with a text tower of transformers, beside which code lies."""
    spec = f"timm:test_resnet,text={text_tower},embed_dim=24,context_length=16"
    build_model(ModelConfig(spec, image_size=64)).save_pretrained(tmp_path / "model")
    for place in (tmp_path / "model", tmp_path / "model" / "text_tower"):
        (place / "mine.py").write_text(CODE.format(mark=str(mark)))
    return tmp_path / "model"


def edit(path: Path, change: Callable[[Any], None]) -> None:
    """Change a JSON file."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """What a command says that ends with 2 and one line."""
    assert cli.main([str(part) for part in argv]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    return printed.err


AUTO_MAP = {
    "AutoConfig": "mine.Mine",
    "AutoModel": "mine.MyModel",
    "AutoTokenizer": ["mine.MyTokenizer", "mine.MyTokenizer"],
}


def test_code_beside_a_text_tower_does_not_run(
    folder: Path, mark: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not where the library asks, either: somebody may have piped `yes` into it."""
    monkeypatch.setattr("builtins.input", lambda *args: "y")
    tower = folder / "text_tower"
    edit(
        tower / "tokenizer_config.json", lambda config: config.update(auto_map=AUTO_MAP, tokenizer_class="X")
    )
    ask = ("predict", "docs/scene.png", "--phrases", "a dog", "--weights", folder, "--device", "cpu")
    cli.main([str(part) for part in ask])  # taken by the library's own class, or refused
    edit(tower / "config.json", lambda config: config.update(auto_map=AUTO_MAP, model_type="mine"))
    capsys.readouterr()
    assert "transformers cannot open" in refused(capsys, *ask)
    assert not mark.exists()


def test_a_type_that_the_library_knows_needs_no_code(folder: Path, mark: Path) -> None:
    edit(folder / "text_tower" / "config.json", lambda config: config.update(auto_map=AUTO_MAP))
    load(folder, "cpu").encode_text(["a dog"])
    assert not mark.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trust_remote_code": True}, "tokenizer_kwargs of a model take no 'trust_remote_code'"),
        ({"bpe_path": "/etc/passwd"}, "take no 'bpe_path'; expected clean, strip_sep_token, language"),
        ({"cache_dir": "/tmp"}, "take no 'cache_dir'"),
        ({"clean": "everything"}, "unknown tokenizer_kwargs.clean 'everything'"),
        ({"strip_sep_token": 1}, "tokenizer_kwargs.strip_sep_token must be true or false"),
        ({"reduction_mask": "syntax"}, "take no 'reduction_mask'"),
        ([1], "tokenizer_kwargs must be a table"),
    ],
)
def test_options_of_tokenizers_are_a_short_list(
    folder: Path, mark: Path, capsys: pytest.CaptureFixture[str], options: Any, message: str
) -> None:
    edit(
        folder / "config.json",
        lambda config: config["model_cfg"]["text_cfg"].update(tokenizer_kwargs=options),
    )
    ask = ("predict", "docs/scene.png", "--phrases", "a dog", "--weights", folder, "--device", "cpu")
    assert message in refused(capsys, *ask)
    assert not mark.exists()


@pytest.mark.parametrize("key", ["hf_model_name", "hf_tokenizer_name"])
@pytest.mark.parametrize(
    "name", ["..", "../../other", "/etc", "owner/name", "text_tower/..", "./text_tower", 7]
)
def test_text_towers_of_other_places_are_not_opened(
    folder: Path, capsys: pytest.CaptureFixture[str], key: str, name: Any
) -> None:
    edit(folder / "config.json", lambda config: config["model_cfg"]["text_cfg"].update({key: name}))
    with pytest.raises(UserError, match=rf"names .* as its {key}; a model's text tower lies in its own"):
        load(folder, "cpu")
    with pytest.raises(UserError, match="no other is opened"):
        build_model(ModelConfig(f"folder:{folder}"))


def test_a_text_tower_that_is_a_link_is_not_followed(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "text_tower", tmp_path / "elsewhere")
    (folder / "text_tower").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="no other is opened"):
        load(folder, "cpu")


@pytest.mark.parametrize(
    "name", ["hf-hub:owner/name", "hf_hub:owner/name", "local-dir:/tmp", "resnet18.x/../y"]
)
def test_networks_are_timms_own(folder: Path, name: str) -> None:
    edit(folder / "config.json", lambda c: c["model_cfg"]["vision_cfg"].update(timm_model_name=name))
    with pytest.raises(UserError, match="timm has no network"):
        load(folder, "cpu")


# What a config may say, and a part of what is said of it.
REFUSED = {
    "kernel": ({"attn_implementation": "owner/kernel"}, "attn_implementation is 'owner/kernel', which lies"),
    "kernel of a revision": ({"_attn_implementation": "owner/kernel@main:flash"}, "lies outside"),
    "nested": ({"text_config": {"attn_implementation": "owner/kernel"}}, "lies outside"),
    "in a list": ({"parts": [{"name": "../../other"}]}, "lies outside"),
    "backbone": ({"backbone": "resnet50"}, "a model of another place"),
    "backbone of the hub": ({"backbone": "owner/name", "use_timm_backbone": True}, "lies outside"),
    "weights of a backbone": ({"use_pretrained_backbone": True}, "weights of other places are not fetched"),
    "pickle": ({"model_args": {"checkpoint_path": "x.pth"}}, "a file that the library would unpickle"),
    "network": ({"architecture": "hf-hub:owner/name"}, "lies outside"),
    "folder": ({"architecture": "local-dir:/tmp/x"}, "lies outside"),
    "home": ({"vision_tower": "~/model"}, "lies outside"),
    "address": ({"processor": "https://example.org/x"}, "lies outside"),
    "labels": ({"num_labels": 10**9}, "num_labels is 1000000000, and no model has more than 100,000"),
    "layers": ({"num_hidden_layers": 10**7}, "no model has more than 100,000"),
    "negative": ({"decoder_layers": -(10**7)}, "no model has more than 100,000"),
    "depths": ({"depths": [2, 10**7]}, "no model has more than 100,000"),
    "pixels": (
        {"crop_size": {"height": 10**6, "width": 10**6}},
        "no picture has more than 8192 pixels a side",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_reaches_out_of_a_folder_is_named(text_tower: Path, tmp_path: Path, case: str) -> None:
    values, message = REFUSED[case]
    shutil.copytree(text_tower, tmp_path / "tower")
    check_folder(tmp_path / "tower")
    edit(tmp_path / "tower" / "config.json", lambda config: config.update(values))
    with pytest.raises(UserError, match=r"config\.json: ") as caught:
        check_folder(tmp_path / "tower")
    assert message in str(caught.value)


def test_harmless_names_pass(text_tower: Path, tmp_path: Path) -> None:
    """Where a model came from, labels with a stroke, a class that would be its own."""
    shutil.copytree(text_tower, tmp_path / "tower")
    harmless = {"_name_or_path": "/home/me/model", "id2label": {"0": "cup/mug"}, "label2id": {"cup/mug": 0}}
    harmless |= {"auto_map": AUTO_MAP, "architectures": ["BertModel"], "transformers_version": "4.50.0"}
    edit(tmp_path / "tower" / "config.json", lambda config: config.update(harmless))
    stale = {"tokenizer_file": "/root/.cache/huggingface/x/tokenizer.json", "vocab_file": "vocab.txt"}
    edit(tmp_path / "tower" / "tokenizer_config.json", lambda config: config.update(stale))
    check_folder(tmp_path / "tower")


def test_files_of_tokenizers_lie_in_the_folder(text_tower: Path, tmp_path: Path) -> None:
    shutil.copytree(text_tower, tmp_path / "tower")
    (tmp_path / "secret.txt").write_text("a secret")
    for name in (str(tmp_path / "secret.txt"), "../secret.txt"):
        edit(tmp_path / "tower" / "tokenizer_config.json", lambda c, name=name: c.update(vocab_file=name))
        with pytest.raises(UserError, match=r"vocab_file is .*, which lies outside of the folder"):
            check_folder(tmp_path / "tower")


def test_adapters_are_named(text_tower: Path, tmp_path: Path) -> None:
    shutil.copytree(text_tower, tmp_path / "tower")
    (tmp_path / "tower" / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/name"}')
    with pytest.raises(UserError, match="holds an adapter of another model"):
        build_model(ModelConfig(f"timm:test_resnet,text={tmp_path / 'tower'}"))


def test_open_clips_folders_hold_their_own_tokenizer(text_tower: Path, tmp_path: Path) -> None:
    text_cfg = {
        "hf_tokenizer_name": "owner/name",
        "vocab_size": 20,
        "no_causal_mask": True,
        "pool_type": "last",
    }
    text_cfg |= {"context_length": 16, "width": 32, "heads": 2, "layers": 1}
    towers = tmp_path / "towers"
    towers.mkdir()
    own = tiny_model(text_cfg=text_cfg | {"hf_tokenizer_name": str(text_tower)})
    own.clip.state_dict()

    save_file(
        {n: t.contiguous() for n, t in own.clip.state_dict().items()}, towers / "open_clip_model.safetensors"
    )
    config = {"model_cfg": own.model_cfg | {"text_cfg": text_cfg}, "preprocess_cfg": {}}
    (towers / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="names 'owner/name' as its hf_tokenizer_name, which is not opened"):
        build_model(ModelConfig(f"folder:{towers}"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(text_tower / name, towers)
    Predictor(build_model(ModelConfig(f"folder:{towers}"))).encode_text(["a dog"])


def test_local_folders_ask_no_network(
    folder: Path, hf_clip: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*args: Any) -> None:
        mark.touch()
        raise OSError("no network in tests")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    load(folder, "cpu").encode(picture()).find(["a dog"])
    build_model(ModelConfig(f"folder:{folder}"))
    open_method(f"hf_clip:{hf_clip}", device="cpu").embed_texts(["a dog"])
    assert not mark.exists()


def test_weights_of_a_detector_are_no_code(hf_clip: Path, tmp_path: Path, mark: Path) -> None:
    shutil.copytree(hf_clip, tmp_path / "owl")
    (tmp_path / "owl" / "mine.py").write_text(CODE.format(mark=str(mark)))
    code = {"auto_map": {"AutoModelForZeroShotObjectDetection": "mine.MyModel", "AutoConfig": "mine.Mine"}}
    edit(tmp_path / "owl" / "config.json", lambda config: config.update(code, model_type="owlv2"))
    with pytest.raises(UserError):
        open_detector(DetectorConfig(weights=str(tmp_path / "owl")), "cpu")
    assert not mark.exists()
