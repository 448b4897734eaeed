"""Training steps: CLOC's own `train_step` against open_clip's CLIP step of the same towers and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

from benchmarks import training_step
from benchmarks.gpu.clock import peak_bytes, take_turns
from open_cloc.data.collate import LoaderConfig
from open_cloc.model.cloc import CLOC
from open_cloc.model.create import ModelConfig, build_model
from open_cloc.model.prompter import PrompterConfig
from open_cloc.samples import RegionBatch
from open_cloc.training import optim
from open_cloc.training.compile import compile_blocks, num_graphs
from open_cloc.training.loop import build_objectives, prepare_model
from open_cloc.training.ranks import Ranks
from open_cloc.training.recipe import Compile, DataConfig, Recipe, RunConfig
from open_cloc.training.step import Run, train_step

CALLS = 4  # steps in a row: a run's host is a step ahead of its device
EAGER, COMPILED = "CLIP, open_clip's eager step", "CLIP, our compiled blocks"


def make_batch(model: CLOC, size: int, seed: int) -> tuple[RegionBatch, Tensor]:
    """The CPU benchmark's batch with ids, and its captions at full length."""
    made, captions, _ = training_step.make_batch(training_step.Options(batch_size=size), seed)
    side = model.preprocess.image_size[0]
    batch = replace(
        made,
        images=made.images[..., :side, :side].contiguous(),
        content_boxes=made.content_boxes.contiguous(),
        region_text_ids=made.region_text_index.clone(),
    )
    return batch.pin_memory() if torch.cuda.is_available() else batch, captions


def make_run(
    towers: str | Mapping[str, Any], readout: str, device: torch.device, compiled: Compile = "auto"
) -> Run:
    """A run of one process, as `train` makes it, with random weights and compiled blocks where they pay."""
    torch.manual_seed(0)
    recipe = Recipe(
        name="bench",
        model=ModelConfig(towers=towers, prompter=PrompterConfig(readout=readout)),  # type: ignore[arg-type]
        data=DataConfig(loader=LoaderConfig(num_regions=training_step.NUM_REGIONS)),
        run=RunConfig(precision="bf16"),
    )
    model = build_model(recipe.model).to(device).train()
    objectives = build_objectives(recipe, model)
    prepare_model(model, objectives, recipe)
    made = compile_blocks(model, compiled, device)
    optimizer = optim.build_optimizer(model, objectives, recipe.optim)
    return Run(recipe, Ranks(0, 1, device), Path(), model, objectives, model, optimizer, made)


def clip_step(
    model: CLOC, batch: RegionBatch, captions: Tensor, device: torch.device
) -> Callable[[], object]:
    """open_clip's: its modules, its loss, captions padded to the context."""
    loss = open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(model.clip.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        images, ids = batch.images.to(device, non_blocking=True), captions.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16):
            image, text, scale = model.clip(model.normalize_pixels(images), ids)
        optimizer.zero_grad()
        loss(image.float(), text.float(), scale).backward()
        optimizer.step()

    return step


def measure_steps(
    towers: str | Mapping[str, Any],
    batch_size: int,
    device: torch.device,
    rounds: int,
    readouts: tuple[str, ...],
) -> dict[str, Any]:
    """Milliseconds, peak memory and graphs of each step."""
    times: dict[str, float] = {}
    memory: dict[str, int] = {}
    for name in (EAGER, COMPILED):
        run = make_run(towers, "prompt", device, "off" if name == EAGER else "auto")
        batch, captions = make_batch(run.model, batch_size, 0)
        step = clip_step(run.model, batch, captions, device)
        times |= take_turns({name: step}, device, rounds, calls=CALLS)
        memory[name] = peak_bytes(step, device)
        del run, step
    for readout in readouts:
        run = make_run(towers, readout, device)
        batch, _ = make_batch(run.model, batch_size, 0)

        def own(run: Run = run, batch: RegionBatch = batch) -> None:
            train_step(run, batch, 1)

        times |= take_turns({readout: own}, device, rounds, calls=CALLS)
        memory[readout] = peak_bytes(own, device)
        del run, own
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return {"ms": times, "peak_mb": {name: size / 2**20 for name, size in memory.items()}}


def measure_varied(
    towers: str | Mapping[str, Any], batch_size: int, batches: int, device: torch.device, rounds: int
) -> dict[str, float]:
    """A step on the same batch again and again, and on other texts each time; graphs made meanwhile."""
    run = make_run(towers, "prompt", device)
    made = [make_batch(run.model, batch_size, seed)[0] for seed in range(batches)]
    train_step(run, made[0], 0)
    for batch in made:  # every shape once
        train_step(run, batch, 0)
    before, turns = num_graphs(), cycle(made)
    competitors: dict[str, Callable[[], object]] = {
        "same": lambda: train_step(run, made[0], 1),
        "varied": lambda: train_step(run, next(turns), 1),
    }
    times = take_turns(competitors, device, rounds, calls=batches)
    return {**times, "graphs": float(num_graphs()), "recompiled": float(num_graphs() - before)}
