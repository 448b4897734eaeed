"""What earlier versions wrote, read as they meant it: names of parameters and of moments, and options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from open_cloc.files import read_json

T = TypeVar("T")

# Part of a name, as version 0.1 wrote it -> the same today.
RENAMED = {
    "prompter.box_prompt.": "prompter.prompts.box.",
    "prompter.text_prompt.": "prompter.prompts.text.",
}


def name_of_today(name: str) -> str:
    """The name that a saved tensor has today: of a weight, or of an optimizer's moment of it."""
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name


def by_names_of_today(tensors: Mapping[str, T]) -> dict[str, T]:
    """Saved tensors, or what is known of them, by the names that they have today."""
    return {name_of_today(name): tensor for name, tensor in tensors.items()}


def cleaning_of_old(folder: Path) -> dict[str, bool]:
    """How the texts of a model were cleaned whose config does not say it yet: as its run's recipe does.

    Without the run beside it, a model was trained as the paper's: there was nobody to say otherwise but the
    recipe.

    Args:
        folder: The model's folder, `RUN/model`, `RUN/start` or `RUN/checkpoints/step_...`.
    """
    run = folder.absolute().parent
    path = (run.parent if run.name == "checkpoints" else run) / "recipe.json"
    recipe: Any = read_json(path) if path.is_file() else {}
    # The second: of a run of earlier versions that was resumed by a later one.
    said = [_at(recipe, "data", "loader", "lower_case"), _at(recipe, "model", "lower_case")]
    return {"lower_case": next((value for value in said if isinstance(value, bool)), True)}


def _at(tree: Any, *names: str) -> Any:
    """What stands in a tree of tables under some names, one inside the other; None if nothing does."""
    for name in names:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree
