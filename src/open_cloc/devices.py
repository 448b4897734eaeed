"""Where a model runs."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from open_cloc.errors import UserError
from open_cloc.samples import RegionBatch, map_tensors

HAS_TRITON = importlib.util.find_spec("triton") is not None  # no call: compiled code asks for it


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


def copied(batches: Sequence[RegionBatch], device: torch.device) -> list[RegionBatch]:
    """Batches on a device.

    To a GPU they are copied beside what it computes: where the host is a step ahead, they are there in time.
    """
    if device.type != "cuda":
        return [batch.to(device) for batch in batches]
    beside, computing = _side_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(beside):
        moved = [batch.to(device) for batch in batches]
    computing.wait_stream(beside)

    def keep(tensor: Tensor) -> Tensor:
        tensor.record_stream(computing)  # its memory belongs to the other stream
        return tensor

    for batch in moved:
        map_tensors(batch, keep)
    return moved


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def runs_triton(device: torch.device) -> bool:
    """Whether kernels in Triton run there: on GPUs of CUDA, whose builds of torch bring it."""
    return device.type == "cuda" and HAS_TRITON
