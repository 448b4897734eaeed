"""Low-rank adapters (LoRA) in a model's state: what they make of the weights that they stand beside.

`open_cloc.training.lora` adds them; models are saved and loaded with their weights put together, so that
nothing else needs to know of adapters.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

BASE = ".base_layer."
DOWN, UP = ".lora_A.default.weight", ".lora_B.default.weight"
MARK = ".lora_"


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is of an adapter and not of a model."""
    return MARK in name


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state without adapters: each weight with what its adapter adds, by the model's own names."""
    return {
        name.replace(BASE, "."): _with_adapter(name, tensor, state)
        for name, tensor in state.items()
        if not is_adapter(name)
    }


def merged_shapes(shapes: Mapping[str, torch.Size]) -> dict[str, torch.Size]:
    """The same of shapes."""
    return {name.replace(BASE, "."): shape for name, shape in shapes.items() if not is_adapter(name)}


def _with_adapter(name: str, tensor: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    layer, found, what = name.partition(BASE)
    if not found or what != "weight":
        return tensor
    down, up = state[layer + DOWN], state[layer + UP]
    # A convolution's adapter is one of the same kernel to few channels, then one of single pixels.
    product = up.flatten(1).float() @ down.flatten(1).float()
    return tensor + product.view(tensor.shape).to(tensor.dtype)
