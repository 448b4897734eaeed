"""LoRA (arXiv 2106.09685): the towers stay as they are, and small matrices beside their layers learn.

Through peft, in place; a model is saved with the adapters put into its weights (`open_cloc.model.adapters`).
"""

from __future__ import annotations

import logging
import re
import warnings
from typing import Any

from torch import nn

from open_cloc.config import require
from open_cloc.errors import UserError
from open_cloc.model.adapters import UP
from open_cloc.model.cloc import CLOC
from open_cloc.training.freeze import lockable
from open_cloc.training.recipe import OptimConfig, Recipe

logger = logging.getLogger(__name__)


def add_adapters(model: CLOC, config: OptimConfig) -> None:
    """Put adapters beside the layers of the towers that are not locked, if the config asks for them.

    They start at nothing: the model is the same at first. `nn.MultiheadAttention`, open_clip's own, is left
    out, since it reads its weights past any adapter; the layers between are not.

    Args:
        model: With its starting weights.
        config: `lora_rank` of 0 changes nothing.

    Raises:
        UserError: If no layer can take an adapter.
        MissingExtraError: Without the extra `lora`.
    """
    if not config.lora_rank:
        return
    peft: Any = require("peft", "lora")
    added = 0
    for tower, locked in lockable(model, config):
        names = [] if locked else _layers(tower)
        if names:
            pattern = "|".join(map(re.escape, names))
            # A scale of 1: what the adapters add is their product.
            options = peft.LoraConfig(r=config.lora_rank, lora_alpha=config.lora_rank, target_modules=pattern)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # peft's advice for language models
                peft.inject_adapter_in_model(options, tower)
        added += len(names)
    if not added:
        raise UserError("optim.lora_rank: no tower has a layer that can take an adapter and is not locked")


def _layers(tower: nn.Module) -> list[str]:
    """Names of the layers that take an adapter: linear ones, and convolutions that are not by channel."""
    inside = [name for name, module in tower.named_modules() if isinstance(module, nn.MultiheadAttention)]
    return [
        name
        for name, module in tower.named_modules()
        if _takes_adapter(module) and not any(name.startswith(f"{outer}.") for outer in inside)
    ]


def _takes_adapter(module: nn.Module) -> bool:
    if type(module) is nn.Conv2d:  # kinds of one's own may pad by themselves
        # peft's adapters have neither groups nor dilation.
        return module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
    return type(module) is nn.Linear


def tell_adapters(model: CLOC, recipe: Recipe) -> None:
    """Say how many adapters there are, and which cannot learn; after `freeze_unreached`.

    Args:
        model: With adapters or without.
        recipe: The run.
    """
    learning = {n: p.requires_grad for n, p in model.named_parameters() if n.endswith(UP)}
    if not learning:
        return
    logger.info("LoRA: adapters of rank %d beside %d layers", recipe.optim.lora_rank, sum(learning.values()))
    still = [name.removesuffix(UP) for name, learns in learning.items() if not learns]
    if still:
        logger.warning(
            "LoRA: %d of %d adapters cannot learn, such as that of %s: no loss of this run comes through "
            "them, or their tower reads its weights past them",
            len(still),
            len(learning),
            still[0],
        )
    if not isinstance(recipe.model.towers, str):
        logger.warning(
            "LoRA: towers that start from nothing stay as random as they are, but for the adapters"
        )
