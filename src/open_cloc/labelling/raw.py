"""Raw detections on disk: two parquet files a unit, from which the last stage can run again.

One has a row per picture, the other a row per box with its score for every phrase of the picture. They are
written whole or not at all, and equal content gives equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from open_cloc.config import require
from open_cloc.files import write_whole
from open_cloc.labelling.types import Caption, Detections, Failure, Phrase, Phrases, Picture

BOX_COLUMNS = ("x1", "y1", "x2", "y2")


def write_raw(pictures: Sequence[Picture], picture_file: Path, box_file: Path) -> None:
    """Write a unit's pictures, without their bytes, and the boxes that were found in them."""
    rows = [_picture_row(picture) for picture in pictures]
    boxes = [row for picture in pictures for row in _box_rows(picture)]
    _write(box_file, boxes, _box_schema())
    _write(picture_file, rows, _picture_schema())


def read_raw(picture_file: Path, box_file: Path) -> Iterator[Picture]:
    """Read back what `write_raw` wrote.

    Raises:
        FileNotFoundError: If a file is not there.
    """
    parquet = require("pyarrow.parquet", "label")
    boxes: dict[int, list[dict]] = {}
    for row in parquet.read_table(box_file).to_pylist():
        boxes.setdefault(row["index"], []).append(row)
    for row in parquet.read_table(picture_file).to_pylist():
        yield _picture(row, boxes.get(row["index"], []))


def _picture_row(picture: Picture) -> dict[str, Any]:
    phrases, caption, failure = picture.phrases, picture.caption, picture.failure
    return {
        "index": picture.index,
        "key": picture.key,
        "given": list(picture.given),
        "caption": caption and caption.text,
        "caption_source": caption and caption.source,
        "phrases": [p._asdict() for p in phrases.kept] if phrases else [],
        "phrases_dropped": json.dumps(dict(phrases.dropped) if phrases else {}),
        "boxes_dropped": json.dumps(dict(picture.detections.dropped) if picture.detections else {}),
        "failure": failure and failure.cause,
        "failure_message": failure and failure.message,
    }


def _box_rows(picture: Picture) -> Iterator[dict[str, Any]]:
    found = picture.detections
    if found is None or picture.phrases is None:
        return
    for row, (box, scores) in enumerate(zip(found.boxes.tolist(), found.scores)):
        best = int(scores.argmax())
        yield {
            "index": picture.index,
            "key": picture.key,
            **dict(zip(BOX_COLUMNS, box)),
            "text": picture.phrases.kept[best].text,
            "score": float(scores[best]),
            "scores": scores.tolist(),
            "cycle": None if picture.cycle is None else float(picture.cycle[row]),
        }


def _picture(row: dict[str, Any], boxes: list[dict]) -> Picture:
    failure = Failure(row["failure"], row["failure_message"]) if row["failure"] else None
    kept = tuple(Phrase(**phrase) for phrase in row["phrases"])
    caption = Caption(row["caption"], row["caption_source"]) if row["caption"] else None
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


def _write(path: Path, rows: list[dict], schema: Any) -> None:
    pa, parquet = require("pyarrow", "label"), require("pyarrow.parquet", "label")
    with write_whole(path) as part:
        parquet.write_table(pa.Table.from_pylist(rows, schema=schema), part, compression="zstd")
