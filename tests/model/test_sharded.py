"""Shards that torch lists in a pickle: what the pickle names is not run, and nothing outside is opened."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from open_cloc.cli import main as cli
from open_cloc.errors import UserError
from open_cloc.inference.predictor import load
from open_cloc.model import sharded
from open_cloc.model.interpolate import interpolate
from tests.tiny import tiny_model

TENSORS = {"model.a": torch.arange(6.0).view(2, 3), "model.b": torch.ones(4, dtype=torch.int64)}


class Leaves:
    """Its pickle makes a file when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (str(self.mark),)


def write(folder: Path, tensors: dict[str, Any] = TENSORS) -> Path:
    """A checkpoint's shards."""
    dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(folder / "state"))
    return folder


def change(folder: Path, edit: Callable[[Any], None]) -> Path:
    """Edit the list of a checkpoint's shards."""
    path = folder / "state" / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    edit(metadata)
    path.write_bytes(pickle.dumps(metadata))
    return folder


def test_what_was_written_is_read(tmp_path: Path) -> None:
    found = sharded.read_tensors(write(tmp_path))
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        name: tensor.tolist() for name, tensor in TENSORS.items()
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A whole model folder, in which code lies as well."""
    tiny_model().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "state").mkdir()
    (tmp_path / "model" / "state" / ".metadata").write_bytes(pickle.dumps(Leaves(tmp_path / "ran")))
    return tmp_path / "model"


def test_a_models_own_weights_come_first(model: Path, tmp_path: Path) -> None:
    loaded = load(model, "cpu").model
    for one, other in zip(loaded.parameters(), tiny_model().parameters()):
        assert torch.equal(one, other)
    interpolate(model, model, 0.5, tmp_path / "mixed")
    assert not (tmp_path / "ran").exists()


def test_code_in_the_list_of_shards_is_one_sentence(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "model.safetensors").unlink()
    for read in (load, lambda path: interpolate(path, path, 0.5, tmp_path / "mixed")):
        with pytest.raises(UserError, match=r"\.metadata cannot be read: it names posix\.mknod"):
            read(model)
    assert cli.main(["predict", "docs/scene.png", "--weights", str(model), "--phrases", "a dog"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("open-cloc predict: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "torch.load", "torch.hub.load", "torch.Size.mro"]
)
def test_only_the_parts_of_such_lists_are_made(tmp_path: Path, name: str) -> None:
    module, _, attribute = name.rpartition(".")
    (write(tmp_path) / "state" / ".metadata").write_bytes(f"c{module}\n{attribute}\n.".encode())
    with pytest.raises(UserError, match=f"it names {name}, which is no part of a list of shards"):
        sharded.read_shapes(tmp_path)


def test_objects_beside_the_tensors_are_left_alone(tmp_path: Path) -> None:
    """torch would unpickle them: here nothing asks for them, whatever is called as a weight is."""
    write(tmp_path, TENSORS | {"model.c": Leaves(tmp_path / "ran")})
    (tmp_path / "ran").unlink(missing_ok=True)
    assert sharded.read_shapes(tmp_path).keys() == TENSORS.keys()
    tensors: dict[str, Tensor] = {"model.c": torch.zeros(1)}
    with pytest.raises(UserError, match="cannot be read: "):
        sharded.load_shards(tmp_path, tensors)
    assert not (tmp_path / "ran").exists()


def _outside(metadata: Any) -> None:
    for info in metadata.storage_data.values():
        info.relative_path = f"../{info.relative_path}"


def _larger(metadata: Any) -> None:
    metadata.state_dict_metadata["model.a"].size = torch.Size([10**6, 10**6])


def _negative(metadata: Any) -> None:
    metadata.state_dict_metadata["model.a"].size = torch.Size([-2, -3])


def _no_table(metadata: Any) -> None:
    metadata.storage_data = None


def _no_size(metadata: Any) -> None:
    metadata.state_dict_metadata["model.a"].size = BytesStorageMetadata()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_outside, r"names '\.\./__0_0\.distcp', which lies elsewhere"),
        (_larger, r"names 4,000,000,000,032 bytes, and its files hold \d"),
        (_negative, "names a tensor of a negative size"),
        (_no_table, r"its \.metadata is no list of shards"),
        (_no_size, r"its \.metadata is no list of shards"),
    ],
)
def test_lists_that_do_not_fit_their_files_are_refused(
    tmp_path: Path, edit: Callable[[Any], None], message: str
) -> None:
    shutil.copy(write(tmp_path) / "state" / "__0_0.distcp", tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        sharded.read_tensors(change(tmp_path, edit))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"nonsense", b"N.", pickle.dumps({"a": 1}), b"\x80\x05" * 1000],
    ids=["empty", "text", "none", "table", "no end"],
)
def test_what_is_no_list_is_refused(tmp_path: Path, content: bytes) -> None:
    (write(tmp_path) / "state" / ".metadata").write_bytes(content)
    with pytest.raises(UserError, match="state cannot be read: "):
        sharded.read_tensors(tmp_path)


def test_shards_are_read_as_plain_tensors(tmp_path: Path) -> None:
    """A shard is torch's own file, in which a pickle lies as well."""
    shard = write(tmp_path) / "state" / "__0_0.distcp"
    evil = io.BytesIO()
    torch.save(Leaves(tmp_path / "ran"), evil)

    def point_there(metadata: Any) -> None:
        for info in metadata.storage_data.values():
            info.offset, info.length = 0, len(evil.getvalue())

    shard.write_bytes(evil.getvalue() + bytes(1000))
    with pytest.raises(UserError, match="cannot be read: "):
        sharded.read_tensors(change(tmp_path, point_there))
    assert not (tmp_path / "ran").exists()
