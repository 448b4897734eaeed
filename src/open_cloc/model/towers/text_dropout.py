"""Dropout of Hugging Face text towers, which their configs set for the training of language models.

A CLIP trains without, and a locked tower that drops numbers gives a text other features at each step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from open_cloc.errors import UserError

OPTION = "hf_dropout"  # in `text_cfg`, beside open_clip's own `hf_` fields

# Parts of names under which whole layers are dropped, which is another thing.
OF_LAYERS = ("layerdrop", "layer_drop", "drop_path")


def check_dropout(value: Any) -> float:
    """The chance that a number is dropped.

    Raises:
        UserError: If it is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise UserError(f"text_cfg.{OPTION} must be a number in [0, 1); got {value!r}")
    return float(value)


def with_dropout(model_cfg: Mapping[str, Any], chance: float) -> dict[str, Any]:
    """A model's config whose text tower asks for dropout; the same config where there shall be none."""
    text_cfg = model_cfg.get("text_cfg") if chance else None
    if not isinstance(text_cfg, Mapping):  # what is wrong with it is said where the towers are built
        return dict(model_cfg)
    return {**model_cfg, "text_cfg": {**text_cfg, OPTION: chance}}


def set_dropout(text: Any, chance: float) -> None:
    """Give every dropout of open_clip's `HFTextEncoder` the same chance; no whole layer is dropped.

    transformers keeps it in three places: modules, numbers that are handed to functions, and the config.
    """
    for module in text.transformer.modules():
        if isinstance(module, nn.Dropout):
            module.p = chance
        _set_numbers(module, chance)
    _set_numbers(text.config, chance)


def _set_numbers(owner: Any, chance: float) -> None:
    for name, value in list(vars(owner).items()):
        if "drop" in name and isinstance(value, float):
            setattr(owner, name, 0.0 if any(part in name for part in OF_LAYERS) else chance)
