"""Tensors that several processes wrote together (torch.distributed.checkpoint), read by any number of them.

A training checkpoint keeps its weights so, with the optimizer's state, where a model folder has one file.
torch pickles the list of shards: read checkpoints of people you trust, and pass on model folders.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from open_cloc.errors import UserError
from open_cloc.model.old_names import by_names_of_today, name_of_today

T = TypeVar("T")

# That one process reads or writes alone is what is meant. Not a context: writing happens in threads.
warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)

SHARDS_FOLDER = "state"
# Starts the names of weights, which the optimizer's state lies beside.
MODEL_PREFIX = "model."


def of_model(tensors: Mapping[str, T]) -> dict[str, T]:
    """The weights among named tensors (or their shapes), by the model's own names."""
    return {n.removeprefix(MODEL_PREFIX): t for n, t in tensors.items() if n.startswith(MODEL_PREFIX)}


def read_shapes(folder: Path) -> dict[str, torch.Size]:
    """Shape of every tensor in a checkpoint's folder, by the names of today.

    Raises:
        UserError: If its list of shards is missing or damaged.
    """
    return {name: entry.size for name, entry in by_names_of_today(_read_metadata(folder)).items()}


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, whole, in this process alone.

    Raises:
        UserError: If a shard is missing or damaged.
    """
    return _read(folder, "")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Only the weights, by the model's own names.

    Raises:
        UserError: If a shard is missing or damaged.
    """
    return of_model(_read(folder, MODEL_PREFIX))


def _read(folder: Path, prefix: str) -> dict[str, Tensor]:
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in by_names_of_today(_read_metadata(folder)).items()
        if name.startswith(prefix)
    }
    load_shards(folder, tensors)
    return tensors


def load_shards(
    folder: Path, tensors: dict[str, Tensor], process_group: dist.ProcessGroup | None = None
) -> None:
    """Fill tensors in place, each process its own part of those that are distributed.

    Args:
        folder: The checkpoint.
        tensors: Tensors to fill, by the names of today, on any device.
        process_group: The processes that load together; None reads in this one alone.

    Raises:
        UserError: If a shard is missing or damaged.
    """
    reader = dcp.FileSystemReader(folder / SHARDS_FOLDER)
    alone = process_group is None
    saved_names = {name_of_today(name): name for name in _read_metadata(folder)}
    saved = {saved_names.get(name, name): tensor for name, tensor in tensors.items()}
    try:
        dcp.load(saved, storage_reader=reader, process_group=process_group, no_dist=alone)
    except dcp.CheckpointException as error:
        cause = next((cause for cause, _ in error.failures.values()), error)
        first_line = (str(cause) or type(cause).__name__).splitlines()[0]
        raise UserError(f"{folder / SHARDS_FOLDER} cannot be read: {first_line}") from error


def _read_metadata(folder: Path) -> dict[str, dcp.TensorStorageMetadata]:
    try:
        metadata = dcp.FileSystemReader(folder / SHARDS_FOLDER).read_metadata()
    except (OSError, EOFError, UnpicklingError, ValueError, AttributeError, ImportError, IndexError) as error:
        raise UserError(
            f"{folder / SHARDS_FOLDER} cannot be read: {type(error).__name__} in its .metadata"
        ) from error
    entries = metadata.state_dict_metadata
    return {n: entry for n, entry in entries.items() if isinstance(entry, dcp.TensorStorageMetadata)}
