"""The tiled form against the dense one, which `test_losses` holds against loops, and its own promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from paper_terms import paper_objectives
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from open_cloc.data.collate import Prepared, collate
from open_cloc.objectives import (
    image_text_loss,
    region_text_loss,
    sigmoid_image_text_loss,
    sigmoid_region_text_loss,
)
from open_cloc.objectives.pairs import losses as pair_losses
from open_cloc.objectives.pairs import tiled
from open_cloc.objectives.pairs.dense import dense_pairs
from open_cloc.objectives.pairs.losses import filtered_share, sigmoid_loss, softmax_loss
from open_cloc.objectives.pairs.tiled import tiled_pairs
from open_cloc.samples import Features

KINDS = pytest.mark.parametrize("kind", ["softmax", "sigmoid"])


def phrases(n: int, width: int, seed: int = 0, copies: float = 0.2, near: float = 0.1) -> tuple[Tensor, ...]:
    """Features like CLIP's of short phrases: regions (n, D), texts (n, D) and ids (n,), float64.

    Texts share a mean, their spectrum falls off, some are copies and some nearly the same.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(3, n, width, generator=generator, dtype=torch.float64)
    spectrum = (torch.arange(width) + 4.0) ** -0.5
    texts = noise[0] * spectrum / spectrum.norm()
    texts[:, 0] += 1
    ids = torch.arange(n)
    source = torch.randint(0, n // 2, (n,), generator=generator)
    draw = torch.rand(n, generator=generator)
    draw[: n // 2] = 1  # whoever is copied is no copy
    ids = torch.where(draw < copies, source, ids)
    texts = texts[ids]
    alike = (draw >= copies) & (draw < copies + near)
    texts[alike] = texts[source[alike]] + 0.3 * F.normalize(noise[1, alike], dim=1)
    regions = F.normalize(texts, dim=1) + 1.2 * F.normalize(noise[2], dim=1)
    return 3 * regions, texts, ids


def results(
    form: Callable[..., Any],
    kind: str,
    left: Tensor,
    right: Tensor,
    mask: Tensor | None = None,
    threshold: float | None = 0.9,
    scale: float = 14.3,
    device: str = "cpu",
    **options: Any,
) -> dict[str, Tensor]:
    """The loss and its gradients for features, scale and bias."""
    left, right = (x.to(device, copy=True).requires_grad_() for x in (left, right))
    scalars = [torch.tensor([x], dtype=left.dtype, device=device, requires_grad=True) for x in (scale, -5.0)]
    mask = torch.ones(len(left), dtype=torch.bool) if mask is None else mask
    given = {
        name: value.to(device) if isinstance(value, Tensor) else value for name, value in options.items()
    }
    pairs = form(left, right, mask.to(device), 0, threshold, **given)
    loss = softmax_loss(pairs, scalars[0]) if kind == "softmax" else sigmoid_loss(pairs, *scalars)
    loss.backward()
    found = {
        "loss": loss.detach(),
        "left": left.grad,
        "right": right.grad,
        "scale": scalars[0].grad,
        "share": filtered_share(pairs),
    } | ({"bias": scalars[1].grad} if kind == "sigmoid" else {})
    return {name: value.cpu() for name, value in found.items() if value is not None}


def masks(count: int) -> dict[str, Tensor]:
    """Which of some rows count."""
    ragged = torch.rand(count, generator=torch.Generator().manual_seed(1)) < 0.6
    every = torch.ones_like(ragged)
    return {"all": every, "ragged": ragged, "one": torch.arange(count) == 50, "none": ~every}


def errors(got: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    return {
        name: float((got[name].double() - value.double()).norm() / value.double().norm().clamp(min=1e-30))
        for name, value in expected.items()
    }


# --- equality with the dense form -----------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("threshold", [None, 0.9, 0.3])
@pytest.mark.parametrize("mask", ["all", "ragged", "one", "none"])
def test_tiled_equals_dense(kind: str, threshold: float | None, mask: str) -> None:
    """In float64, where they could differ by nothing but a mistake; 103 is divisible by no tile."""
    left, right, _ = phrases(103, 24)
    real = masks(103)[mask]
    expected = results(dense_pairs, kind, left, right, real, threshold)
    for tile in (16, 103, 500):
        got = results(tiled_pairs, kind, left, right, real, threshold, tile=tile)
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-12, msg=f"{name}, tile {tile}")
    if mask == "ragged" and threshold == 0.9:
        assert 0 < float(expected["share"]) < 0.5  # else the filter would not be tested


@KINDS
@pytest.mark.parametrize("mask", ["all", "ragged"])
def test_repeated_texts_as_counts_equal_dense(kind: str, mask: str) -> None:
    left, right, ids = phrases(120, 24, copies=0.6)
    real = torch.rand(120, generator=torch.Generator().manual_seed(1)) < (2.0 if mask == "all" else 0.6)
    expected = results(dense_pairs, kind, left, right, real)
    hashed = ids * 0x9E3779B97F4A7C15 % 2**63 - 2**62  # in no order
    got = results(tiled_pairs, kind, left, right, real, text_ids=hashed, tile=16)
    columns = len(tiled_pairs(left, right, real, 0, 0.9, hashed, 16).layout.columns)
    assert columns == len(ids[real].unique()) < 0.8 * real.sum()
    # A repeated text's gradient goes to one of its copies: sums over copies are compared.
    summed = [torch.zeros_like(right).index_add_(0, ids, grads["right"]) for grads in (got, expected)]
    torch.testing.assert_close(*summed, rtol=1e-9, atol=1e-12)
    assert int((got["right"] != 0).any(1).sum()) <= columns
    for name in set(expected) - {"right"}:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-9, atol=1e-12, msg=name)


@KINDS
@pytest.mark.parametrize("ids", [False, True])
def test_many_conflicts_equal_dense(kind: str, ids: bool) -> None:
    left, right, text_ids = phrases(120, 24, copies=0.4)
    real = torch.rand(120, generator=torch.Generator().manual_seed(1)) < 0.8
    expected = results(dense_pairs, kind, left, right, real, threshold=0.5)
    assert 0.05 < float(expected["share"]) < 0.9
    options = {"text_ids": text_ids} if ids else {}
    got = results(tiled_pairs, kind, left, right, real, threshold=0.5, tile=16, **options)
    for grads in (got, expected):
        grads["right"] = torch.zeros_like(right).index_add_(0, text_ids, grads["right"])
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-12, msg=name)


