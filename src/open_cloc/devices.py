"""Where a model runs."""

from __future__ import annotations

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
