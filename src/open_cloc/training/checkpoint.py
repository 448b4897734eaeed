"""Checkpoints: a model folder plus what the run needs to go on exactly, written whole or not at all.

`checkpoints/step_00001000/` holds `config.json` and `model.safetensors`, so that any command takes it as
`--weights`, and `training_state.pt`.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from open_cloc.model import weights
from open_cloc.model.cloc import CLOC

STATE_NAME = "training_state.pt"
WRITING = ".writing_"
STEP_FOLDER = re.compile(r"step_(\d{8})")


def save_checkpoint(
    folder: Path, model: CLOC, optimizer: torch.optim.Optimizer, *, step: int, samples_seen: int, keep: int
) -> Path:
    """Write `folder/step_XXXXXXXX` under a temporary name, rename it, then drop all but the newest `keep`."""
    for left_over in folder.glob(f"{WRITING}*"):  # by a run that was killed while it saved
        shutil.rmtree(left_over)
    target = folder / f"step_{step:08d}"
    temporary = folder / f"{WRITING}{target.name}"
    weights.save_folder(model, temporary)
    state = {
        "step": step,
        "samples_seen": samples_seen,
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "cuda_random": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    torch.save(state, temporary / STATE_NAME)
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

    Args:
        resume: What the user gave.
        folder: Where the run keeps its checkpoints, and will write further ones.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the run has come further than the one named.
    """
    own = list_checkpoints(folder)
    if resume == "latest":
        if not own:
            raise FileNotFoundError(f"nothing to resume: {folder} holds no checkpoint")
        return own[-1]
    path = Path(resume)
    if not (path / STATE_NAME).is_file():
        raise FileNotFoundError(f"{path} is no checkpoint to resume from: it holds no {STATE_NAME}")
    step = read_training_state(path)["step"]
    if own and int(own[-1].name.removeprefix("step_")) > step:
        raise ValueError(
            f"run folder {folder.parent} has come to {own[-1].name} already: to go on from step {step} of "
            f"{path}, give another --run.output"
        )
    return path


def load_checkpoint(path: Path, model: CLOC, optimizer: torch.optim.Optimizer, *, batch_size: int) -> int:
    """Put a run back where it was; returns its step.

    Learning rates and the like stay as the optimizer has them, so that a resumed run may change them.

    Raises:
        ValueError: If the checkpoint is of another architecture, another set of learned parameters or another
            batch size.
    """
    state = read_training_state(path)
    if state["samples_seen"] != state["step"] * batch_size:
        raise ValueError(
            f"{path} was written with batches of {state['samples_seen'] // state['step']}; got batches of "
            f"{batch_size}: the samples to come would not be those of an unbroken run"
        )
    weights.load_strictly(model, weights.read_state(path / weights.WEIGHTS_NAME), str(path))
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    saved = state["optimizer"]["param_groups"]
    if [group["names"] for group in saved] != [group["names"] for group in settings]:
        raise ValueError(
            f"{path} was written by a run with other groups of learned parameters: resume it with the same "
            "locked towers, layer decay and Prompter learning rate"
        )
    optimizer.load_state_dict(state["optimizer"])
    for group, setting in zip(optimizer.param_groups, settings):
        group.update(setting)
    torch.set_rng_state(state["random"])
    if state["cuda_random"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda_random"])
    return state["step"]


def read_training_state(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote beside the weights."""
    try:
        return torch.load(path / STATE_NAME, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, UnpicklingError) as error:
        raise ValueError(f"{path / STATE_NAME} cannot be read: {str(error).splitlines()[0]}") from error
