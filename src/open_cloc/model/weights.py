"""Weights on disk and on the hub: strict loading, everything that changes numbers in `config.json`.

A model folder holds `config.json`, `model.safetensors` and, for a Hugging Face text tower, `text_tower/` with
its config and tokenizer, so that it loads offline and on another machine.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from open_cloc.errors import MissingFileError, UserError
from open_cloc.files import read_json, write_text, write_whole
from open_cloc.model import sharded
from open_cloc.model.adapters import merged, merged_shapes
from open_cloc.model.limits import no_larger_than, read_header, require_sound_weights
from open_cloc.model.old_names import by_names_of_today, cleaning_of_old

CONFIG_NAME = "config.json"
CONFIG_KEYS = ("model_cfg", "prompter", "preprocess", "texts")
WEIGHTS_NAME = "model.safetensors"
# Holds config and tokenizer of a Hugging Face text tower.
TEXT_TOWER_FOLDER = "text_tower"
# All that is read of a model folder; nothing else is fetched from the hub.
FILES = [
    CONFIG_NAME,
    WEIGHTS_NAME,
    *(f"{TEXT_TOWER_FOLDER}/*.{suffix}" for suffix in ("json", "txt", "model")),
]

Model = TypeVar("Model", bound=nn.Module)


class Savable(Protocol):
    """What is needed of a model to write its folder; a CLOC has it."""

    clip: Any
    tokenize: Any
    _hub_mixin_config: Any

    def state_dict(self) -> dict[str, Tensor]: ...


def save_folder(model: Savable, folder: Path) -> None:
    """Write weights, config and text tower files into a folder.

    The mixin's `save_pretrained` calls this, then writes the model card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # A folder with a config has whole weights: they come first.
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in merged(model.state_dict()).items()}
    with write_whole(folder / WEIGHTS_NAME) as part:
        try:
            save_file(state, part, metadata={"format": "pt"})
        except SafetensorError as error:
            raise _of_the_system(error) from error
    save_config(model, folder)


def _of_the_system(error: SafetensorError) -> Exception:
    """What the system said, such as that a disk is full, which safetensors passes on as a text."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else error


def save_config(model: Savable, folder: Path) -> None:
    """Write all of a model's folder but its weights."""
    config: Any = deepcopy(model._hub_mixin_config)
    text_cfg = config["model_cfg"]["text_cfg"]
    target = folder / TEXT_TOWER_FOLDER
    if text_cfg.get("hf_model_name"):
        model.clip.text.config.save_pretrained(target)
        text_cfg["hf_model_name"] = TEXT_TOWER_FOLDER
    if text_cfg.get("hf_tokenizer_name"):
        model.tokenize.raw.tokenizer.save_pretrained(target)
        text_cfg["hf_tokenizer_name"] = TEXT_TOWER_FOLDER
    write_text(folder / CONFIG_NAME, json.dumps(config, indent=2, sort_keys=True) + "\n")


def load_folder(
    build: Callable[..., Model],
    shapes_of: Callable[..., dict[str, torch.Size]],
    folder: Path,
    map_location: str = "cpu",
) -> Model:
    """Build the model of a folder, with its weights; the mixin's `from_pretrained` calls this.

    Args:
        build: Makes a model of a config's tables.
        shapes_of: Says which tensors it would have, without memory.
        folder: The model's folder.
        map_location: Device.

    Raises:
        MissingFileError: If the folder lacks a config or weights.
        UserError: If the weights are of another architecture, damaged or absurd.
    """
    config = read_config(folder)
    require_fit(shapes_of, config, folder)
    model = build(**config)
    load_strictly(model, read_folder_state(folder), str(folder))
    return model.to(map_location).eval()


def require_fit(
    shapes_of: Callable[..., dict[str, torch.Size]], config: Mapping[str, Any], folder: Path
) -> None:
    """Compare what a folder's config asks for with its weights, before memory is taken for either.

    Raises:
        MissingFileError: If there are no weights.
        UserError: If they are of another architecture.
    """
    given = read_folder_shapes(folder)
    with no_larger_than(given.values(), str(folder)), torch.device("meta"):
        own = shapes_of(**config)
    require_same_shapes(own, given, str(folder))


def is_checkpoint(folder: Path) -> bool:
    """Whether weights lie in shards, as training writes them; never where a model's own file is."""
    return (folder / sharded.SHARDS_FOLDER).is_dir() and not (folder / WEIGHTS_NAME).exists()


def read_folder_shapes(folder: Path) -> dict[str, torch.Size]:
    """Shapes of the tensors that `read_folder_state` reads, which are not read; errors as there."""
    if is_checkpoint(folder):
        return merged_shapes(sharded.of_model(sharded.read_shapes(folder)))
    return by_names_of_today(read_header(folder / WEIGHTS_NAME))


