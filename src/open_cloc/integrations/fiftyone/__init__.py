"""A model source of FiftyOne: `add_to_zoo()` once, then `foz.load_zoo_model("open-cloc", weights=...)`.

FiftyOne reads `manifest.json` of the copy in its zoo, imports this file there under a name of its own, hence
the full names below, and calls the last three functions. The model itself is in `model.py`.
"""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

from open_cloc.config import require
from open_cloc.errors import UserError

EXTRA = "fiftyone"
NAME = "open-cloc"


def add_to_zoo() -> Path:
    """Copy this source into FiftyOne's model zoo; a copy that is there already is replaced.

    Returns:
        The folder of the copy.

    Raises:
        UserError: If FiftyOne is not installed.
    """
    folder = Path(require("fiftyone", EXTRA).config.model_zoo_dir) / NAME
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("__init__.py", "manifest.json"):
        shutil.copyfile(Path(__file__).with_name(name), folder / name)
    return folder


def download_model(model_name: str, model_path: str) -> None:
    """Put down a note where FiftyOne expects a file: weights are yours, and `load_model` is told where.

    Args:
        model_name: `open-cloc`.
        model_path: The file that tells FiftyOne that the model is here.
    """
    Path(model_path).write_text("Weights are named by load_zoo_model(..., weights=).\n", encoding="utf-8")


def load_model(model_name: str, model_path: str = "", **options: Any) -> Any:
    """Make the model.

    Args:
        model_name: `open-cloc`.
        model_path: What `download_model` wrote; not read.
        **options: `weights`, and what else `model.load` takes.

    Raises:
        UserError: If no weights are named, or an option is unknown.
    """
    model: Any = importlib.import_module("open_cloc.integrations.fiftyone.model")
    if not options.get("weights"):
        raise UserError(
            f"{model_name} needs weights: load_zoo_model({model_name!r}, weights=FOLDER_OR_HUB_ID)"
        )
    unknown = sorted(set(options) - {*model.OPTIONS})
    if unknown:
        raise UserError(f"unknown option {unknown[0]!r}; expected one of {', '.join(model.OPTIONS)}")
    return model.load(**options)


def resolve_input(model_name: str, ctx: Any) -> Any:
    """The form that FiftyOne's app shows for the model.

    Args:
        model_name: `open-cloc`.
        ctx: FiftyOne's execution context; not read.
    """
    types = require("fiftyone.operators.types", EXTRA)
    inputs = types.Object()
    inputs.str("weights", required=True, label="Weights", description="Model folder or hub id")
    inputs.str("boxes", default="ground_truth", label="Boxes", description="Field with the boxes to embed")
    inputs.list(
        "classes", types.String(), label="Classes", description="Names to choose from; none keeps labels"
    )
    return types.Property(inputs)
