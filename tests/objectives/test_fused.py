"""The fused form against the dense one in float64; on a CPU its kernels run in Triton's interpreter."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.watched import Watched
from open_cloc.objectives.pairs import dense, losses
from open_cloc.objectives.pairs.dense import dense_pairs
from open_cloc.objectives.pairs.fused import fused_pairs
from open_cloc.objectives.pairs.losses import filtered_share, sigmoid_loss, softmax_loss
from tests.objectives.test_tiled import KINDS, errors, masks, phrases, results

# The interpreter warns of exponentials of pairs that are no negatives, whose values are thrown away.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles, the last not full, and a width that is no multiple of the depth."""
    pytest.importorskip("triton", reason="Triton comes with torch's builds for CUDA")
    kernels = importlib.import_module("open_cloc.objectives.pairs.fused_triton")
    assert kernels.EMPTY.value == dense.NOTHING
    if DEVICE == "cpu":
        monkeypatch.setattr(kernels, "TILE", 32)
        monkeypatch.setattr(kernels, "DEPTH", 16)
    monkeypatch.setattr(kernels, "WEIGHTS_AT_ONCE", 2048)  # several parts


def fused(left: Tensor, right: Tensor, mask: Tensor, *rest: Any, **options: Any) -> Any:
    return fused_pairs(left.to(DEVICE), right.to(DEVICE), mask.to(DEVICE), *rest, **options)


def on_device(*args: Any, **options: Any) -> dict[str, Tensor]:
    """Results of the fused form."""
    return results(fused_pairs, *args, device=DEVICE, **options)


