"""Find a stage's checkpoint, tell exactly which one it is, and open it."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from open_cloc.errors import MissingFileError, UserError
from open_cloc.files import read_json
from open_cloc.model.foreign import open_model
from open_cloc.model.hub import find_folder

# Suffixes of all files that a model is made of.
SUFFIXES = {".json", ".safetensors", ".txt", ".model", ".jinja"}
# And of a checkpoint of training, which nobody fetches from the hub.
SHARDS = {".distcp"}


class Checkpoint(NamedTuple):
    """A model's files on this machine.

    Attributes:
        folder: Folder that holds them.
        revision: Commit on the hub; None for a folder of one's own.
        sha256: Hash of the names and contents of all of them.
    """

    folder: Path
    revision: str | None
    sha256: str


def find_checkpoint(weights: str, revision: str | None = None) -> Checkpoint:
    """The files of a folder, or of a hub repository that is fetched unless it is in the cache.

    Args:
        weights: Folder or hub id.
        revision: Branch, tag or commit on the hub; None takes its default branch.

    Raises:
        MissingFileError: If there is neither.
        UserError: If a revision of a folder is asked for.
    """
    patterns = [f"*{suffix}" for suffix in SUFFIXES]
    folder = find_folder(weights, revision=revision, patterns=patterns)
    commit = None if Path(weights).is_dir() else folder.name
    if not (folder / "config.json").is_file():
        raise MissingFileError(f"{weights} is not a model: it holds no config.json")
    return Checkpoint(folder, commit, _sha256(folder.resolve()))


@lru_cache(maxsize=8)
def _sha256(folder: Path) -> str:
    """Of the names and contents of a model's files."""
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in SUFFIXES | SHARDS and path.is_file():
            whole.update(f"{path.relative_to(folder).as_posix()} {_file_sha256(path)}\n".encode())
    return whole.hexdigest()


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def read_model_type(checkpoint: Checkpoint) -> str:
    """transformers' name of the architecture; `cloc` for a model of ours.

    Raises:
        UserError: If the config is not JSON or names none.
    """
    path = checkpoint.folder / "config.json"
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path} must be a table of keys and values; got {config!r:.60}")
    if "model_cfg" in config and "prompter" in config:
        return "cloc"
    if not isinstance(config.get("model_type"), str):
        raise UserError(f"{path} names no model_type")
    return config["model_type"]


def load_safetensors(auto_model: Any, checkpoint: Checkpoint, without: str | None = None) -> Any:
    """Open a model of transformers, from safetensors; no code of the repository runs.

    Args:
        auto_model: Class of the library that finds the right one.
        checkpoint: Files of the model.
        without: Part of the names of tensors that may be missing, as nothing needs them.

    Raises:
        MissingFileError: If there are no safetensors.
        UserError: If weights are missing, which the library would draw at random, or absurd, or the configs
            ask for more than the files hold, or for code or other folders.
    """
    folder = checkpoint.folder
    if not any(folder.glob("*.safetensors")):
        raise MissingFileError(
            f"{folder} holds no .safetensors; other weights are not opened: they may run code"
        )
    model, info = open_model(auto_model, folder, use_safetensors=True, output_loading_info=True)
    missing = sorted(name for name in info["missing_keys"] if without is None or without not in name)
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} tensors of its model, such as {missing[0]}")
    return model