def read_folder_state(folder: Path) -> dict[str, Tensor]:
    """Weights of a model folder, or of a training checkpoint, which any command takes in its place.

    By the names that they have today, whichever version wrote them.

    Raises:
        MissingFileError: If there are none.
        UserError: If they are cut short.
    """
    if is_checkpoint(folder):
        return sharded.read_weights(folder)
    return by_names_of_today(read_state(folder / WEIGHTS_NAME))


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's config, with the text tower's path resolved.

    Raises:
        MissingFileError: If there is no `config.json`.
        UserError: If it is not a CLOC config, or its text tower lies outside of the folder.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        # A run folder has the trained model in it, and before that checkpoints, newest last.
        inner = [*sorted(folder.glob(f"checkpoints/*/{CONFIG_NAME}")), *folder.glob(f"model/{CONFIG_NAME}")]
        hint = f"; did you mean {inner[-1].parent}?" if inner else ""
        raise MissingFileError(f"{folder} is not a CLOC model: it holds no {CONFIG_NAME}{hint}")
    config = read_json(path)
    if not isinstance(config, dict) or set(config) | {"texts"} != {*CONFIG_KEYS}:
        found = sorted(config) if isinstance(config, dict) else type(config).__name__
        raise UserError(f"{path} is not a CLOC config: expected {', '.join(CONFIG_KEYS)}; got {found!s:.200}")
    if "texts" not in config:
        config["texts"] = cleaning_of_old(folder)
    for name, part in config.items():
        if not isinstance(part, dict):
            raise UserError(f"{path} is not a CLOC config: expected a table {name}; got {part!r:.60}")
    text_cfg = config["model_cfg"].get("text_cfg")
    if not isinstance(text_cfg, dict):
        raise UserError(
            f"{path} is not a CLOC config: expected a table model_cfg.text_cfg; got {text_cfg!r:.60}"
        )
    for name in ("hf_model_name", "hf_tokenizer_name"):
        if text_cfg.get(name):
            text_cfg[name] = _text_tower(folder, name, text_cfg[name])
    return config


def _text_tower(folder: Path, key: str, name: Any) -> str:
    """The folder of a text tower that a config names: the model's own, or none."""
    own = folder / TEXT_TOWER_FOLDER
    if name != TEXT_TOWER_FOLDER or not own.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"{folder / CONFIG_NAME} names {name!r:.60} as its {key}; a model's text tower lies in its own "
            f"folder {TEXT_TOWER_FOLDER!r}, and no other is opened"
        )
    return str(own)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """A state dict of a safetensors file, or of a torch checkpoint (never unpickling code).

    Raises:
        MissingFileError: If there is no such file.
        UserError: If it is not one of these, or is cut short.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"weights not found: {path}")
    if path.suffix == ".safetensors":
        read_header(path)
        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is not a whole safetensors file: {error}") from error
    _require_unpacked(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    # torch raises half a dozen types for broken files.
    except Exception as error:
        raise UserError(f"{path} is not a torch checkpoint of plain tensors: {error}") from error
    if isinstance(state, dict) and "state_dict" in state:
        state = state["state_dict"]
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(value, Tensor) for value in state.values())
    ):
        raise UserError(f"{path} holds no state dict")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _require_unpacked(path: Path) -> None:
    """torch stores its files as they are; one that is packed may hold a thousand times its size."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as packed:
        size = sum(member.file_size for member in packed.infolist())
    if size > path.stat().st_size:
        raise UserError(f"{path} is not a torch checkpoint of plain tensors: it is packed, to {size:,} bytes")


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load every tensor of a state dict, or say which first one does not fit.

    Raises:
        UserError: If names or shapes differ, or a tensor is no trained weight.
    """
    require_same_shapes(_shapes(module.state_dict()), _shapes(state), where)
    require_sound_weights(state, where)
    module.load_state_dict(dict(state))


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def require_same_shapes(own: Mapping[str, torch.Size], given: Mapping[str, torch.Size], where: str) -> None:
    """Say which tensor is the first that does not fit.

    Raises:
        UserError: If names or shapes differ.
    """
    missing, unexpected = sorted(set(own) - set(given)), sorted(set(given) - set(own))
    if missing or unexpected:
        lacks = f"lack {len(missing)} tensors such as {missing[0]!r}" if missing else ""
        extra = f"hold {len(unexpected)} others such as {unexpected[0]!r}" if unexpected else ""
        raise UserError(
            f"weights of another architecture: {where} {' and '.join(filter(None, [lacks, extra]))}"
        )
    for name, shape in own.items():
        if shape != given[name]:
            raise UserError(
                f"weights of another architecture: {where} has {name} of shape {tuple(given[name])}, "
                f"expected {tuple(shape)}"
            )


def load_in_order(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict whose names differ but whose tensors come in the same order with the same shapes.

    For conversions of one architecture between libraries; batch counters are left aside.

    Raises:
        UserError: At the first tensor whose shape does not agree.
    """
    own = [name for name in module.state_dict() if not name.endswith("num_batches_tracked")]
    given = [name for name in state if not name.endswith("num_batches_tracked")]
    if len(own) != len(given):
        raise UserError(
            f"weights of another architecture: {where} holds {len(given)} tensors, expected {len(own)}"
        )
    renamed = {name: state[other] for name, other in zip(own, given)}
    counters = {n: t for n, t in module.state_dict().items() if n.endswith("num_batches_tracked")}
    load_strictly(module, {**renamed, **counters}, where)
