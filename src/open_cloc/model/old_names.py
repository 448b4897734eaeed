"""Names that parameters had in earlier versions: what was saved under them still loads, moments included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

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
