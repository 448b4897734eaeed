"""The birth certificate of labels: what made them, and whether two sets were made alike."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from open_cloc.files import versions
from open_cloc.labelling.recipe import AUTO, LabelRecipe
from open_cloc.shown import hide_secrets

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
    fields = hide_secrets(asdict(recipe))
    return {name: fields[name] for name in ("caption", "phrases", "detect", "cycle_weights")} | {
        "batch_size": recipe.run.batch_size
    }


def downstream(recipe: LabelRecipe) -> dict[str, Any]:
    """What only the last stage depends on."""
    return {"filter": json.loads(json.dumps(asdict(recipe.filter)))}


@lru_cache(maxsize=1)
def software() -> dict[str, str]:
    """Versions, and a hash of this package's source."""
    return {"python": platform.python_version(), **versions(*LIBRARIES), "code": _code()}


def in_todays_words(certificate: dict[str, Any]) -> dict[str, Any]:
    """A certificate as this version would write it: fields that had other names in version 0.1 are renamed.

    Args:
        certificate: A `label.json` or a mark of any version; its `recipe` and `made_by` are tables.
    """
    new = {**certificate}
    for part in ("recipe", "made_by"):
        if part in new:
            new[part] = {name: _copied(fields) for name, fields in new[part].items()}
    recipe, made_by = new.get("recipe", {}), new.get("made_by", {})
    _rename(recipe.get("caption"), "model", "weights")
    for detect in (recipe.get("detect"), made_by.get("detect")):
        _rename(detect, "dtype", "precision", {"float32": "fp32", "bfloat16": "bf16"})
    _rename(recipe.get("detect"), "kind", "kind", {"transformers": AUTO})
    caption = made_by.get("caption")
    if isinstance(caption, dict) and caption.get("name") == "local":
        _rename(caption, "model", "weights")
    return new


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


def _copied(fields: Any) -> Any:
    return dict(fields) if isinstance(fields, dict) else fields


def _rename(fields: Any, old: str, new: str, values: Mapping[str, str] | None = None) -> None:
    if isinstance(fields, dict) and old in fields:
        value = fields.pop(old)
        fields[new] = (values or {}).get(value, value) if isinstance(value, str) else value


def _code() -> str:
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
