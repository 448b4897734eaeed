"""What only a GPU shows: `pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch
from tiny_recipes import start, with_run

from open_cloc.model.cloc import CLOC
from open_cloc.training.compile import compile_blocks
from open_cloc.training.loop import build_objectives, train
from open_cloc.training.optim import build_optimizer
from open_cloc.training.ranks import Ranks
from open_cloc.training.recipe import Recipe
from open_cloc.training.step import Run, train_step
from open_cloc.training.watch import Watch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU of CUDA"),
]


def on_gpu(recipe: Recipe) -> tuple[Run, object]:
    run, batch = start(recipe)
    device = torch.device("cuda")
    model = run.model.to(device)
    objectives = build_objectives(recipe, model)
    optimizer = build_optimizer(model, objectives, recipe.optim)
    made = compile_blocks(model, recipe.run.compile, device)
    return Run(recipe, Ranks(0, 1, device), run.folder, model, objectives, model, optimizer, made), batch


@pytest.mark.parametrize("compiled", ["off", "on"])
def test_a_step_never_waits(tiny: Recipe, compiled: str) -> None:
    """torch raises at every operation that would wait for the device."""
    run, batch = on_gpu(with_run(tiny, precision="bf16", compile=compiled))
    batch = batch.pin_memory()
    watch = Watch(0, 0)
    for step in range(3):  # compiles, plans, fills caches
        watch.put(step + 1, train_step(run, batch, step))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(3, 6):
            watch.put(step + 1, train_step(run, batch, step))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    watch.settle()
    assert watch.skipped == 0


def test_a_run_from_start_to_end(tiny: Recipe) -> None:
    recipe = with_run(tiny, device="cuda", precision="bf16", compile="on")
    assert isinstance(CLOC.from_pretrained(train(recipe)), CLOC)
