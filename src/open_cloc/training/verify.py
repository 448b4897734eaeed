"""`open-cloc train RECIPE --verify-resume`: does this recipe, with its data, resume exactly?"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from open_cloc.errors import UserError
from open_cloc.model import sharded
from open_cloc.training.checkpoint import list_checkpoints
from open_cloc.training.loop import train
from open_cloc.training.ranks import Ranks
from open_cloc.training.recipe import Recipe
from open_cloc.training.report import LOG_NAME
from open_cloc.training.run_folder import CHECKPOINTS_FOLDER

STEPS, STOP = 6, 3
# What a line of the log says of the machine rather than of the run.
# Of the clock and of the process, which compiles anew where a run goes on.
NOT_OF_THE_RUN = ("images_per_s", "step_time", "data_time", "graphs")


@dataclass(frozen=True)
class Verdict:
    """Whether a run resumed exactly, and that in one sentence."""

    exact: bool
    text: str


def verify_resume(recipe: Recipe, ranks: Ranks) -> Verdict:
    """Compare an unbroken run of a few steps with one that is saved, loaded and continued.

    Weights, optimizer state and logged losses must agree bit for bit. All happens in a temporary folder.

    Args:
        recipe: The user's, with its own data, workers, precision and accumulation.
        ranks: The processes of the run, all of which must call this.

    Raises:
        UserError: If the recipe is too short to be interrupted.
    """
    steps = min(STEPS, recipe.run.samples // recipe.run.global_batch_size)
    if steps < 2:
        raise UserError(
            f"run.samples must be at least two batches to verify resuming; got {recipe.run.samples}"
        )
    stop = min(STOP, steps - 1)
    with tempfile.TemporaryDirectory(
        prefix="open-cloc-verify-"
    ) as made:  # every rank makes one: the first's counts
        folder = Path(ranks.on_first(lambda: made))
        whole, broken = (_bare(recipe, folder / name) for name in ("whole", "broken"))
        train(whole, stop_at=steps)
        train(broken, stop_at=stop)
        train(broken, resume="latest", stop_at=steps)
        what = f"{steps} steps == {stop} + save + load + {steps - stop}"
        verdict = ranks.on_first(lambda: _compare(folder / "whole", folder / "broken", what))
        return verdict


def _bare(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe without what takes time and does not matter here."""
    run = replace(
        recipe.run,
        output=str(folder),
        log_steps=1,
        save_steps=0,
        save_minutes=1e9,
        report_to=(),
        progress=False,
    )
    return replace(recipe, run=run, data=replace(recipe.data, probe=""))


def _compare(whole: Path, broken: Path, what: str) -> Verdict:
    one, other = (_last_state(folder) for folder in (whole, broken))
    unequal = [name for name in one if name not in other or not torch.equal(one[name], other[name])]
    if unequal or one.keys() != other.keys():
        name = min(unequal or set(other) - set(one))
        gaps = ((one[n].double() - other[n].double()).abs().max().item() for n in unequal if n in other)
        gap = max(gaps, default=float("inf"))
        count = f"{len(unequal)} of {len(one)} tensors differ, such as {name}, by up to {gap:g}"
        return Verdict(False, f"resume is not exact: {count} ({what})")
    if _losses(whole) != _losses(broken):
        return Verdict(False, f"resume is not exact: equal weights, but the logged losses differ ({what})")
    return Verdict(True, f"resume is exact: {what}, bit for bit ({len(one)} tensors and all losses)")


def _last_state(folder: Path) -> dict[str, torch.Tensor]:
    return sharded.read_tensors(list_checkpoints(folder / CHECKPOINTS_FOLDER)[-1])


def _losses(folder: Path) -> list[dict[str, float]]:
    lines = (folder / LOG_NAME).read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in NOT_OF_THE_RUN} for line in lines]
