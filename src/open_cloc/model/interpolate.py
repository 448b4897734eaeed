"""Weights between two models' (WiSE-FT)."""

from __future__ import annotations

from pathlib import Path

import torch

from open_cloc.errors import ExistingFileError, MissingFileError, UserError
from open_cloc.model.cloc import CLOC
from open_cloc.model.weights import WEIGHTS_NAME, load_strictly, read_folder_state


def interpolate(first: Path, second: Path, alpha: float, output: Path, *, towers_only: bool = False) -> None:
    """Write the model whose weights are `(1 - alpha) * first + alpha * second` (WiSE-FT).

    Args:
        first: Model folder, usually the one before fine-tuning.
        second: Model folder of the same architecture, usually after.
        alpha: Share of the second model, in [0, 1].
        output: Folder to make, which must not exist.
        towers_only: Keep the second model's Prompter: a trained one does not mix with an untrained one.

    Raises:
        UserError: If `alpha` is out of range, or the models are of different architectures.
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
    kept = ("prompter.",) if towers_only else ()
    mixed = {
        name: tensor
        if name.startswith(kept) or not tensor.is_floating_point()
        else torch.lerp(start[name], tensor, alpha)
        for name, tensor in end.items()
    }
    model.load_state_dict(mixed)
    model.save_pretrained(output)
