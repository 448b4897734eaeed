"""OpenCLOC: CLIP whose image embeddings can be asked about any region or phrase.

Names are imported on first use, so that `open-cloc --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from open_cloc.inference.predictor import Predictor, load
    from open_cloc.model.cloc import CLOC

__all__ = ["CLOC", "Predictor", "load"]

_HOMES = {
    "CLOC": "open_cloc.model.cloc",
    "Predictor": "open_cloc.inference.predictor",
    "load": "open_cloc.inference.predictor",
}


def __getattr__(name: str) -> Any:
    if name == "losses":  # reads as an attribute in the documentation: open_cloc.objectives.region_text_loss
        return importlib.import_module("open_cloc.losses")
    if name not in _HOMES:
        raise AttributeError(f"module 'open_cloc' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
