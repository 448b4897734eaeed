"""Columns of tables and metadata files: which is the caption, and what a sample may carry along."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from open_cloc.data.shards.region_json import SIZES, WRITTEN
from open_cloc.errors import UserError

# Columns that are taken where no option names one, in this order; capitals do not matter.
IMAGE_COLUMNS = (
    *("image", "img", "jpg", "jpeg", "png", "webp", "image_path", "img_path", "image_file"),
    *("file_name", "filename", "file_path", "filepath", "path", "file"),
)
CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "txt", "title", "alt_text", "alt")
KEY_COLUMNS = ("key", "__key__", "id")
URL_COLUMNS = ("url", "image_url", "img_url")
# Names that mean something else in a shard's JSON.
RESERVED = {*WRITTEN, *SIZES, "noun_chunks", "ref_exps", "bbox_info"}


def find_columns(columns: Iterable[str], known: Sequence[str]) -> list[str]:
    """The columns that bear one of the known names, capitals aside, in the order of those."""
    by_name: dict[str, str] = {}
    for column in columns:
        by_name.setdefault(column.lower(), column)
    return [by_name[name] for name in known if name in by_name]


def texts_of(value: Any, where: str) -> tuple[str, ...]:
    """The texts of a field that holds one, several, or none; blank ones are left out.

    Raises:
        UserError: If it holds something else.
    """
    texts = value if isinstance(value, list) else [value]
    for text in texts:
        if not (text is None or isinstance(text, str)):
            raise UserError(f"captions must be text or a list of texts; got {type(text).__name__} ({where})")
    return tuple(text.strip() for text in texts if text and text.strip())


def scalars(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a sample's JSON can hold: text, numbers, truth values; not what it uses itself."""
    return {
        name: value
        for name, value in fields.items()
        if name not in RESERVED
        and isinstance(value, (str, int, float))
        and not (isinstance(value, float) and not math.isfinite(value))
    }
