"""Whole runs by the command line: training on shards, and the demo."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.gpu.sizes import TINY, Sizes
from open_cloc.data.scenes.dataset import SceneDataset
from open_cloc.data.scenes.vocabulary import SceneConfig
from open_cloc.data.shards.write import write_shards
from open_cloc.samples import RegionSample
from open_cloc.training.recipe import Recipe
from open_cloc.training.recipes import paper_vit_b16

SETTLED = 20  # steps until workers, shapes and graphs are there


def command(*arguments: str) -> None:
    """An `open-cloc` command.

    Raises:
        RuntimeError: If it fails; with its last words.
    """
    done = subprocess.run(
        [sys.executable, "-m", "open_cloc.cli", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"open-cloc {arguments[0]}: {done.stderr[-2000:]}")


def tiny() -> Recipe:
    """The paper's run with towers that a CPU trains at once."""
    recipe = paper_vit_b16()
    return replace(recipe, model=replace(recipe.model, towers=TINY))


def photos(count: int) -> Iterator[RegionSample]:
    """Scenes of 256 pixels under noise, as JPEGs of a photo's size and cost."""
    scenes = SceneDataset(SceneConfig(image_size=256), "train", count)
    draw = np.random.default_rng(0)
    for number in range(count):
        scene = scenes[number]
        coarse = Image.fromarray(draw.integers(0, 255, (64, 64, 3), np.uint8)).resize((256, 256))
        mixed = Image.blend(Image.fromarray(scene.pixels()), coarse, 0.3)
        buffer = io.BytesIO()
        mixed.save(buffer, "JPEG", quality=90)
        yield replace(scene, image=buffer.getvalue())


def measure_train(sizes: Sizes, device: torch.device) -> dict[str, dict[str, float]]:
    """Images a second of `open-cloc train`, CLOC and CLIP, on shards of pictures of 256 pixels."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_shards(photos(sizes.shard_samples), folder / "shards", samples_per_shard=256)
        return {
            name: train_on(folder / "shards", folder / name, sizes, device, num_regions)
            for name, num_regions in {"cloc": 4, "clip": 0}.items()
        }


def train_on(
    shards: Path, output: Path, sizes: Sizes, device: torch.device, num_regions: int
) -> dict[str, float]:
    """What a run's log says past its first steps."""
    steps = sizes.train_steps
    command(
        "train", "benchmarks.gpu.runs:tiny" if sizes.towers is TINY else "paper-vit-b16",
        "--data.train", f"shards:{shards}",
        "--data.loader.num-regions", str(num_regions),
        "--model.prompter.readout", "prompt",
        "--optim.warmup", str(max(1, steps // 4)),
        "--run.global-batch-size", str(sizes.batch_size),
        "--run.samples", str(steps * sizes.batch_size),
        "--run.device", device.type,
        "--run.log-steps", str(max(1, steps // 6)),
        "--run.save-minutes", "1000",
        "--run.output", str(output),
    )  # fmt: skip
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    settled = [line for line in lines if line["step"] > SETTLED] or lines[-1:]
    mean = {
        name: sum(line[name] for line in settled) / len(settled) for name in ("images_per_s", "data_time")
    }
    return {**mean, "graphs": lines[-1].get("graphs", 0)}


def measure_demo(sizes: Sizes) -> dict[str, Any]:
    """Seconds that the demo trains, and its figures."""
    with tempfile.TemporaryDirectory() as made:
        output = Path(made) / "demo"
        command("demo", "--output", str(output), "--samples", str(sizes.demo_samples), "--scenes", "200")
        return json.loads((output / "demo.json").read_text())
