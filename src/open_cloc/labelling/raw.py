"""Raw detections on disk: two parquet files a unit, from which the last stage can run again.

One has a row per picture, the other a row per box with its score for every phrase of the picture. They are
written whole or not at all, and equal content gives equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from open_cloc.config import require
from open_cloc.errors import UserError
from open_cloc.files import write_whole
from open_cloc.labelling.types import Caption, Detections, Failure, Phrase, Phrases, Picture
from open_cloc.texts import sound_text

BOX_COLUMNS = ("x1", "y1", "x2", "y2")


def write_raw(pictures: Sequence[Picture], picture_file: Path, box_file: Path) -> None:
    """Write a unit's pictures, without their bytes, and the boxes that were found in them.

    A picture whose labels no table can hold becomes a failure.
    """
    try:
        tables = _tables(pictures)
    except Exception:  # texts and numbers of any kind; one of the pictures is at fault
        tables = _tables([_holdable(picture) for picture in pictures])
    _write(box_file, tables.boxes)
    _write(picture_file, tables.pictures)


def read_raw(picture_file: Path, box_file: Path) -> list[Picture]:
    """Read back what `write_raw` wrote.

    Raises:
        UserError: If a file is not there, damaged, or of another form.
    """
    pa, parquet = require("pyarrow", "label"), require("pyarrow.parquet", "label")
    try:
        boxes: dict[int, list[dict]] = {}
        for row in parquet.read_table(box_file).to_pylist():
            boxes.setdefault(row["index"], []).append(row)
        rows = parquet.read_table(picture_file).to_pylist()
        return [_picture(row, boxes.get(row["index"], [])) for row in rows]
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"raw detections cannot be read: {reason} ({picture_file}, {box_file})") from error


class _Tables(NamedTuple):
    """A row for each picture, and a row for each box."""

    pictures: Any
    boxes: Any


def _tables(pictures: Sequence[Picture]) -> _Tables:
    pa = require("pyarrow", "label")
    rows = [_picture_row(picture) for picture in pictures]
    boxes = [row for picture in pictures for row in _box_rows(picture)]
    return _Tables(
        pa.Table.from_pylist(rows, schema=_picture_schema()),
        pa.Table.from_pylist(boxes, schema=_box_schema()),
    )


def _holdable(picture: Picture) -> Picture:
    """The picture, or its failure where no table can hold what was made of it."""
    try:
        _tables([picture])
    except Exception as error:
        failure = Failure("labels that cannot be written", f"{type(error).__name__}: {error}")
        return Picture(picture.index, picture.key, failure=failure)
    return picture


def _picture_row(picture: Picture) -> dict[str, Any]:
    phrases, caption, failure = picture.phrases, picture.caption, picture.failure
    return {
        "index": picture.index,
        "key": sound_text(picture.key),
        "given": list(picture.given),
        "caption": caption and caption.text,
        "caption_source": caption and caption.source,
        "caption_cut": caption and caption.is_cut,
        "phrases": [p._asdict() for p in phrases.kept] if phrases else [],
        "phrases_dropped": json.dumps(dict(phrases.dropped) if phrases else {}),
        "boxes_dropped": json.dumps(dict(picture.detections.dropped) if picture.detections else {}),
        "failure": failure and sound_text(failure.cause),
        "failure_message": failure and sound_text(failure.message),
    }


def _box_rows(picture: Picture) -> Iterator[dict[str, Any]]:
    found = picture.detections
    if found is None or picture.phrases is None:
        return
    for row, (box, scores) in enumerate(zip(found.boxes.tolist(), found.scores)):
        best = int(scores.argmax())
        yield {
            "index": picture.index,
            "key": sound_text(picture.key),
            **dict(zip(BOX_COLUMNS, box)),
            "text": picture.phrases.kept[best].text,
            "score": float(scores[best]),
            "scores": scores.tolist(),
            "cycle": None if picture.cycle is None else float(picture.cycle[row]),
        }


def _picture(row: dict[str, Any], boxes: list[dict]) -> Picture:
    failure = Failure(row["failure"], row["failure_message"]) if row["failure"] else None
    kept = tuple(Phrase(**phrase) for phrase in row["phrases"])
    is_cut = bool(row.get("caption_cut"))  # version 0.1 did not look
    caption = Caption(row["caption"], row["caption_source"], is_cut) if row["caption"] else None
    cycle = [box["cycle"] for box in boxes]
    detections = Detections(
        boxes=np.array([[box[name] for name in BOX_COLUMNS] for box in boxes], np.float32).reshape(-1, 4),
        scores=np.array([box["scores"] for box in boxes], np.float32).reshape(len(boxes), len(kept)),
        dropped=json.loads(row["boxes_dropped"]),
    )
    return Picture(
        index=row["index"],
        key=row["key"],
        given=tuple(row["given"]),
        caption=caption,
        phrases=None if failure else Phrases(kept, json.loads(row["phrases_dropped"])),
        detections=None if failure else detections,
        cycle=np.array(cycle, np.float32) if cycle and None not in cycle else None,
        failure=failure,
    )


def _picture_schema() -> Any:
    pa = require("pyarrow", "label")
    phrase = pa.struct([("text", pa.string()), ("start", pa.int32()), ("end", pa.int32())])
    return pa.schema(
        [
            ("index", pa.int64()),
            ("key", pa.string()),
            ("given", pa.list_(pa.string())),
            ("caption", pa.string()),
            ("caption_source", pa.string()),
            ("caption_cut", pa.bool_()),
            ("phrases", pa.list_(phrase)),
            ("phrases_dropped", pa.string()),
            ("boxes_dropped", pa.string()),
            ("failure", pa.string()),
            ("failure_message", pa.string()),
        ]
    )


def _box_schema() -> Any:
    pa = require("pyarrow", "label")
    return pa.schema(
        [
            ("index", pa.int64()),
            ("key", pa.string()),
            *((name, pa.float32()) for name in BOX_COLUMNS),
            ("text", pa.string()),
            ("score", pa.float32()),
            ("scores", pa.list_(pa.float32())),
            ("cycle", pa.float32()),
        ]
    )


def _write(path: Path, table: Any) -> None:
    parquet = require("pyarrow.parquet", "label")
    with write_whole(path) as part:
        parquet.write_table(table, part, compression="zstd")
