"""The region loss, forward and backward: the form that is chosen, against the dense one in TF32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.clock import peak_bytes, take_turns
from benchmarks.region_loss import THRESHOLD, Pairs, make_pairs
from open_cloc.objectives.pairs.losses import find_pairs, softmax_loss
from open_cloc.samples import World

ERROR_SCALE = 100.0


def our_step(
    pairs: Pairs, device: torch.device, rows: int = 0, scale: float = 14.3
) -> Callable[[], list[Tensor]]:
    """Ours on some of the rows; returns the loss and its gradients."""
    count = rows or len(pairs.texts)
    regions = pairs.regions[:count].to(device).requires_grad_()
    texts, ids = pairs.texts.to(device).requires_grad_(), pairs.ids.to(device)
    factor = torch.tensor([scale], device=device, requires_grad=True)
    world = World(0, count) if rows else World()

    def step() -> list[Tensor]:
        regions.grad = texts.grad = factor.grad = None
        found = find_pairs(regions[:, None], texts[:, None], None, THRESHOLD, ids[:, None], world=world)
        loss = softmax_loss(found, factor, world)
        loss.backward()
        return [loss.detach(), *(x.grad for x in (regions, texts, factor) if x.grad is not None)]

    return step


def dense_step(pairs: Pairs, device: torch.device, scale: float = 14.3) -> Callable[[], object]:
    """What one writes first: the matrix of all pairs, twice through `cross_entropy`, with TF32 allowed."""
    regions, texts = (x.to(device).requires_grad_() for x in pairs[:2])
    factor = torch.tensor(scale, device=device, requires_grad=True)

    def step() -> None:
        torch.set_float32_matmul_precision("high")
        try:
            left, right = F.normalize(regions, dim=1), F.normalize(texts, dim=1)
            with torch.no_grad():
                excluded = (right @ right.T > THRESHOLD).fill_diagonal_(False)
            logits = (factor * left @ right.T).masked_fill(excluded, -torch.inf)
            labels = torch.arange(len(logits), device=device)
            (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)).div(2).backward()
        finally:
            torch.set_float32_matmul_precision("highest")

    return step


def exact_step(pairs: Pairs, scale: float) -> list[Tensor]:
    """The loss and its gradients in float64."""
    regions, texts = (x.double().detach().requires_grad_() for x in pairs[:2])
    factor = torch.tensor([scale], dtype=torch.float64, requires_grad=True, device=regions.device)
    found = find_pairs(regions[:, None], texts[:, None], None, THRESHOLD, None)
    loss = softmax_loss(found, factor)
    loss.backward()
    return [loss.detach(), *(x.grad for x in (regions, texts, factor) if x.grad is not None)]


def worst_error(pairs: Pairs, device: torch.device) -> dict[str, float]:
    """Relative errors of the loss and its gradients at scale 100; gradients of copies summed."""
    expected = exact_step(pairs, ERROR_SCALE)
    made = [x.detach().double().cpu() for x in our_step(pairs, device, scale=ERROR_SCALE)()]
    for found in (made, expected):
        found[2] = torch.zeros_like(found[2]).index_add_(0, pairs.ids, found[2])
    names = ("loss", "regions", "texts", "scale")
    return {n: float((a - b).norm() / b.norm()) for n, a, b in zip(names, made, expected)}


def measure_pairs(
    sizes: tuple[int, ...], wide: tuple[int, int], width: int, device: torch.device, rounds: int
) -> dict[str, Any]:
    """Milliseconds and memory by number of pairs, of one rank of a large world, and errors."""
    rows: dict[str, Any] = {}
    for count in sizes:
        pairs = make_pairs(count, width)
        runs: dict[str, Callable[[], object]] = {
            "ours": our_step(pairs, device),
            "dense, TF32": dense_step(pairs, device),
        }
        times = take_turns(runs, device, rounds)
        rows[str(count)] = {**times, "ours_mb": peak_bytes(runs["ours"], device) / 2**20}
    count, world = wide
    times = take_turns({"ours": our_step(make_pairs(world, width), device, rows=count)}, device, rounds)
    rows["wide"] = times
    return {"rows": rows, "errors": worst_error(make_pairs(min(sizes[-1], 4096), width), device)}