def summed(grads: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
    """A repeated text's gradient goes to one of its copies: sums over copies are compared."""
    right = grads["right"].double()
    return grads | {"right": torch.zeros_like(right).index_add_(0, ids, right)}


@KINDS
@pytest.mark.parametrize("threshold", [None, 0.9, 0.3])
@pytest.mark.parametrize("mask", ["all", "ragged", "one", "none"])
def test_fused_equals_dense(kind: str, threshold: float | None, mask: str) -> None:
    left, right, _ = phrases(71, 24)
    real = masks(71)[mask]
    expected = results(dense_pairs, kind, left, right, real, threshold)
    got = on_device(kind, left.float(), right.float(), real, threshold)
    found = errors(got, expected)
    if mask in ("all", "ragged"):
        assert max(found.values()) < 2e-6, found
    else:  # nothing to compare with, or hardly anything
        for name, value in expected.items():
            torch.testing.assert_close(got[name].double(), value.double(), rtol=1e-5, atol=1e-6, msg=name)
    if mask == "ragged" and threshold == 0.9:
        assert 0 < float(expected["share"]) < 0.5  # else the filter would not be tested


@KINDS
@pytest.mark.parametrize("mask", ["all", "ragged"])
def test_repeated_texts_are_one_column_with_a_count(kind: str, mask: str) -> None:
    left, right, ids = phrases(90, 24, copies=0.6)
    real = torch.rand(90, generator=torch.Generator().manual_seed(1)) < (2.0 if mask == "all" else 0.6)
    expected = summed(results(dense_pairs, kind, left, right, real), ids)
    hashed = ids * 0x9E3779B97F4A7C15 % 2**63 - 2**62  # in no order
    layout = fused_pairs(left, right, real, 0, 0.9, hashed).layout
    assert int(layout.num_columns) == len(ids[real].unique()) < 0.9 * real.sum()
    assert layout.counts.sum() == real.sum()
    got = on_device(kind, left.float(), right.float(), real, text_ids=hashed)
    assert int((got["right"] != 0).any(1).sum()) <= layout.num_columns
    found = errors(summed(got, ids), expected)
    assert max(found.values()) < 2e-6, found


def check_digits(found: dict[str, float]) -> None:
    """The scale's gradient among them, a difference of large sums: of the dense form it is further off."""
    assert max(found.values()) < 1e-5, found


@KINDS
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_errors_against_float64(kind: str, scale: float) -> None:
    left, right, ids = phrases(96, 64)
    expected = summed(results(dense_pairs, kind, left, right, scale=scale), ids)
    got = on_device(kind, left.float(), right.float(), scale=scale, text_ids=ids)
    found = errors(summed(got, ids), expected)
    if scale < 100:
        assert max(found.values()) < 3e-6, found
    check_digits(found)


@pytest.mark.parametrize("ids", [False, True])
def test_rows_of_one_rank_against_the_texts_of_the_world(ids: bool) -> None:
    """Every output, and what comes back from each, for rows in the middle."""
    left, right, text_ids = phrases(80, 24, copies=0.4)
    mask = torch.rand(80, generator=torch.Generator().manual_seed(1)) < 0.8
    left = left[20:50]
    made = []
    for dtype, form in ((torch.float64, dense_pairs), (torch.float32, fused)):
        own, texts = left.to(dtype).clone().requires_grad_(), right.to(dtype).clone().requires_grad_()
        scale = torch.tensor(20.0, dtype=dtype, requires_grad=True)
        options = {"text_ids": text_ids} if ids and form is fused else {}
        pairs = form(own, texts, mask, 20, 0.9, **options)
        positive, rows, columns = pairs.logsumexps(scale)
        columns = columns[pairs.text_index]  # one for each text
        weight = torch.linspace(0.5, 2, 80, dtype=dtype)
        value = ((positive + rows) * weight[20:50])[pairs.row_mask].sum() + (columns * weight)[mask].sum()
        value.backward()
        right_grad = torch.zeros_like(right).index_add_(0, text_ids, texts.grad.double())
        made.append({"value": value.detach(), "left": own.grad, "right": right_grad, "scale": scale.grad})
    found = errors(made[1], made[0])
    assert max(found.values()) < 2e-6, found


def test_a_solved_batch_and_a_lone_outlier_lose_no_digits() -> None:
    """The largest weight says nothing of the others: pieces of half precision must hold both."""
    left, right, _ = phrases(96, 32)
    left[1:] = right[1:] + 0.02 * left[1:]  # found at once, all but the first
    left[0] = right[5]
    expected = results(dense_pairs, "softmax", left, right, scale=60.0, threshold=None)
    got = on_device("softmax", left.float(), right.float(), scale=60.0, threshold=None)
    check_digits(errors(got, expected))


def test_where_all_texts_are_the_same_there_is_no_negative() -> None:
    left, right, _ = phrases(40, 24)
    same = right[:1].expand(40, -1).contiguous()
    got = on_device("softmax", left.float(), same.float())
    assert got["loss"] == 0
    assert got["share"] == 1
    assert not got["left"].any()


def test_it_is_chosen_where_triton_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right, ids = phrases(40, 24)
    monkeypatch.setattr(losses, "runs_triton", lambda device: True)
    find = partial(losses.find_pairs, left.float()[:, None], right.float()[:, None], None, 0.9)
    assert type(find(ids[:, None])).__name__ == "DensePairs"
    monkeypatch.setattr(losses, "most_dense_pairs", lambda device: 100)
    assert type(find(ids[:, None])).__name__ == "FusedPairs"
    exact = losses.find_pairs(left[:, None], right[:, None], None, 0.9)  # no kernel knows float64
    assert type(exact).__name__ == "TiledPairs"
    assert isinstance(softmax_loss(find(), torch.tensor(10.0)), Tensor)


class Started:
    """In place of a kernel: notes that it was started."""

    def __init__(self, name: str, started: list[str]) -> None:
        self.name, self.started = name, started

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments, **constants: self.started.append(self.name)


@KINDS
def test_nothing_waits_for_the_device(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted with kernels that do nothing, as the interpreter itself waits."""
    kernels = importlib.import_module("open_cloc.objectives.pairs.fused_triton")
    started: list[str] = []
    for name in ("_forward", "_weights"):
        monkeypatch.setattr(kernels, name, Started(name, started))
    left, right, ids = phrases(90, 24, copies=0.6)
    mask = torch.rand(90) < 0.7
    left, right = left.float().requires_grad_(), right.float().requires_grad_()
    scale, bias = torch.tensor([10.0, -5.0], requires_grad=True)
    with Watched() as watched:
        pairs = fused_pairs(left, right, mask, 0, 0.9, ids)
        loss = softmax_loss(pairs, scale) if kind == "softmax" else sigmoid_loss(pairs, scale, bias)
        (loss + 0 * filtered_share(pairs)).backward()
    assert started[0] == "_forward"
    assert set(started[1:]) == {"_weights"}
    assert watched.waits == []