@KINDS
@pytest.mark.parametrize(("scale", "bound"), [(14.3, 1e-6), (100.0, 1e-5)])
def test_float32_errors_against_float64(kind: str, scale: float, bound: float) -> None:
    """At scale 100 this batch is nearly solved: cross-entropy of all logits would have an error of 1e-3."""
    left, right, ids = phrases(700, 192)
    expected = results(dense_pairs, kind, left, right, scale=scale)
    for options in ({}, {"text_ids": ids}):
        got = results(tiled_pairs, kind, left.float(), right.float(), scale=scale, tile=256, **options)
        if options:
            for grads in (got, expected):
                grads["right"] = torch.zeros(700, 192, dtype=torch.float64).index_add_(
                    0, ids, grads["right"].double()
                )
        for name, error in errors(got, expected).items():
            assert error <= bound, (name, error)


@KINDS
def test_gradcheck(kind: str) -> None:
    left, right, _ = phrases(12, 5)
    mask = torch.arange(12) % 5 != 3

    def loss(left: Tensor, right: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        pairs = tiled_pairs(left, right, mask, 0, 0.9, tile=5)
        return softmax_loss(pairs, scale) if kind == "softmax" else sigmoid_loss(pairs, scale, bias)

    scalars = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (7.0, -3.0)]
    assert torch.autograd.gradcheck(loss, (left.requires_grad_(), right.requires_grad_(), *scalars))


@KINDS
def test_garbage_in_masked_rows_reaches_nothing(kind: str) -> None:
    left, right, _ = phrases(50, 8)
    mask = torch.arange(50) % 3 != 1
    clean = results(tiled_pairs, kind, left, right, mask, tile=16)
    left, right = (x.masked_fill(~mask[:, None], float("nan")) for x in (left, right))
    dirty = results(tiled_pairs, kind, left, right, mask, tile=16)
    for name, value in clean.items():
        assert torch.equal(dirty[name], value), name


def test_nan_features_give_a_nan_loss() -> None:
    """Training stops on it by name; nothing before may hide it or break."""
    left, right, ids = phrases(200, 192)
    left[3] = float("nan")
    assert results(tiled_pairs, "softmax", left, right, tile=64)["loss"].isnan()
    right[5] = float("nan")
    assert results(tiled_pairs, "sigmoid", left, right, tile=64, text_ids=ids)["loss"].isnan()


