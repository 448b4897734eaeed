"""What the tests of training share: scenes that cost nothing, and recipes with one part changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from open_cloc.data.loader import RegionLoader
from open_cloc.model import sharded
from open_cloc.model.create import ModelConfig, build_model
from open_cloc.model.weights import read_state
from open_cloc.objectives import Objectives
from open_cloc.samples import RegionBatch
from open_cloc.training import checkpoint, freeze, loop, optim
from open_cloc.training.ranks import Ranks
from open_cloc.training.recipe import Recipe
from open_cloc.training.step import Run

SCENES = "scenes:train,image_size=32,num_samples=1000"


def with_run(recipe: Recipe, **changes: Any) -> Recipe:
    return replace(recipe, run=replace(recipe.run, **changes))


def with_loader(recipe: Recipe, **changes: Any) -> Recipe:
    return replace(recipe, data=replace(recipe.data, loader=replace(recipe.data.loader, **changes)))


TERMS = ("image_text", "region_text", "grounding", "total", "grad_norm")


def with_optim(recipe: Recipe, **changes: Any) -> Recipe:
    return replace(recipe, optim=replace(recipe.optim, **changes))


def log_of(folder: str | Path) -> list[dict[str, float]]:
    lines = (Path(folder) / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def losses_of(folder: str | Path) -> list[list[float]]:
    """Step and every number that does not depend on the clock."""
    names = ("step", "samples_seen", "lr", "logit_scale", *TERMS)
    return [[line[name] for name in names] for line in log_of(folder)]


def assert_same_tensors(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def assert_same_run(one: str | Path, other: str | Path, step: int = 6) -> None:
    """Weights and optimizer state agree bit for bit."""
    folders = [Path(folder) / "checkpoints" / f"step_{step:08d}" for folder in (one, other)]
    tensors = [sharded.read_tensors(folder) for folder in folders]
    assert any(name.startswith("optimizer.") and name.endswith(".exp_avg_sq") for name in tensors[0])
    assert_same_tensors(*tensors)
    assert checkpoint.read_progress(folders[0]) == checkpoint.read_progress(folders[1])
    assert_same_tensors(
        *(read_state(Path(folder) / "model" / "model.safetensors") for folder in (one, other))
    )


def start(recipe: Recipe) -> tuple[Run, RegionBatch]:
    """A run and its first batch, as `train` makes them."""
    torch.manual_seed(recipe.run.seed)
    model = build_model(recipe.model)
    model.set_grad_checkpointing(recipe.run.grad_checkpointing)
    model.train()
    freeze.lock_towers(model, recipe.optim)
    loader = RegionLoader(
        loop.open_data(recipe),
        model.preprocess,
        model.tokenize,
        recipe.data.loader,
        batch_size=recipe.run.global_batch_size,
    )
    objectives = Objectives(recipe.objectives)
    optimizer = optim.build_optimizer(model, objectives, recipe.optim)
    ranks = Ranks(0, 1, torch.device("cpu"))
    run = Run(recipe, ranks, Path(recipe.run.output), model, objectives, model, optimizer)
    return run, next(iter(loader))


def joined(recipe: Recipe, timm_model: str, text_tower: Path) -> Recipe:
    spec = f"timm:{timm_model},text={text_tower},embed_dim=24,context_length=16"
    prompter = replace(recipe.model.prompter, width=32)
    return replace(recipe, model=ModelConfig(spec, image_size=32, prompter=prompter))
