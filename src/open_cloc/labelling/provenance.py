"""The birth certificate of labels: what made them, and whether two sets were made alike."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import open_cloc
from open_cloc.labelling.recipe import LabelRecipe

LIBRARIES = (
    "open-cloc",
    "torch",
    "torchvision",
    "transformers",
    "ray",
    "spacy",
    "pyarrow",
    "pillow",
    "simplejpeg",
)


def upstream(recipe: LabelRecipe) -> dict[str, Any]:
    """All of a recipe that raw detections depend on: a change here needs them anew."""
    fields = json.loads(json.dumps(asdict(recipe)))
    return {name: fields[name] for name in ("caption", "phrases", "detect", "cycle_weights")} | {
        "batch_size": recipe.run.batch_size
    }


def downstream(recipe: LabelRecipe) -> dict[str, Any]:
    """What only the last stage depends on."""
    return {"filter": json.loads(json.dumps(asdict(recipe.filter)))}


@lru_cache(maxsize=1)
def software() -> dict[str, str]:
    """Versions, and a hash of this package's source."""
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in LIBRARIES},
        "code": _code(),
    }


def differences(a: Any, b: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every field in which two JSON documents differ, as (path, one, other); None where it is absent."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in sorted(a.keys() | b.keys()):
            yield from differences(a.get(key), b.get(key), f"{where}.{key}" if where else key)
    elif a != b:
        yield where, a, b


def describe(changes: list[tuple[str, Any, Any]]) -> str:
    """Differences as one line."""
    return "; ".join(f"{where} was {old!r}, now {new!r}" for where, old, new in changes)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _code() -> str:
    digest = hashlib.sha256()
    root = Path(open_cloc.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
