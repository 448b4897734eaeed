"""Which operations make the host wait for a device, counted where there is none."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

# Their results, or the sizes of these, are numbers that the host must know.
WAITING = (
    "_local_scalar_dense",
    "nonzero",
    "unique",
    "masked_select",
    "repeat_interleave",
    "is_nonzero",
    "aten.equal",
)


class Watched(TorchDispatchMode):
    """The names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(op))
        return op(*args, **(kwargs or {}))

    @property
    def waits(self) -> list[str]:
        """Those that a GPU would be waited for."""
        return [name for name in self.names if any(word in name for word in WAITING)]
