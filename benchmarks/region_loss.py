"""Time, peak memory and errors of the region-text loss: python -m benchmarks.region_loss

Forward and backward pass of `region_text_loss` with the conflict filter, one thread, float32, against what
one writes first: the matrix of all pairs, twice through `cross_entropy`. Features look like CLIP's of short
phrases: a common mean (mean cosine 0.5), a spectrum that falls off, copies and near copies.
Smaller: --sizes 2048 4096 --shared-size 2048
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import NamedTuple

import torch
import tyro
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import PeakMemory, print_table, ratios, take_turns, verdict, write_json
from open_cloc.objectives import region_text_loss

THRESHOLD = 0.9
SCALE = 1 / 0.07  # where CLIP's training starts
AIMS = {
    "time, 8192 pairs": 0.6,
    "time, 16384 pairs": 0.6,
    "time, 32768 pairs": 0.4,
    "time, 8192 pairs, 50 % unique": 0.35,
    "time, 8192 pairs, 18 % unique": 0.14,
    "memory, 32768 pairs": 1 / 60,
    "memory, from 8192 to 32768 pairs": 4.4,
    "error at scale 14.3, 2048 pairs": 1e-6,
    "error at scale 100.0, 2048 pairs": 1e-5,
}


@dataclass
class Options:
    """Attributes:
    sizes: Numbers of region-text pairs.
    width: Of the shared embedding.
    rounds: How often each size up to 8,192 is timed; larger ones less, in proportion to their cost.
    shares: Shares of the texts that are unique, timed at `shared_size`.
    shared_size: Number of pairs for that.
    error_size: Number of pairs for errors against float64.
    dense_up_to: No dense form beyond this size, where its memory (17 floats a pair) would run out.
    """

    sizes: tuple[int, ...] = (2048, 4096, 8192, 16384, 32768)
    width: int = 512
    rounds: int = 5
    shares: tuple[float, ...] = (0.5, 0.18)
    shared_size: int = 8192
    error_size: int = 2048
    dense_up_to: int = 32768


class Pairs(NamedTuple):
    """Regions (n, D), their texts (n, D) and equal numbers for equal texts (n,)."""

    regions: Tensor
    texts: Tensor
    ids: Tensor


def unique_texts(n: int, width: int, generator: torch.Generator) -> Tensor:
    """(n, D) unit texts, a tenth of them nearly the same as another."""
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    spectrum = (torch.arange(width) + 4.0) ** -0.5
    texts = torch.randn(n, width, generator=generator) * spectrum / spectrum.norm()
    texts = F.normalize(texts @ rotation + rotation[0], dim=1)
    near = torch.randperm(n, generator=generator)[: n // 10]
    noise = F.normalize(torch.randn(len(near), width, generator=generator), dim=1)
    texts[near] = F.normalize(texts[near.flip(0)] + 0.3 * noise, dim=1)
    return texts


def make_pairs(n: int, width: int, share: float = 0.8) -> Pairs:
    """Pairs of which `share` have a text of their own; the others copy those, by Zipf's law."""
    generator = torch.Generator().manual_seed(0)
    count = int(share * n)
    texts = unique_texts(count, width, generator)
    zipf = 1 / (torch.arange(max(1, count // 20)) + 1.0)
    copies = torch.multinomial(zipf, n - count, replacement=True, generator=generator)
    ids = torch.cat([torch.arange(count), copies])[torch.randperm(n, generator=generator)]
    noise = F.normalize(torch.randn(n, width, generator=generator), dim=1)
    return Pairs(F.normalize(texts[ids] + 1.2 * noise, dim=1), texts[ids], ids)


def dense_loss(regions: Tensor, texts: Tensor, ids: Tensor, scale: Tensor) -> Tensor:
    """Eq. 2 over the matrix of all pairs; texts are told apart by their features alone."""
    regions, texts = F.normalize(regions, dim=1), F.normalize(texts, dim=1)
    with torch.no_grad():
        excluded = (texts @ texts.T > THRESHOLD).fill_diagonal_(False)
    logits = (scale * regions @ texts.T).masked_fill(excluded, -torch.inf)
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def tiled_loss(regions: Tensor, texts: Tensor, ids: Tensor, scale: Tensor) -> Tensor:
    """The package's, on its tiled form at these sizes; copies are found like any conflict."""
    return region_text_loss(regions[:, None], texts[:, None], scale, conflict_threshold=THRESHOLD)


def unique_loss(regions: Tensor, texts: Tensor, ids: Tensor, scale: Tensor) -> Tensor:
    """The same, told which texts are equal, as in training."""
    return region_text_loss(
        regions[:, None], texts[:, None], scale, conflict_threshold=THRESHOLD, text_ids=ids[:, None]
    )


LOSSES = {"dense": dense_loss, "tiled": tiled_loss, "tiled, ids": unique_loss}


def step(
    loss: Callable[..., Tensor], pairs: Pairs, scale: float = SCALE, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """One forward and backward pass: the loss and its gradients for regions, texts and scale."""
    regions, texts = (x.to(dtype).detach().requires_grad_() for x in pairs[:2])
    factor = torch.tensor(scale, dtype=dtype, requires_grad=True)
    value = loss(regions, texts, pairs.ids, factor)
    value.backward()
    return [value.detach(), *(x.grad for x in (regions, texts, factor) if x.grad is not None)]


def time_forms(names: list[str], pairs: Pairs, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds, and ratios to the first of the forms."""
    return ratios(take_turns({name: partial(step, LOSSES[name], pairs) for name in names}, rounds), names[0])


def peak_memory(name: str, n: int, width: int) -> int:
    """Bytes that a step needs beside features; in a process that has run nothing larger."""
    torch.set_num_threads(1)
    step(LOSSES[name], make_pairs(512, width))  # libraries allocate on first use
    pairs = make_pairs(n, width)
    with PeakMemory() as memory:
        step(LOSSES[name], pairs)
    return memory.peak


def fresh_peak_memory(name: str, n: int, width: int) -> int:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_memory, (name, n, width))


def worst_errors(pairs: Pairs, scale: float) -> dict[str, float]:
    """Largest relative error of the loss and its gradients, by form, against the dense form in float64."""
    expected = step(dense_loss, pairs, scale, torch.float64)
    errors = {}
    for name, loss in LOSSES.items():
        got = step(loss, pairs, scale)
        # A repeated text's gradient may go to any of its copies: sums over copies are compared.
        got[2], exact = (
            torch.zeros_like(expected[2]).index_add_(0, pairs.ids, x.double()) for x in (got[2], expected[2])
        )
        true = [*expected[:2], exact, expected[3]]
        errors[name] = max(float((a.double() - b).norm() / b.norm()) for a, b in zip(got, true))
    return errors


def measure(options: Options) -> dict:
    """Everything but the aims, as it goes into the JSON file."""
    result: dict = {"time": {}, "memory": {}, "unique": {}, "errors": {}}
    for n in options.sizes:
        names = list(LOSSES) if n <= options.dense_up_to else list(LOSSES)[1:]
        rounds = max(1, min(options.rounds, options.rounds * 8192**2 // n**2))
        rows = time_forms(names, make_pairs(n, options.width), rounds)
        result["memory"][n] = {name: fresh_peak_memory(name, n, options.width) for name in names}
        for name in names:
            rows[name]["peak MB"] = result["memory"][n][name] / 2**20
        result["time"][n] = rows
        print(f"\n{n:,} pairs, 20 % copies")
        print_table(rows)
    for share in options.shares:
        pairs = make_pairs(options.shared_size, options.width, share)
        result["unique"][share] = time_forms(["dense", "tiled, ids"], pairs, options.rounds)
        print(f"\n{options.shared_size:,} pairs, {share:.0%} unique texts")
        print_table(result["unique"][share])
    for scale in (14.3, 100.0):
        result["errors"][scale] = worst_errors(make_pairs(options.error_size, options.width), scale)
    print(f"\nlargest relative error against float64, {options.error_size:,} pairs")
    print_table({f"scale {scale:g}": errors for scale, errors in result["errors"].items()})
    return result


def reached(result: dict, options: Options) -> dict[str, float]:
    """What was measured, by the names of `AIMS`; other sizes have no aim."""
    found = {
        f"error at scale {scale}, {options.error_size} pairs": max(errors["tiled"], errors["tiled, ids"])
        for scale, errors in result["errors"].items()
    }
    for share, rows in result["unique"].items():
        name = f"time, {options.shared_size} pairs, {round(100 * share)} % unique"
        found[name] = rows["tiled, ids"]["ratio"]
    # The worse of the two: each has holes of its own to fall into.
    memory = {n: max(peak["tiled"], peak["tiled, ids"]) for n, peak in result["memory"].items()}
    for n, rows in result["time"].items():
        if "dense" in rows:
            found[f"time, {n} pairs"] = rows["tiled"]["ratio"]
            found[f"memory, {n} pairs"] = memory[n] / result["memory"][n]["dense"]
    if {8192, 32768} <= set(memory):
        found["memory, from 8192 to 32768 pairs"] = memory[32768] / memory[8192]
    return found


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    result = measure(options)
    found = reached(result, options)
    print()
    aims = [verdict(f"region loss, {name}", found[name], aim) for name, aim in AIMS.items() if name in found]
    print(write_json("region_loss", {"options": asdict(options), **result, "aims": aims}))


if __name__ == "__main__":
    main()
