"""Tensors that several processes wrote together (torch.distributed.checkpoint), read by any number of them.

A training checkpoint keeps its weights so, with the optimizer's state, where a model folder has one file.
torch pickles the list of shards, and would run what a pickle names: here it names the list's own parts only.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from open_cloc.errors import UserError
from open_cloc.model.adapters import merged
from open_cloc.model.old_names import by_names_of_today, name_of_today

T = TypeVar("T")

DTYPES = {str(v).removeprefix("torch.") for v in vars(torch).values() if isinstance(v, torch.dtype)}
# All that a list of shards is made of, in any version of torch and Python so far.
PARTS = {
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "_MEM_FORMAT_ENCODING"),
        *("TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch": {"Size", *DTYPES},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"Path", "PosixPath", "WindowsPath", "PurePosixPath"},
    "pathlib._local": {"Path", "PosixPath", "WindowsPath", "PurePosixPath"},
    "collections": {"OrderedDict"},
}

# That one process reads or writes alone is what is meant. Not a context: writing happens in threads.
warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)

SHARDS_FOLDER = "state"
LIST_NAME = ".metadata"
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


def shard_names(folder: Path) -> list[str]:
    """Names of the files that hold a checkpoint's shards, as its list has them.

    Read from the list itself: what torch returns of saving is not complete in each of its versions.

    Raises:
        UserError: If the list is missing or damaged.
    """
    return sorted({info.relative_path for info in _read_list(folder / SHARDS_FOLDER).storage_data.values()})


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, whole, in this process alone.

    Raises:
        UserError: If a shard is missing or damaged.
    """
    return _read(folder, "")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Only the weights, by the model's own names; adapters are put into them.

    Raises:
        UserError: If a shard is missing or damaged.
    """
    return merged(of_model(_read(folder, MODEL_PREFIX)))


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
    reader, alone = _Reader(folder / SHARDS_FOLDER), process_group is None
    saved_names = {name_of_today(name): name for name in _read_metadata(folder)}
    saved = {saved_names.get(name, name): tensor for name, tensor in tensors.items()}
    try:
        dcp.load(saved, storage_reader=reader, process_group=process_group, no_dist=alone)
    except dcp.CheckpointException as error:
        cause = next((cause for cause, _ in error.failures.values()), error)
        first_line = (str(cause) or type(cause).__name__).splitlines()[0]
        raise UserError(f"{folder / SHARDS_FOLDER} cannot be read: {first_line}") from error


def _read_metadata(folder: Path) -> dict[str, dcp.TensorStorageMetadata]:
    return _Reader(folder / SHARDS_FOLDER).read_metadata().state_dict_metadata  # type: ignore[return-value]


class _Reader(dcp.FileSystemReader):
    """torch's reader of shards, which runs nothing and stays in their folder."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> dcp.Metadata:
        """The list of shards.

        Raises:
            UserError: If it is missing or damaged, names what is no part of such lists, files outside of the
                folder, or more than the files hold.
        """
        folder = Path(self.path)
        metadata = _read_list(folder)
        _require_a_list(metadata, folder)
        # Objects would be unpickled; ours are all tensors.
        entries = metadata.state_dict_metadata.items()
        metadata.state_dict_metadata = {n: e for n, e in entries if isinstance(e, dcp.TensorStorageMetadata)}
        metadata.storage_meta = dcp.metadata.StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def _read_list(shards: Path) -> Any:
    """What a list of shards holds, made of its own parts."""
    path = shards / LIST_NAME
    try:
        with path.open("rb") as file:
            return _Unpickler(file).load()
    except UserError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    # Damaged pickles raise whatever their bytes happen to say.
    except Exception as error:
        raise UserError(f"{shards} cannot be read: {type(error).__name__} in its {LIST_NAME}") from error


class _Unpickler(pickle.Unpickler):
    """Makes the parts of a list of shards, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in PARTS.get(module, ()):
            raise UserError(f"it names {module}.{name}, which is no part of a list of shards")
        return super().find_class(module, name)


def _require_a_list(metadata: Any, folder: Path) -> None:
    """Refuse a list whose tensors are none, or lie elsewhere, or are larger than the files.

    Raises:
        UserError: Says which.
    """
    try:
        names = {info.relative_path for info in metadata.storage_data.values()}
        entries = [
            e for e in metadata.state_dict_metadata.values() if isinstance(e, dcp.TensorStorageMetadata)
        ]
        size = sum(entry.size.numel() * entry.properties.dtype.itemsize for entry in entries)
    except (AttributeError, TypeError) as error:
        raise UserError(f"{folder} cannot be read: its {LIST_NAME} is no list of shards") from error
    if any(side < 0 for entry in entries for side in entry.size):
        raise UserError(f"{folder} cannot be read: its {LIST_NAME} names a tensor of a negative size")
    outside = sorted(str(name) for name in names if name != Path(str(name)).name)
    if outside:
        raise UserError(
            f"{folder} cannot be read: its {LIST_NAME} names {outside[0]!r}, which lies elsewhere"
        )
    held = sum((folder / name).stat().st_size for name in names if (folder / name).is_file())
    if size > held:
        raise UserError(
            f"{folder} cannot be read: its {LIST_NAME} names {size:,} bytes, and its files hold {held:,}"
        )
