"""A trained model's towers in the layouts that other tools read, each checked against the model itself.

A new target is one file and one line of `TARGETS`. The Prompter has a place in ONNX alone: a CLOC's own
folder stays the whole model.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from open_cloc.config import lookup
from open_cloc.errors import ExistingFileError
from open_cloc.export.compare import Difference, Inputs, open_inputs
from open_cloc.files import is_free
from open_cloc.model.load import load_model

Export = Callable[..., list[Difference]]

# What it is called -> a function (model, folder, inputs) that writes the folder and opens it again.
TARGETS: dict[str, str | Export] = {
    "open-clip": "open_cloc.export.open_clip:export_open_clip",
    "clip": "open_cloc.export.hugging_face:export_clip",
    "siglip": "open_cloc.export.siglip:export_siglip",
    "llava": "open_cloc.export.llava:export_llava",
    "onnx": "open_cloc.export.onnx:export_onnx",
    "onnx-int8": "open_cloc.export.onnx:export_onnx_int8",
}


def export(target: str, weights: str | Path, output: Path, pictures: str = "") -> list[Difference]:
    """Write a model's towers for another tool, open them there, and compare.

    Args:
        target: A key of `TARGETS`.
        weights: Model folder or hub id.
        output: Folder to make; new or empty.
        pictures: Data of which the first pictures and texts are compared, as every command takes it; empty
            takes generated scenes.

    Returns:
        How far what the other tool computes is from the model, largest differences.

    Raises:
        UserError: If the target is unknown or cannot hold the model's towers: says why.
        ExistingFileError: If there is something in the folder.
        RunError: If what the other tool computes is not what the model computes.
    """
    write: Export = lookup(TARGETS, target, "export target")
    if not is_free(output):
        raise ExistingFileError(f"output folder must be new or empty; got {output}")
    model = load_model(weights, "cpu")
    inputs: Inputs = open_inputs(model, pictures)
    try:
        return write(model, output, inputs)
    except BaseException:
        # Nobody shall use what is half written, or not the model; the folder was empty.
        shutil.rmtree(output, ignore_errors=True)
        raise
