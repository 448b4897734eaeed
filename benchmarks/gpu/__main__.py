"""The step on one GPU against its aims, one table in under 6 minutes: python -m benchmarks.gpu

    --only steps varied pairs boxes large train demo     some of the parts

Without a GPU every row is run once in small, which shows that it runs and nothing else. Ratios are of one
run; the JSON (`runs/bench/gpu.json`) says which card, which torch and which commit.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.gpu.boxes import measure_boxes
from benchmarks.gpu.pairs import measure_pairs
from benchmarks.gpu.runs import measure_demo, measure_train
from benchmarks.gpu.sizes import DRY, FULL, Sizes
from benchmarks.gpu.steps import COMPILED, EAGER, measure_steps, measure_varied
from benchmarks.timing import verdict, write_json


@dataclass
class Options:
    """Attributes:
    only: Parts to run; all by default.
    """

    only: tuple[str, ...] = ("steps", "varied", "pairs", "boxes", "large", "train", "demo")


@dataclass
class Bench:
    """What has been measured.

    Attributes:
        sizes: How large everything is.
        device: Where.
        found: Numbers by part.
        aims: What was aimed at and reached.
    """

    sizes: Sizes
    device: torch.device
    found: dict[str, Any] = field(default_factory=dict)
    aims: list[dict[str, Any]] = field(default_factory=list)

    def aim(self, what: str, got: float, aim: float, *, least: bool = False) -> None:
        if self.device.type == "cuda":
            self.aims.append(verdict(what, got, aim, least=least))
        else:
            print(f"{what}: ran")

    def write(self) -> Path:
        """What has been measured so far."""
        card = torch.cuda.get_device_name() if self.device.type == "cuda" else "none"
        return write_json("gpu", {"card": card, "commit": commit(), **self.found, "aims": self.aims})

    def steps(self) -> None:
        sizes = self.sizes
        made = measure_steps(sizes.towers, sizes.batch_size, self.device, sizes.rounds, ("prompt", "mean"))
        self.found["steps"], ms = made, made["ms"]
        self.aim("CLOC step `prompt` over open_clip's eager CLIP step", ms["prompt"] / ms[EAGER], 0.80)
        self.aim("CLOC step `prompt` over our compiled CLIP step", ms["prompt"] / ms[COMPILED], 1.10)
        self.aim("CLOC step `mean` over open_clip's eager CLIP step", ms["mean"] / ms[EAGER], 1.00)

    def varied(self) -> None:
        sizes = self.sizes
        made = measure_varied(sizes.towers, sizes.batch_size, sizes.batches, self.device, sizes.rounds)
        self.found["varied"] = made
        self.aim(
            "other texts each batch, speed over the same batch's",
            made["same"] / made["varied"],
            0.95,
            least=True,
        )
        self.aim("graphs compiled after the first round of shapes", made["recompiled"], 0)

    def pairs(self) -> None:
        sizes = self.sizes
        made = measure_pairs(sizes.pairs, sizes.wide, sizes.width, self.device, sizes.rounds)
        self.found["pairs"], rows = made, made["rows"]
        for count, aim in zip(sizes.pairs[-2:], (1.2, 0.8)):
            row = rows[str(count)]
            self.aim(
                f"region loss of {count} pairs over dense in TF32", row["ours"] / row["dense, TF32"], aim
            )
        self.aim(f"region loss of {sizes.pairs[-1]} pairs, MB", rows[str(sizes.pairs[-1])]["ours_mb"], 600)
        rank, world = sizes.wide
        self.aim(f"region loss of {rank} rows by {world} texts, ms", rows["wide"]["ours"], 8)
        self.aim("region loss, worst error at scale 100", max(made["errors"].values()), 1e-5)

    def boxes(self) -> None:
        sizes = self.sizes
        ms = measure_boxes(sizes.towers, sizes.pictures, sizes.boxes, self.device, sizes.rounds)
        self.found["boxes"] = ms
        for readout, aim in (("mean", 0.55), ("prompt", 0.12)):
            what = f"{sizes.boxes} boxes of {sizes.pictures} pictures, `{readout}`, over the image pass"
            self.aim(what, ms[readout] / ms["image pass"], aim)

    def large(self) -> None:
        sizes = self.sizes
        made = measure_steps(
            sizes.large_towers, sizes.large_batch_size, self.device, max(1, sizes.rounds // 2), ("prompt",)
        )
        self.found["large"], ms = made, made["ms"]
        self.aim("larger towers: CLOC step `prompt` over eager CLIP", ms["prompt"] / ms[EAGER], 0.85)

    def train(self) -> None:
        self.found["train"] = made = measure_train(self.sizes, self.device)
        cloc, clip = made["cloc"], made["clip"]
        self.aim("`open-cloc train`, `prompt`, images/s", cloc["images_per_s"], 2400, least=True)
        self.aim("`open-cloc train`, CLIP alone, images/s", clip["images_per_s"], 3000, least=True)
        if "steps" in self.found:
            alone = 1000 * self.sizes.batch_size / self.found["steps"]["ms"]["prompt"]
            self.aim("`open-cloc train` over its step alone", cloc["images_per_s"] / alone, 0.95, least=True)

    def demo(self) -> None:
        made = measure_demo(self.sizes)
        self.found["demo"] = made
        self.aim("`open-cloc demo`, seconds of training", made["training_seconds"], 60)


def main(options: Options) -> int:
    """Run the parts; 1 if one of them fails, which leaves the others."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    bench = Bench(FULL if on_gpu else DRY, device)
    card = torch.cuda.get_device_name() if on_gpu else "no GPU: a dry run, whose numbers say nothing"
    print(f"{card}, torch {torch.__version__}", flush=True)
    failed: dict[str, str] = {}
    for name in options.only:
        part: Callable[[], None] = getattr(bench, name)
        print(f"\n=== {name}", flush=True)
        started = time.monotonic()
        try:
            part()
        except Exception as error:  # minutes on a GPU are rare: the other parts still run
            failed[name] = f"{type(error).__name__}: {error}"[:2000]
            print(f"FAILED {failed[name]}", flush=True)
        print(f"({time.monotonic() - started:.0f} s) {bench.write()}", flush=True)  # all else may be cut off
    print(f"\n{table(bench.aims)}" if on_gpu else f"\nevery part ran but {len(failed)}")
    return 1 if failed else 0


def table(aims: list[dict[str, Any]]) -> str:
    """Markdown, a line an aim."""
    lines = ["| what | reached | aim | |", "|---|---|---|---|"]
    for aim in aims:
        sign, met = ">=" if aim["least"] else "<=", "met" if aim["met"] else "SHORT"
        lines.append(f"| {aim['what']} | {aim['got']:.4g} | {sign} {aim['aim']:g} | {met} |")
    return "\n".join(lines)


def commit() -> str:
    """Of the working tree, where git knows."""
    made = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return made.stdout.strip() or "unknown"


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options)))
