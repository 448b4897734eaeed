"""Weights between two models' (WiSE-FT)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from open_cloc.canvas import CanvasConfig
from open_cloc.config import from_dict
from open_cloc.errors import ExistingFileError, MissingFileError, UserError
from open_cloc.model.cloc import CLOC
from open_cloc.model.prompter import PrompterConfig
from open_cloc.model.weights import WEIGHTS_NAME, load_strictly, read_config, read_folder_state

FREQUENCIES = ".position.frequencies"  # ends the name of a Prompter's random codes

ONLY_IN_TRAINING = ("dropout", "layer_drop")  # options of a Prompter that change no answer


def interpolate(first: Path, second: Path, alpha: float, output: Path, *, towers_only: bool = False) -> None:
    """Write the model whose weights are `(1 - alpha) * first + alpha * second` (WiSE-FT).

    Args:
        first: Model folder, usually the one before fine-tuning.
        second: Model folder of the same architecture, usually after.
        alpha: Share of the second model, in [0, 1].
        output: Folder to make, which must not exist.
        towers_only: Keep the second model's Prompter: a trained one does not mix with an untrained one.

    Raises:
        UserError: If `alpha` is out of range, the models are of different architectures, or numbers of the
            same shape mean another thing in each.
        ExistingFileError: If `output` exists.
        MissingFileError: If a model's folder is not there.
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha must be in [0, 1]; got {alpha}")
    if output.exists():
        raise ExistingFileError(f"output folder {output} exists already")
    for folder in (first, second):
        if not folder.is_dir():
            raise MissingFileError(f"model folder not found: {folder}")
    model = CLOC.from_pretrained(str(second))
    start, end = read_folder_state(first), read_folder_state(second)
    # The same names and shapes, or an error.
    load_strictly(model, start, str(first / WEIGHTS_NAME))
    _refuse_another_reading(first, second, towers_only)
    if not towers_only:
        _refuse_other_codes(start, end, first, second)
    kept = ("prompter.",) if towers_only else ()
    mixed = {
        name: tensor
        if name.startswith(kept) or not tensor.is_floating_point()
        else torch.lerp(start[name], tensor, alpha)
        for name, tensor in end.items()
    }
    model.load_state_dict(mixed)
    try:
        model.save_pretrained(output)
    except BaseException:
        shutil.rmtree(output, ignore_errors=True)  # a part of a model is none
        raise


def _refuse_another_reading(first: Path, second: Path, towers_only: bool) -> None:
    """Refuse models that do something else with the same tensors: a mean of both would be neither.

    Raises:
        UserError: Names the first choice in which they differ.
    """
    one, other = (_reading(read_config(folder), towers_only) for folder in (first, second))
    for name, value in one.items():
        if value != other[name]:
            raise UserError(
                f"weights that are read in different ways cannot be averaged: {name} is {value!r} in {first} "
                f"and {other[name]!r} in {second}"
            )


def _reading(config: Mapping[str, Any], towers_only: bool) -> dict[str, Any]:
    """What a model does with its tensors, by name, without what only training or only sizes depend on."""
    canvas = from_dict(CanvasConfig, config["preprocess"], "preprocess")
    reading = {
        "model_cfg.quick_gelu": bool(config["model_cfg"].get("quick_gelu", False)),
        "preprocess.mean": tuple(canvas.mean),
        "preprocess.std": tuple(canvas.std),
        "texts.lower_case": config["texts"]["lower_case"],
    }
    if towers_only:
        return reading
    prompter = asdict(from_dict(PrompterConfig, config["prompter"], "prompter"))
    return reading | {f"prompter.{n}": v for n, v in prompter.items() if n not in ONLY_IN_TRAINING}


def _refuse_other_codes(
    start: Mapping[str, Tensor], end: Mapping[str, Tensor], first: Path, second: Path
) -> None:
    """Refuse Prompters whose random codes of places were drawn apart.

    The codes are drawn once and never learn; all that a Prompter knows of places it has learned in its own.

    Raises:
        UserError: If they differ.
    """
    for name, codes in end.items():
        if name.endswith(FREQUENCIES) and not torch.equal(start[name], codes):
            raise UserError(
                f"the Prompters of {first} and {second} were started from different seeds: each has its own "
                "random codes of places, and the mean of two is a code that neither has learned to read; "
                "average models of one start, or the towers alone with --towers-only"
            )
