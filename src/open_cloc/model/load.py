"""Open a trained model by path or hub id, on a device, with errors that a user can act on."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from open_cloc.errors import MissingFileError, UserError
from open_cloc.model.cloc import CLOC

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_model(path_or_hub_id: str | Path, device: str | torch.device | None = None) -> CLOC:
    """Load weights for inference.

    Args:
        path_or_hub_id: Folder that `save_pretrained` wrote, or `owner/name` on the Hugging Face hub.
        device: Where to put the model; None takes a GPU if there is one, else the CPU.

    Returns:
        The model in eval mode.

    Raises:
        MissingFileError: If there is no such folder or repository.
        UserError: If the weights are not a CLOC model's, or the device is unknown.
    """
    name = str(path_or_hub_id)
    if Path(name).is_file():
        raise UserError(
            f"weights must be a model folder (config.json, model.safetensors); got the file {name}"
        )
    if not Path(name).is_dir() and not HUB_ID.fullmatch(name):
        raise MissingFileError(f"weights not found: no folder {name}, and it is no hub id such as owner/name")
    target = choose_device(device)
    try:
        model = CLOC.from_pretrained(name)
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise MissingFileError(f"weights not found: no folder {name}, and the hub says: {reason}") from error
    return model.to(target).eval()


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
