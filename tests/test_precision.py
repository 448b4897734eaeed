"""How precise products are: said once, kept in losses whatever is said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from open_cloc import precision
from open_cloc.objectives.pairs.dense import dense_pairs
from open_cloc.objectives.pairs.losses import sigmoid_loss, softmax_loss
from open_cloc.objectives.pairs.tiled import tiled_pairs
from open_cloc.precision import computing_in, exact_product, products_in

CPU = torch.device("cpu")
PRODUCTS = ("aten.mm", "aten.bmm", "aten.addmm")


def switches() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.fixture
def with_tf32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a GPU, with a user who allows TF32 everywhere."""
    before = switches()
    monkeypatch.setattr(precision, "has_tf32", lambda device: True)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


class Products(TorchDispatchMode):
    """The switch at each matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(op).startswith(PRODUCTS):
            self.found.append(torch.get_float32_matmul_precision())
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("form", [dense_pairs, tiled_pairs])
def test_losses_multiply_exactly(with_tf32: None, form: Any, kind: str) -> None:
    left, right = torch.randn(2, 40, 8).unbind()
    left.requires_grad_()
    right.requires_grad_()
    scalars = torch.tensor([10.0, -3.0], requires_grad=True)
    with Products() as products:
        pairs = form(left, right, torch.ones(40, dtype=torch.bool), 0, 0.9)
        loss = softmax_loss(pairs, scalars[0]) if kind == "softmax" else sigmoid_loss(pairs, *scalars)
        loss.backward()
    assert len(products.found) >= 4  # two forward, two backward
    assert set(products.found) == {"highest"}
    assert switches() == ("high", True)


def test_the_word_sets_the_switches(with_tf32: None) -> None:
    found = {}
    for word in precision.PRECISIONS:
        with computing_in(word, CPU):  # type: ignore[arg-type]
            found[word] = (*switches(), torch.is_autocast_enabled("cpu"))
        assert switches() == ("high", True)
    assert found == {
        "fp32": ("highest", False, False),
        "tf32": ("high", True, False),
        "bf16": ("high", True, True),
    }
    with pytest.raises(KeyError), products_in("fp32", CPU):
        raise KeyError
    assert switches() == ("high", True)


def test_a_cpu_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    before = switches()
    with products_in("tf32", CPU):
        assert switches() == before


def test_exact_product_is_a_product() -> None:
    left, right = torch.randn(2, 5, 3, dtype=torch.float64).unbind()

    def product(left: Tensor, right: Tensor) -> Tensor:
        return exact_product(left, right)

    assert torch.equal(exact_product(left, right), left @ right.T)
    assert torch.autograd.gradcheck(product, (left.requires_grad_(), right.requires_grad_()))
