"""Checkpoints: a model folder plus what the run needs to go on exactly, written whole or not at all.

`checkpoints/step_00001000/` holds `config.json` and `model.safetensors`, so that any command takes it as
`--weights`, and `training_state.pt`.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch

from open_cloc.model import weights
from open_cloc.model.cloc import CLOC

STATE_NAME = "training_state.pt"
STEP_FOLDER = re.compile(r"step_(\d{8})")


def save_checkpoint(
    folder: Path, model: CLOC, optimizer: torch.optim.Optimizer, *, step: int, samples_seen: int, keep: int
) -> Path:
    """Write `folder/step_XXXXXXXX` under a temporary name, rename it, then drop all but the newest `keep`."""
    target = folder / f"step_{step:08d}"
    temporary = folder / f".writing_{target.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    weights.save_folder(model, temporary)
    state = {
        "step": step,
        "samples_seen": samples_seen,
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "cuda_random": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    torch.save(state, temporary / STATE_NAME)
    if target.exists():  # a resumed run that has come by here again
        shutil.rmtree(target)
    temporary.rename(target)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if STEP_FOLDER.fullmatch(path.name))


def find_checkpoint(resume: str, folder: Path) -> Path:
    """The checkpoint that `--resume` names: `latest`, or a path.

    Raises:
        FileNotFoundError: If there is none.
    """
    if resume != "latest":
        path = Path(resume)
        if not (path / STATE_NAME).is_file():
            raise FileNotFoundError(f"{path} is no checkpoint to resume from: it holds no {STATE_NAME}")
        return path
    found = list_checkpoints(folder)
    if not found:
        raise FileNotFoundError(f"nothing to resume: {folder} holds no checkpoint")
    return found[-1]


def load_checkpoint(path: Path, model: CLOC, optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """Put a run back where it was; returns its step and samples seen.

    Raises:
        ValueError: If the checkpoint is of another architecture or another set of learned parameters.
    """
    state = read_training_state(path)
    weights.load_strictly(model, weights.read_state(path / weights.WEIGHTS_NAME), str(path))
    try:
        optimizer.load_state_dict(state["optimizer"])
    except ValueError as error:
        raise ValueError(f"{path} was written by a run with other optimizer settings: {error}") from error
    torch.set_rng_state(state["random"])
    if state["cuda_random"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda_random"])
    return state["step"], state["samples_seen"]


def read_training_state(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote beside the weights."""
    try:
        return torch.load(path / STATE_NAME, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path / STATE_NAME} cannot be read: {error}") from error
