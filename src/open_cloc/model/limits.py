"""A model is no larger than its file: found out before memory is taken.

A config of one line can ask for a million layers, or for a matrix that no machine holds.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from open_cloc.errors import MissingFileError, UserError

# A model that is built registers some tensors twice (tied ones), and some that it drops again (a classifier).
TIMES = 4
# Beside what the file holds: small models have such in number, and masks and tables of places in size.
MORE_TENSORS, MORE_NUMBERS = 256, 2**26

# No training leaves larger weights behind. Batch norms' statistics are of what passes, not of weights.
LARGEST, LARGEST_STATISTIC = 1e6, 1e12
STATISTICS = ("running_mean", "running_var")
# Training keeps exp(logit_scale) below 100, SigLIP learned 118; softmax knows no difference long before this.
LARGEST_SCALE = 1e4

# Types of numbers that a weight may have in a file.
WEIGHT_TYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")


def read_header(path: Path) -> dict[str, torch.Size]:
    """Shape of every tensor in a safetensors file, by its name; no tensor is read.

    Raises:
        MissingFileError: If there is no such file.
        UserError: If it is no safetensors file, is cut short, or names more than it holds.
    """
    if not path.is_file():
        raise MissingFileError(f"weights not found: {path}")
    path.open("rb").close()  # of a file that may not be read, safetensors says that it is not there
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            types = {name: str(part.get_dtype()) for name, part in slices.items()}
            shapes = {name: torch.Size(part.get_shape()) for name, part in slices.items()}
    except (SafetensorError, OverflowError) as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from error
    odd = next((name for name, kind in types.items() if kind not in WEIGHT_TYPES), None)
    if odd is not None:
        raise UserError(f"{path} holds {odd} as {types[odd]}; expected one of {', '.join(WEIGHT_TYPES)}")
    return shapes


@contextmanager
def no_larger_than(shapes: Iterable[torch.Size], where: str) -> Iterator[None]:
    """A block in which modules are built, which ends as soon as they outgrow what a file holds.

    Inside `torch.device("meta")` nothing has been taken by then but the memory of the modules themselves.

    Args:
        shapes: Shapes of the file's tensors.
        where: The model, for the message.

    Raises:
        UserError: If more or larger tensors are asked for than there are.
    """
    held = [shape.numel() for shape in shapes]
    most_tensors = TIMES * len(held) + MORE_TENSORS
    most_numbers = TIMES * sum(held) + MORE_NUMBERS
    asked, numbers, thread = 0, 0, threading.get_ident()

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal asked, numbers
        if tensor is None or threading.get_ident() != thread:
            return
        asked, numbers = asked + 1, numbers + tensor.numel()
        if asked > most_tensors or numbers > most_numbers:
            raise UserError(
                f"{where}: its config asks for a larger model than its weights: they are {len(held)} tensors "
                f"of {sum(held):,} numbers"
            )

    hooks: list[Any] = [
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def require_sound_weights(state: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights that no training leaves behind, before a model answers with them.

    Raises:
        UserError: Names the tensor that holds a nan, an infinity, or a number that is absurd.
    """
    for name, tensor in state.items():
        if tensor.is_floating_point() and tensor.numel():
            low, high = (bound.item() for bound in tensor.detach().aminmax())
            limit = _limit_of(name)
            if not (-limit <= low and high <= limit):  # a comparison with nan is false
                worst = high if -limit <= low else low
                raise UserError(
                    f"{where} cannot be used: {name} holds {worst:g}; expected numbers within {limit:g}"
                )


def _limit_of(name: str) -> float:
    if name.endswith("logit_scale"):
        return math.log(LARGEST_SCALE)
    return LARGEST_STATISTIC if name.endswith(STATISTICS) else LARGEST
