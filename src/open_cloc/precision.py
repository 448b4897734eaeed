"""How precise a model's products are: one word for training, evaluation and detectors.

`fp32` is float32 throughout. `tf32` lets GPUs round the factors of float32 products to 10 bits, cuDNN's
convolutions included. `bf16` computes under autocast, and lets `tf32` be for what stays in float32.
What compares features decides by differences of cosines that neither has digits for: `exact_products`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Precision = Literal["fp32", "tf32", "bf16"]
Choice = Literal["auto", "fp32", "tf32", "bf16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


def decide(word: Choice, device: torch.device) -> Precision:
    """What `auto` comes to: bfloat16 on GPUs."""
    if word == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return word


@contextmanager
def computing_in(precision: Choice, device: torch.device) -> Iterator[None]:
    """The block in which a model's forward pass is computed."""
    decided = decide(precision, device)
    with products_in(decided, device), autocast(decided, device):
        yield


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 if the precision is `bf16`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def products_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """The block in which float32 products are as precise as said, backward passes among them."""
    with _tf32(precision != "fp32", device):
        yield


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """The block in which float32 products are exact to float32, whatever surrounds it."""
    with _tf32(False, device), torch.autocast(device.type, enabled=False):
        yield


def has_tf32(device: torch.device) -> bool:
    """Whether torch's switch means TF32 there: on a CPU it means something else."""
    return device.type == "cuda"


@contextmanager
def _tf32(allowed: bool, device: torch.device) -> Iterator[None]:
    if not has_tf32(device):
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def exact_product(left: Tensor, right: Tensor) -> Tensor:
    """(n, D) and (m, D) -> (n, m) products of rows, exact to their type forward and backward."""
    return _ExactProduct.apply(left, right)


class _ExactProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        with exact_products(left.device):
            return left @ right.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        left, right = ctx.saved_tensors
        with exact_products(left.device):
            return gradient @ right, gradient.T @ left