def test_where_all_texts_are_the_same_the_loss_is_zero() -> None:
    left, right = torch.randn(40, 8), torch.randn(8).expand(40, 8)
    for ids in (None, torch.zeros(40, dtype=torch.int64)):
        got = results(tiled_pairs, "softmax", left, right, tile=16, text_ids=ids)
        assert float(got["loss"]) == 0
        assert float(got["share"]) == 1
        assert all(bool((got[name] == 0).all()) for name in ("left", "right", "scale"))


# --- large scales ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize(("scale", "low_row"), [(130.0, True), (400.0, False)])
def test_sums_that_float32_cannot_hold_equal_dense(scale: float, low_row: bool, ids: bool) -> None:
    """A region opposite to all texts, and a scale at which most logits underflow beside the largest."""
    left, right, text_ids = phrases(90, 24)
    if low_row:
        right[:, 0] += 0.5
        left[7] = -right.mean(0)
    options = {"text_ids": text_ids} if ids else {}
    got = results(tiled_pairs, "softmax", left.float(), right.float(), scale=scale, tile=32, **options)
    expected = results(dense_pairs, "softmax", left, right, scale=scale)
    for grads in (got, expected):
        grads["right"] = torch.zeros(90, 24).double().index_add_(0, text_ids, grads["right"].double())
    assert max(errors(got, expected).values()) < 1e-4
    exact = results(tiled_pairs, "softmax", left, right, scale=20 * scale, tile=32)
    assert max(errors(exact, results(dense_pairs, "softmax", left, right, scale=20 * scale)).values()) < 1e-7


# --- memory ---------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation returned."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


@contextmanager
def largest_tensor() -> Iterator[Largest]:
    """Also sees the backward pass: that runs under the mode of the thread that asks for it."""
    with Largest() as mode:
        yield mode


