"""Where a model runs."""

from __future__ import annotations

import importlib.util
from functools import lru_cache

import torch

from open_cloc.errors import UserError


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


def runs_triton(device: torch.device) -> bool:
    """Whether kernels in Triton run there: on GPUs of CUDA, whose builds of torch bring it."""
    return device.type == "cuda" and _has_triton()


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
