"""Columns of tables and metadata files: which is the caption, and what a sample may carry along."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from open_cloc.data.fields import FieldError, shown
from open_cloc.data.shards.region_json import SIZES, WRITTEN

LONGEST_PRINTED = 10_000  # characters of a caption that may turn out to be a printed list
# Columns that are taken where no option names one, in this order; capitals do not matter.
IMAGE_COLUMNS = (
    *("image", "img", "jpg", "jpeg", "png", "webp", "image_path", "img_path", "image_file", "image_name"),
    *("file_name", "filename", "file_path", "filepath", "path", "file"),
)
CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "txt", "title", "alt_text", "alt")
KEY_COLUMNS = ("key", "__key__", "id")
URL_COLUMNS = ("url", "image_url", "img_url")
# Names that mean something else in a shard's JSON.
RESERVED = {*WRITTEN, *SIZES, "noun_chunks", "ref_exps", "bbox_info"}
# Of those, what the writer of shards finds out by itself: nothing is lost without them.
KNOWN_ANYWAY = {"key", "status", *SIZES}
# Names that the four columns of a box bear, and what their numbers are.
SIDES_OF_BOX = {
    **dict.fromkeys(
        (
            *(("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax")),
            *(("x_min", "y_min", "x_max", "y_max"), ("left", "top", "right", "bottom")),
        ),
        "xyxy",
    ),
    **dict.fromkeys(
        (
            *(("x", "y", "w", "h"), ("x", "y", "width", "height"), ("left", "top", "width", "height")),
            *(("bbox_x", "bbox_y", "bbox_width", "bbox_height"), ("bbox_x", "bbox_y", "bbox_w", "bbox_h")),
        ),
        "xywh",
    ),
    ("x_center", "y_center", "width", "height"): "cxcywh",
}
# Names that boxes bear, one column or four.
BOX_COLUMNS = (
    *(
        "bbox",
        "bboxes",
        "box",
        "boxes",
        "bounding_box",
        "bounding_boxes",
        "objects",
        "annotations",
        "regions",
    ),
    *SIDES_OF_BOX,
)
# How pandas, data bases and spreadsheets write a missing value, or a failed formula, where it is made a text.
MISSING = (
    *("nan", "NaN", "None", "<NA>", "NaT", "NULL", "null", "N/A", "n/a", "undefined"),
    *("#N/A", "#REF!", "#VALUE!", "#NAME?", "#NULL!", "#NUM!", "#DIV/0!"),
)


def find_columns(columns: Iterable[str], known: Sequence[str]) -> list[str]:
    """The columns that bear one of the known names, capitals aside, in the order of those."""
    by_name: dict[str, str] = {}
    for column in columns:
        by_name.setdefault(column.lower(), column)
    return [by_name[name] for name in known if name in by_name]


def find_boxes(columns: Iterable[str]) -> tuple[str, ...]:
    """The columns that bear the names of boxes, capitals aside; the first such set of them."""
    by_name = {column.lower(): column for column in columns}
    for entry in BOX_COLUMNS:
        names = (entry,) if isinstance(entry, str) else entry
        if all(name in by_name for name in names):
            return tuple(by_name[name] for name in names)
    return ()


def texts_of(value: Any) -> tuple[str, ...]:
    """The texts of a field that holds one, several, or none; blank ones are left out.

    Raises:
        FieldError: If it holds something else, or a word that stands for a missing text.
    """
    texts = value if isinstance(value, (list, tuple)) else [value]
    return tuple(text.strip() for text in texts if _is_text(text))


def _is_text(value: Any) -> bool:
    """Whether there is a text; none is null, blank, or pandas's not-a-number."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return False
    if not isinstance(value, str):
        raise FieldError(f"captions must be text or a list of texts; got {shown(value)}", "broken caption")
    if value.strip() in MISSING:
        raise FieldError(
            f"caption {value.strip()!r} stands for a missing text: leave the field empty", "broken caption"
        )
    if _is_printed_list(value.strip()):
        raise FieldError(
            f"caption {shown(value.strip())} is a printed list: write lists to JSON lines or Parquet",
            "broken caption",
        )
    return bool(value.strip())


def _is_printed_list(text: str) -> bool:
    """Whether a text is what pandas or Excel make of a list of texts."""
    if not (text.startswith("[") and text.endswith("]")) or len(text) > LONGEST_PRINTED:
        return False
    try:
        values = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def is_scalar(value: Any) -> bool:
    """Whether a sample's JSON can hold a value: text, numbers that JSON knows, truth values."""
    return isinstance(value, (str, int, float)) and not (
        isinstance(value, float) and not math.isfinite(value)
    )


def scalars(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that go along in a sample's JSON; not what it uses itself."""
    return {name: value for name, value in fields.items() if name not in RESERVED and is_scalar(value)}


def unused(fields: Mapping[str, Any], used: Iterable[str]) -> list[str]:
    """The fields that are neither used nor go along, though they hold something.

    Args:
        fields: A row.
        used: Names of the fields that are used.
    """
    return [
        name
        for name, value in fields.items()
        if name not in used
        and name not in KNOWN_ANYWAY
        and value not in (None, "", [], {})
        and (name in RESERVED or not is_scalar(value))
        and not (isinstance(value, float) and math.isnan(value))
    ]
