"""What an index keeps of a region: a row of an Arrow table.

Every picture has a row of its own as well, of source `picture` and number 0, which holds what is said once of
it. All rows of a picture are written together: where one is, all are.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from open_cloc.boxes import box_areas, denormalize_boxes
from open_cloc.config import require
from open_cloc.errors import SampleError, UserError
from open_cloc.samples import Region, RegionSample
from open_cloc.texts import sound_text

pa = require("pyarrow", "index")

PICTURE = "picture"  # source of the row of a whole picture
# The two kinds of rows, as filters.
REGIONS, PICTURES = f"source != '{PICTURE}'", f"source = '{PICTURE}'"
VECTOR = "vector"
THUMBNAIL_QUALITY = 80

# Columns that every index has beside the vector, in their order.
FIELDS: dict[str, Any] = {
    "id": pa.string(),
    "picture": pa.string(),
    "content": pa.string(),
    "key": pa.string(),
    "path": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "x1": pa.float32(),
    "y1": pa.float32(),
    "x2": pa.float32(),
    "y2": pa.float32(),
    "area": pa.float32(),
    "text": pa.string(),
    "score": pa.float32(),
    "source": pa.string(),
    "caption": pa.string(),
    "metadata": pa.string(),
    "thumbnail": pa.binary(),
}
# What a user may call the type of a column of metadata.
TYPES = {"text": pa.string(), "number": pa.float64(), "bool": pa.bool_()}


def schema_of(width: int, columns: Mapping[str, str], about: Mapping[str, str]) -> Any:
    """The Arrow schema of an index.

    Args:
        width: Length of an embedding.
        columns: Columns of metadata by name, each with its type of `TYPES`.
        about: What is written into the schema's own metadata.

    Raises:
        UserError: If a column has a name that is taken, or an unknown type.
    """
    for name, kind in columns.items():
        # LanceDB's own columns begin with a stroke, such as `_distance`.
        if name in FIELDS or name == VECTOR or not name.isidentifier() or name.startswith("_"):
            taken = ", ".join([*FIELDS, VECTOR])
            raise UserError(
                "a column of metadata needs a plain name without a stroke at its front that is none of "
                f"{taken}; got {name!r}"
            )
        if kind not in TYPES:
            raise UserError(f"column {name!r} must be one of {', '.join(TYPES)}; got {kind!r}")
    own = {name: TYPES[kind] for name, kind in columns.items()}
    fields = [pa.field(name, kind) for name, kind in {**FIELDS, **own}.items()]
    fields.append(pa.field(VECTOR, pa.list_(pa.float32(), width)))
    return pa.schema(fields, metadata=dict(about))


def picture_id(key: str, content: str) -> str:
    """A picture's name in an index, of its key and its content: 20 hexadecimal digits."""
    return hashlib.blake2b(f"{key}\0{content}".encode("utf-8", "surrogatepass"), digest_size=10).hexdigest()


def rows_of(
    sample: RegionSample,
    content: str,
    size_hw: tuple[int, int],
    regions: Sequence[Region],
    vectors: np.ndarray,
    values: Mapping[str, Any],
    thumbnail: bytes | None,
) -> list[dict[str, Any]]:
    """The rows of one picture.

    Args:
        sample: The picture.
        content: Its content's name, by `content_of`.
        size_hw: Its (height, width) in pixels.
        regions: Its regions.
        vectors: (1 + R, D) of unit length: of the whole picture, then of the regions.
        values: What stands in the columns of metadata, by `values_of`.
        thumbnail: A small JPEG of the picture.
    """
    height, width = size_hw
    name = picture_id(sample.key, content)
    common = {
        "picture": name,
        "content": content,
        "key": sound_text(sample.key),
        "path": _path_of(sample.image),
        "width": width,
        "height": height,
        "caption": sample.captions[0] if sample.captions else "",
        **values,
    }
    whole = Region((0.0, 0.0, 1.0, 1.0), "", math.nan, PICTURE)
    boxes = np.array([region.box for region in (whole, *regions)], np.float64)
    areas = box_areas(boxes)
    rows = []
    for number, region in enumerate((whole, *regions)):
        x1, y1, x2, y2 = denormalize_boxes(boxes[number], size_hw).tolist()
        rows.append(
            {
                **common,
                "id": f"{name}:{number}",
                "x1": x1,
                "y1": y1,
                "x2": x2,
                "y2": y2,
                "area": float(areas[number]),
                "text": region.text,
                # A region that calls itself so would be taken for its whole picture.
                "source": f"{PICTURE} region" if number and region.source == PICTURE else region.source,
                "score": None if math.isnan(region.score) else region.score,
                "metadata": "" if number else json.dumps(dict(sample.metadata), default=str),
                "thumbnail": None if number else thumbnail,
                VECTOR: vectors[number].astype(np.float32),
            }
        )
    return rows


def _path_of(image: object) -> str:
    """A picture's file; empty where it is none, or has a name that no text holds."""
    path = str(image.resolve()) if isinstance(image, Path) else ""
    try:
        path.encode()
    except UnicodeEncodeError:
        return ""
    return path


def values_of(sample: RegionSample, columns: Mapping[str, str]) -> dict[str, Any]:
    """What a picture's metadata has for each column; None where it has nothing.

    Args:
        sample: The picture.
        columns: Columns of metadata and their types.

    Raises:
        SampleError: If a value is of another type than its column's.
    """
    return {column: _value(sample, column, kind) for column, kind in columns.items()}


def _value(sample: RegionSample, column: str, kind: str) -> Any:
    value = sample.metadata.get(column)
    if value is None:
        return None
    fits = {
        "text": isinstance(value, str),
        "number": isinstance(value, (int, float)) and not isinstance(value, bool),
        "bool": isinstance(value, bool),
    }
    if not fits[kind]:
        raise SampleError(
            f"column {column!r} must be a {kind}; got {value!r:.60} (sample {sample.key!r})",
            "metadata of another type",
        )
    return float(value) if kind == "number" else value


def thumbnail_of(pixels: np.ndarray, side: int) -> bytes | None:
    """A small JPEG of a picture (H, W, 3), its longer side at most so many pixels; None for no side."""
    if not side:
        return None
    small = Image.fromarray(pixels)
    small.thumbnail((side, side), Image.Resampling.BILINEAR)
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=THUMBNAIL_QUALITY)
    return encoded.getvalue()
