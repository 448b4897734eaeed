"""Models no larger than their files, headers that lie, and weights that no training leaves behind."""

from __future__ import annotations

import json
import math
import resource
import struct
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from open_cloc.cli import main as cli
from open_cloc.errors import MissingFileError, UserError
from open_cloc.inference.predictor import load
from open_cloc.model.create import ModelConfig, build_model
from open_cloc.model.limits import no_larger_than, read_header
from open_cloc.model.weights import read_state
from tests.tiny import tiny_model

PREDICT = ["predict", "docs/scene.png", "--phrases", "a dog", "--json", "--device", "cpu"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("limits") / "model"
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A model folder to be damaged."""
    target = tmp_path / "model"
    target.mkdir()
    for file in saved.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def edit_config(folder: Path, **changes: Any) -> None:
    """Change values of a config; `a__b` is key b of table a."""
    config = json.loads((folder / "config.json").read_text())
    for place, value in changes.items():
        *tables, key = place.split("__")
        table = config
        for name in tables:
            table = table[name]
        table[key] = value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Two gigabytes more than there are in use, so that no test can take the machine's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2 * 2**30, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


LARGE = {
    "wide images": {"model_cfg__vision_cfg__width": 64 * 10**7},
    "wide texts": {"model_cfg__text_cfg__width": 2 * 10**8},
    "many layers": {"model_cfg__vision_cfg__layers": 10**6},
    "many layers of texts": {"model_cfg__text_cfg__layers": 10**6},
    "layers without end": {"model_cfg__text_cfg__layers": 10**18},
    "many words": {"model_cfg__text_cfg__vocab_size": 10**10},
    "long texts": {"model_cfg__text_cfg__context_length": 10**6},
    "large space": {"model_cfg__embed_dim": 10**9},
    "beyond any number": {"model_cfg__embed_dim": 10**30},
    "large picture": {"model_cfg__vision_cfg__image_size": 10**7},
    "large canvas": {"preprocess__image_size": [10**6, 10**6]},
    "wide prompter": {"prompter__width": 10**9},
    "hidden layer": {"prompter__mlp_ratio": 1e9},
    "resnet": {"model_cfg__vision_cfg__layers": [1, 1, 1, 10**6]},
    "another timm network": {"model_cfg__vision_cfg__timm_model_name": "vit_giant_patch14_clip_224"},
}


@pytest.mark.parametrize("case", LARGE)
@pytest.mark.parametrize("through", ["load", "folder"])
def test_a_config_that_asks_for_more_than_its_file_holds(
    folder: Path, little_memory: None, case: str, through: str
) -> None:
    edit_config(folder, **LARGE[case])
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        load(folder, "cpu") if through == "load" else build_model(ModelConfig(f"folder:{folder}"))
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 20


def test_modules_of_other_threads_are_not_counted() -> None:
    def build() -> None:
        torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(500))

    with no_larger_than([torch.Size([1])], "x"):
        thread = threading.Thread(target=build)
        thread.start()
        thread.join()
        with pytest.raises(UserError, match="x: its config asks for a larger model than its weights"):
            build()
    build()


# --- files ----------------------------------------------------------------------------------------


def header(tensors: dict[str, Any], data: int = 0) -> bytes:
    """A safetensors file with a header of one's own, and so many bytes behind it."""
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def entry(shape: list[int], start: int, end: int, kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


FILES = {
    "nothing": b"",
    "no header": bytes(7),
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "a pickle": b"\x80\x02}q\x00.",
    "a page": b"<!DOCTYPE html><html>not found</html>",
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1000\n",
    "a giant header": struct.pack("<Q", 2**60),
    "a header past the end": struct.pack("<Q", 1000) + b"{}",
    "no table": header([1]),  # type: ignore[arg-type]
    "more than there is": header({"a": entry([1000], 0, 4000)}, 400),
    "less than there is": header({"a": entry([1], 0, 4)}, 400),
    "another size": header({"a": entry([1000], 0, 4)}, 4),
    "a giant tensor": header({"a": entry([2**40, 2**40], 0, 4)}, 4),
    "one over another": header({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, 12),
    "backwards": header({"a": entry([1], 4, 0)}, 4),
    "another type": header({"a": entry([1], 0, 4, "F31")}, 4),
}


@pytest.mark.parametrize("case", FILES)
def test_what_is_no_safetensors_file_is_one_sentence(
    folder: Path, little_memory: None, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(FILES[case])
    for read in (read_header, read_state):
        with pytest.raises(UserError, match=r"model\.safetensors is not a whole safetensors file: "):
            read(path)
    assert cli.main([*PREDICT, "--weights", str(folder)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1


def test_a_cut_file_is_refused_at_any_place(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for kept in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(UserError, match="not a whole safetensors file"):
            read_header(path)
    path.unlink()
    with pytest.raises(MissingFileError, match="weights not found"):
        read_header(path)


def test_weights_that_may_not_be_read_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run as a user who may read everything."""
    real = Path.open

    def refuse(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.suffix == ".safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match=r"model\.safetensors"):
        read_header(folder / "model.safetensors")


def test_types_that_are_no_weights_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(header({"a": entry([1], 0, 8, "C64")}, 8))
    # Old versions of safetensors do not know this one themselves.
    with pytest.raises(UserError, match=r"holds a as C64; expected one of|not a whole safetensors"):
        read_header(path)


def test_a_packed_checkpoint_is_refused(tmp_path: Path) -> None:
    """Of one's own, or from elsewhere: a thousandth of what it unpacks to."""
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "plain.pt")
    assert read_state(tmp_path / "plain.pt")["a"].shape == (10**6,)
    target = zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, target as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert (tmp_path / "packed.pt").stat().st_size < 10**5
    with pytest.raises(UserError, match=r"packed\.pt is not .*: it is packed, to 4,\d\d\d,\d\d\d bytes"):
        read_state(tmp_path / "packed.pt")


# --- weights --------------------------------------------------------------------------------------


def _set(name: str, value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(state: dict[str, torch.Tensor]) -> None:
        state[name].view(-1)[-1] = value

    return change


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("clip.visual.proj", math.nan, "clip.visual.proj holds nan; expected numbers within 1e"),
        ("clip.visual.proj", math.inf, "clip.visual.proj holds inf"),
        ("prompter.project.weight", -math.inf, "prompter.project.weight holds -inf"),
        ("clip.text.ln_final.weight", 3e6, r"clip\.text\.ln_final\.weight holds 3e\+06"),
        ("clip.text.ln_final.weight", -3e6, r"clip\.text\.ln_final\.weight holds -3e\+06"),
        ("clip.logit_scale", 12.0, r"clip\.logit_scale holds 12; expected numbers within 9\.21"),
        ("clip.logit_scale", -99.0, r"clip\.logit_scale holds -99"),
        ("clip.logit_scale", math.nan, r"clip\.logit_scale holds nan"),
    ],
)
def test_absurd_weights_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, value: float, message: str
) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    _set(name, value)(state)
    save_file(state, path)
    with pytest.raises(UserError, match=message):
        load(folder, "cpu")
    assert cli.main([*PREDICT, "--weights", str(folder)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_absurd_weights_of_open_clip_are_named(folder: Path, tmp_path: Path, kind: str) -> None:
    model = tiny_model()
    state = {name: tensor.clone() for name, tensor in model.clip.state_dict().items()}
    state["visual.proj"][0, 0] = math.nan
    config = {"model_cfg": model.model_cfg, "preprocess_cfg": {}}
    towers = tmp_path / "open_clip"
    towers.mkdir()
    (towers / "open_clip_config.json").write_text(json.dumps(config))
    if kind == "bin":
        torch.save(state, towers / "open_clip_pytorch_model.bin")
    else:
        save_file(state, towers / "open_clip_model.safetensors")
    with pytest.raises(UserError, match=r"visual\.proj holds nan"):
        build_model(ModelConfig(f"folder:{towers}"))


def test_sharp_but_sound_models_are_taken(folder: Path) -> None:
    """SigLIP's scale is 118; weights of some thousands are odd but good."""
    path = folder / "model.safetensors"
    state = load_file(path)
    _set("clip.logit_scale", math.log(118))(state)
    _set("clip.visual.proj", 5e3)(state)
    save_file(state, path)
    assert load(folder, "cpu").model.clip.logit_scale.item() == pytest.approx(math.log(118))


def test_weights_that_overflow_give_no_answer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each of them is sound by itself."""
    path = folder / "model.safetensors"
    state = load_file(path)
    for name, tensor in state.items():
        if name.startswith("clip.visual.") and tensor.ndim:
            tensor.fill_(9e5)
    save_file(state, path)
    assert cli.main([*PREDICT, "--weights", str(folder)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "the model gives no numbers for the picture" in printed.err
    assert printed.err.count("\n") == 1


def test_a_tokenizer_of_another_tower_is_one_sentence(tmp_path: Path) -> None:
    model = tiny_model(
        text_cfg={"width": 32, "heads": 2, "layers": 1, "context_length": 16, "vocab_size": 99}
    )
    model.save_pretrained(tmp_path / "model")
    predictor = load(tmp_path / "model", "cpu")
    with pytest.raises(UserError, match=r"the text 'a dog' has token 49\d\d\d .* its text tower knows 99"):
        predictor.encode_text(["a dog"])
