"""Heavy libraries come with an extra and are imported where they are needed."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str) -> Any:
    """Import a library of the extra `[label]`.

    Args:
        module: Its name, such as `spacy` or `ray.data`.

    Raises:
        ValueError: If it is not installed; a library that is there but breaks raises its own error.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if module != missing and not module.startswith(f"{missing}."):
            raise
        raise ValueError(
            f"{missing!r} is needed here, and not installed: pip install 'open-cloc[label]'"
        ) from error
