"""The Triton form of the `mean` read-out's heart against the PyTorch form in float64."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch
from torch import Tensor

from open_cloc.model.gelu_sum import gelu_sum

NAMES = ("residual", "attended", "prompt", "share", "weights", "scale", "bias")


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # on a CPU, in Triton's interpreter


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, with small blocks: there are several, and the last is not full."""
    pytest.importorskip("triton", reason="Triton comes with torch's builds for CUDA")
    module = importlib.import_module("open_cloc.model.gelu_sum_triton")
    monkeypatch.setattr(module, "UNITS", 16)
    monkeypatch.setattr(module, "PROMPTS", 2)
    return module


def inputs(images: int, prompts: int, tokens: int, keys: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    made = [
        torch.randn(images, tokens, width).to(dtype),
        torch.randn(images, tokens, width).to(dtype),
        torch.randn(images, prompts, keys, width).to(dtype),
        torch.rand(images, prompts, tokens),
        torch.rand(images, prompts, tokens, keys) * 0.3,
        torch.rand(images, prompts, tokens),
        torch.randn(width) * 0.1,
    ]
    return [tensor.to(DEVICE).requires_grad_() for tensor in made]


@pytest.mark.parametrize("keys", [1, 2, 3])
@pytest.mark.parametrize(
    ("images", "prompts", "tokens", "width"), [(2, 3, 5, 40), (1, 4, 3, 16), (3, 1, 2, 7)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values_and_gradients_equal_float64(
    fused: ModuleType, images: int, prompts: int, tokens: int, width: int, keys: int, dtype: torch.dtype
) -> None:
    given = inputs(images, prompts, tokens, keys, width, dtype)
    mask = torch.rand(images, tokens, device=DEVICE) > 0.3
    mask[0, 0] = False
    upstream = torch.randn(images, prompts, width, device=DEVICE)
    total = fused.gelu_sum_triton(*given, mask)
    total.backward(upstream)
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    expected = gelu_sum(*exact, mask)
    expected.backward(upstream.double())
    assert total.dtype == torch.float32
    torch.testing.assert_close(total.double(), expected, rtol=1e-6, atol=1e-6)
    for name, own, other in zip(NAMES, given, exact):
        assert own.grad is not None
        assert other.grad is not None
        assert own.grad.dtype == own.dtype
        rtol = 1e-5 if own.dtype == torch.float32 else 8e-3  # of rounding to 16 bits
        torch.testing.assert_close(own.grad.double(), other.grad, rtol=rtol, atol=1e-5, msg=name)


def test_nothing_to_sum(fused: ModuleType) -> None:
    given = inputs(2, 0, 3, 2, 8, torch.float32)
    total = fused.gelu_sum_triton(*given, torch.ones(2, 3, dtype=torch.bool, device=DEVICE))
    assert total.shape == (2, 0, 8)
    total.sum().backward()
    masked = inputs(1, 2, 3, 2, 8, torch.float32)
    total = fused.gelu_sum_triton(*masked, torch.zeros(1, 3, dtype=torch.bool, device=DEVICE))
    assert not total.any()
    total.sum().backward()
    assert all(tensor.grad is not None and not tensor.grad.any() for tensor in masked)
