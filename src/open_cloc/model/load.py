"""Open a trained model by path or hub id, on a device, with errors that a user can act on."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from open_cloc.errors import MissingFileError, UserError
from open_cloc.model.cloc import CLOC
from open_cloc.model.weights import FILES

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_model(
    path_or_hub_id: str | Path,
    device: str | torch.device | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> CLOC:
    """Load weights for inference.

    Args:
        path_or_hub_id: Folder that `save_pretrained` wrote, or `owner/name` on the Hugging Face hub.
        device: Where to put the model; None takes a GPU if there is one, else the CPU.
        dtype: Type of the towers' weights: `fp32`, `bf16`, `fp16` or torch's; None keeps float32. The
            Prompter, which computes with boxes, and all embeddings stay float32.
        revision: Branch, tag or commit on the hub; None takes its main branch.
        token: Access token for the hub; None takes the one you are logged in with.
        cache_dir: Where downloads are kept; None takes the hub's own place.

    Returns:
        The model in eval mode.

    Raises:
        MissingFileError: If there is no such folder or repository.
        UserError: If the weights are not a CLOC model's, or the device or type is unknown.
    """
    if Path(path_or_hub_id).is_file():
        raise UserError(
            f"weights must be a model folder (config.json, model.safetensors); got the file {path_or_hub_id}"
        )
    target, weights = choose_device(device), choose_dtype(dtype)
    model = CLOC.from_pretrained(
        find_folder(path_or_hub_id, revision=revision, token=token, cache_dir=cache_dir, patterns=FILES)
    )
    model.clip.visual.to(weights)
    model.clip.text.to(weights)
    return model.to(target).eval()


def find_folder(
    path_or_hub_id: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    patterns: list[str] | None = None,
) -> Path:
    """The local folder of a model, which is fetched from the hub unless it is a folder or in the cache.

    Args:
        path_or_hub_id: A folder, or `owner/name` on the Hugging Face hub.
        revision: Branch, tag or commit on the hub.
        token: Access token for the hub; None takes the one you are logged in with.
        cache_dir: Where downloads are kept; None takes the hub's own place.
        patterns: Files to fetch, such as `*.json`; None takes all.

    Returns:
        The folder; that of a hub's model bears the name of its commit.

    Raises:
        MissingFileError: If there is neither, or the hub cannot be reached.
        UserError: If a revision of a folder is asked for.
    """
    name = str(path_or_hub_id)
    if Path(name).is_dir():
        if revision:
            raise UserError(f"a revision is for models on the hub; got {revision!r} with the folder {name}")
        return Path(name)
    if not HUB_ID.fullmatch(name):
        raise MissingFileError(f"weights not found: no folder {name}, and it is no hub id such as owner/name")
    try:
        return Path(
            snapshot_download(
                name, revision=revision, token=token, cache_dir=cache_dir, allow_patterns=patterns
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise MissingFileError(f"weights not found: no folder {name}, and the hub says: {reason}") from error


def choose_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    """A floating-point type for weights; float32 if none is named.

    Raises:
        UserError: If it is none of `DTYPES`.
    """
    chosen = torch.float32 if dtype is None else DTYPES.get(str(dtype), dtype)
    if not isinstance(chosen, torch.dtype) or chosen not in DTYPES.values():
        raise UserError(f"unknown dtype {str(dtype)!r}; expected one of {', '.join(DTYPES)}")
    return chosen


def choose_device(device: str | torch.device | None) -> torch.device:
    """A torch device; a GPU if there is one and none is named.

    Raises:
        UserError: If torch does not know it, or it is not here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"device {str(device)!r} cannot be used: {reason}") from error
