"""Open a trained model by path or hub id, on a device, with errors that a user can act on."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from open_cloc.devices import choose_device
from open_cloc.errors import UserError
from open_cloc.model.cloc import CLOC
from open_cloc.model.hub import find_folder
from open_cloc.model.weights import FILES

Dtype = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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


def dtype_of(model: CLOC) -> str:
    """The type of a model's towers, a key of `DTYPES`; empty where it is none of them."""
    own = next(model.clip.visual.parameters()).dtype
    return next((name for name, dtype in DTYPES.items() if dtype == own), "")


def choose_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    """A floating-point type for weights; float32 if none is named.

    Raises:
        UserError: If it is none of `DTYPES`.
    """
    chosen = torch.float32 if dtype is None else DTYPES.get(str(dtype), dtype)
    if not isinstance(chosen, torch.dtype) or chosen not in DTYPES.values():
        raise UserError(f"unknown dtype {str(dtype)!r}; expected one of {', '.join(DTYPES)}")
    return chosen
