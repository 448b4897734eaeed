"""A run's folder: what lies in it, whose it is, and when it is removed again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from open_cloc.errors import ExistingFileError
from open_cloc.files import is_free, locked, write_text
from open_cloc.shown import hide_secrets
from open_cloc.training import checkpoint
from open_cloc.training.ranks import Ranks
from open_cloc.training.recipe import Recipe
from open_cloc.training.report import LOG_NAME

START_FOLDER = "start"  # the model before the first step
CHECKPOINTS_FOLDER = "checkpoints"
FINAL_FOLDER = "model"
RECIPE_NAME = "recipe.json"


@contextmanager
def open_run_folder(recipe: Recipe, resume: str, ranks: Ranks) -> Iterator[tuple[Path, Path | None]]:
    """The run folder, which is this run's alone, and the checkpoint to go on from.

    A new run that fails in its first step, or before, leaves no folder behind. What was trained is kept.
    """
    folder = Path(recipe.run.output)
    with ExitStack() as held:
        found = ranks.on_first(lambda: _take_run_folder(folder, resume, held))
        with _removed_if_nothing_came(folder, resume, ranks):
            yield folder, found


@contextmanager
def _removed_if_nothing_came(folder: Path, resume: str, ranks: Ranks) -> Iterator[None]:
    try:
        yield
    except BaseException:
        log = folder / LOG_NAME
        logged = log.is_file() and log.stat().st_size > 0
        kept = resume or logged or (folder / CHECKPOINTS_FOLDER).is_dir()
        if ranks.is_first and not kept:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _take_run_folder(folder: Path, resume: str, held: ExitStack) -> Path | None:
    """Look before the folder is touched, and again once it is ours: another run may just have ended in it."""
    _find_start(folder, resume)
    held.enter_context(locked(folder))
    return _find_start(folder, resume)


def _find_start(folder: Path, resume: str) -> Path | None:
    # A run that died before its first checkpoint has written its recipe, which tells it from other folders.
    own = resume == "auto" and (folder / RECIPE_NAME).is_file()
    found = checkpoint.find_checkpoint(resume, folder / CHECKPOINTS_FOLDER) if resume else None
    if found is None and not own and not is_free(folder):
        raise ExistingFileError(
            f"run folder {folder} is not empty: go on with --resume latest, or give another --run.output"
        )
    return found


def write_recipe(recipe: Recipe, folder: Path) -> None:
    """Write down the run, without passwords."""
    write_text(folder / RECIPE_NAME, json.dumps(hide_secrets(asdict(recipe)), indent=2) + "\n")