@pytest.mark.parametrize("ids", [False, True])
@KINDS
def test_no_matrix_of_all_pairs(kind: str, ids: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiled.TILE, "cpu", 128)
    n, width = 1600, 160
    left, right, text_ids = phrases(n, width)
    bias = torch.tensor([-5.0], requires_grad=True)
    scale = torch.tensor([14.3], requires_grad=True)
    shape = (n // 4, 4, width)
    region, text = (x.float().reshape(shape).requires_grad_() for x in (left, right))

    def losses() -> list[Tensor]:
        options = {"text_ids": text_ids.view(n // 4, 4)} if ids else {}
        flat = region.flatten(0, 1), text.flatten(0, 1)
        if kind == "softmax":
            return [region_text_loss(region, text, scale, **options), image_text_loss(*flat, scale)]
        return [
            sigmoid_region_text_loss(region, text, scale, logit_bias=bias, **options),
            sigmoid_image_text_loss(*flat, scale, logit_bias=bias),
        ]

    assert n * n > pair_losses.DENSE_PAIRS["cpu"]
    with largest_tensor() as largest:
        sum(losses()).backward()
    assert n * width <= largest.numel < n * n / 8
    # The hook sees the matrix where there is one.
    monkeypatch.setattr(pair_losses, "most_dense_pairs", lambda device: n * n)
    with largest_tensor() as largest:
        dense = sum(losses())
    assert largest.numel == n * n
    with torch.no_grad():
        monkeypatch.setattr(pair_losses, "most_dense_pairs", lambda device: 0)
        torch.testing.assert_close(sum(losses()), dense, rtol=1e-6, atol=0)


def test_two_backward_passes_give_the_same() -> None:
    left, right, _ = phrases(103, 24)
    left.requires_grad_()
    pairs = tiled_pairs(left, right, torch.ones(103, dtype=torch.bool), 0, 0.9, tile=16)
    loss = softmax_loss(pairs, torch.tensor([14.3], dtype=left.dtype))
    first, second = (torch.autograd.grad(loss, left, retain_graph=True)[0] for _ in range(2))
    assert first.any()
    assert torch.equal(first, second)


@KINDS
def test_no_matrix_where_texts_have_collapsed(kind: str) -> None:
    """As badly trained text towers make them: memory must not grow in that very moment."""
    left, right, _ = phrases(1600, 160)
    right[:, 0] += 3.0
    with largest_tensor() as largest:
        got = results(tiled_pairs, kind, left.float(), right.float(), tile=128)
    assert float(got["share"]) > 0.9
    assert largest.numel < 1600**2 / 8


@KINDS
def test_products_are_float32_under_autocast(kind: str) -> None:
    left, right, _ = phrases(100, 24)
    expected = results(tiled_pairs, kind, left.float(), right.float(), tile=32)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # the backward pass inside it as well
        got = results(tiled_pairs, kind, left.float(), right.float(), tile=32)
    for name, value in expected.items():
        assert torch.equal(got[name], value), name
    halves = results(tiled_pairs, kind, left.bfloat16(), right.bfloat16(), tile=32)
    assert halves["left"].dtype == torch.bfloat16
    rounded = results(dense_pairs, kind, left.bfloat16().double(), right.bfloat16().double())
    assert errors(halves, rounded)["left"] < 5e-3  # the gradient's own rounding


@KINDS
def test_text_ids_need_a_filter_that_equal_texts_pass(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the filter, copies are negatives of each other and may not be counted as one."""
    monkeypatch.setattr(pair_losses, "most_dense_pairs", lambda device: 0)
    left, right, ids = (x.unflatten(0, (10, 6)) for x in phrases(60, 8))
    loss = region_text_loss if kind == "softmax" else sigmoid_region_text_loss
    bias = {} if kind == "softmax" else {"logit_bias": torch.tensor([-5.0])}
    values = {}
    for threshold in (None, 1.5, 0.9999, 0.9):
        options = {"conflict_threshold": threshold, **bias}
        one = loss(left, right, torch.tensor([14.3]), text_ids=ids, **options)
        torch.testing.assert_close(one, loss(left, right, torch.tensor([14.3]), **options))
        values[threshold] = float(one)
    assert values[None] == values[1.5] > values[0.9]


def test_text_ids_must_fit() -> None:
    with pytest.raises(ValueError, match=r"text ids must be \(2, 3\); got \(6,\)"):
        region_text_loss(
            torch.ones(2, 3, 8), torch.ones(2, 3, 8), torch.ones(1), text_ids=torch.zeros(6).long()
        )


# --- ids from the loader --------------------------------------------------------------------------


def test_loader_hashes_texts() -> None:
    """The same text has the same id in any batch, process and run."""

    class Tokenize:
        def __call__(self, texts: list[str]) -> Tensor:
            return torch.ones(len(texts), 2, dtype=torch.int64)

        def lengths(self, token_ids: Tensor) -> Tensor:
            return torch.full((len(token_ids),), 2)

    def sample(*texts: str) -> Prepared:
        boxes = np.tile(np.array([[0.0, 0.0, 1.0, 1.0]], np.float32), (len(texts), 1))
        image = np.zeros((4, 4, 3), np.uint8)
        return Prepared("", image, (0.0, 0.0, 1.0, 1.0), "caption", boxes, list(texts))

    ids = collate([sample("a dog", "cat"), sample("cat"), sample()], 3, Tokenize(), {}).region_text_ids
    assert ids is not None
    assert ids.dtype == torch.int64
    assert ids[0, 1] == ids[1, 0] != ids[0, 0]
    assert ids[2].eq(0).all()
    assert int(ids[0, 0]) == -4081912340589182210  # a change would part ranks of different versions


# --- total ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("contrastive_kind", ["softmax", "sigmoid"])
def test_total_of_a_large_batch_equals_the_dense_one(
    contrastive_kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right, ids = (x.unflatten(0, (20, 4)) for x in phrases(80, 16))
    features = Features(
        image_features=left[:, 0],
        text_features=right[:, 1],
        caption_mask=torch.arange(20) % 4 != 1,
        region_features=left,
        region_text_features=right,
        region_mask=torch.rand(20, 4, generator=torch.Generator().manual_seed(0)) < 0.6,
        pred_boxes=torch.zeros(20, 4, 4),
        boxes=torch.ones(20, 4, 4),
        logit_scale=torch.tensor([14.3]),
        logit_bias=torch.tensor([-5.0]),
        region_text_ids=ids,
    )
    config = paper_objectives(contrastive=contrastive_kind)
    dense = config(features)
    assert dense["filtered_pairs"] > 0
    monkeypatch.setattr(pair_losses, "most_dense_pairs", lambda device: 0)
    monkeypatch.setitem(tiled.TILE, "cpu", 16)
    for name, value in config(features).items():
        torch.testing.assert_close(value, dense[name], rtol=1e-6, atol=1e-7, msg=name)
