"""OpenCLOC: CLIP whose image embeddings can be asked about any region or phrase.

Names are imported on first use, so that `open-cloc --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from open_cloc.evaluation.run import evaluate
    from open_cloc.inference.predictor import Predictor, load
    from open_cloc.masks import Mask
    from open_cloc.model.cloc import CLOC
    from open_cloc.model.create import create_model
    from open_cloc.samples import Region, RegionSample
    from open_cloc.training.loop import train
    from open_cloc.training.recipe import Recipe

    __version__: str

__all__ = [
    "CLOC",
    "Mask",
    "Predictor",
    "Recipe",
    "Region",
    "RegionSample",
    "create_model",
    "evaluate",
    "load",
    "train",
]

_HOMES = {
    "CLOC": "open_cloc.model.cloc",
    "Mask": "open_cloc.masks",
    "Predictor": "open_cloc.inference.predictor",
    "Recipe": "open_cloc.training.recipe",
    "Region": "open_cloc.samples",
    "RegionSample": "open_cloc.samples",
    "create_model": "open_cloc.model.create",
    "evaluate": "open_cloc.evaluation.run",
    "load": "open_cloc.inference.predictor",
    "train": "open_cloc.training.loop",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("open-cloc")
    if name not in _HOMES:
        raise AttributeError(f"module 'open_cloc' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
