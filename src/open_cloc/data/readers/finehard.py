"""FineHARD, the data of FG-CLIP: captions long and short, boxes with right and wrong expressions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from open_cloc.data.annotations import Problem, RawRegion
from open_cloc.data.fields import FieldError, as_text, field_of, shown
from open_cloc.data.readers.packed import (
    Entry,
    PackedDataset,
    as_object,
    count_keys,
    entries_of,
    json_lines,
    json_list,
    looks_like,
    picture_folders,
    problem_in,
)
from open_cloc.samples import Text

SOURCE, NEGATIVE, LONG = "finehard", "negative", "long"
FORM = (re.compile(rb'"f_path"\s*:'), re.compile(rb'"bbox_info"\s*:'))
KEYS = {"f_path", "caption", "short_caption", "bbox_info"}
BOX_KEYS = {"bbox", "short_expr", "long_expr", "flag_short_neg", "short_expr_negs"}
LINES = (".jsonl", ".ndjson")


def recognises(text: str) -> bool:
    """Whether this is JSON, or lines of it, with FineHARD's fields."""
    return looks_like(Path(text), (".json", *LINES), FORM)


def open_finehard(
    path: str, images: Path | None = None, outside: bool = False, negatives: bool = False
) -> PackedDataset:
    """Open a part of FineHARD. A region's text is its short expression; its texts are the long one, of the
    role `long`, and those that are wrong, of the role `negative`.

    Args:
        path: A JSON list, or JSON lines.
        images: Folder that `f_path` begins in; the file's own or the one above unless given.
        outside: Allow pictures that do not lie in the data set's folder.
        negatives: Leave out regions without wrong expressions (`flag_short_neg` of 0) and count them.

    Raises:
        MissingFileError: If the file or the pictures are missing.
        UserError: If nothing can be used.
    """
    file = Path(path)
    problems: list[Problem] = []
    left_out: Counter[str] = Counter()
    rows: Iterable[tuple[str, Any]]
    if file.suffix.lower() in LINES:
        rows = ((f"line {number}", row) for number, row in json_lines(file, problems))
    else:
        rows = ((f"entry at position {n}", row) for n, row in enumerate(json_list(file, "FineHARD")))
    entries = list(
        entries_of(rows, lambda row: _entry(as_object(row), file, left_out, negatives), file, problems)
    )
    return PackedDataset(
        file,
        picture_folders(file, images),
        entries,
        box_format="xyxy",
        normalized=True,
        problems=problems,
        left_out=left_out,
        outside=outside,
    )


def _entry(row: Mapping[str, Any], file: Path, left_out: Counter[str], negatives: bool) -> Entry:
    name = as_text(field_of(row, "f_path"), "f_path")
    captions = [
        as_text(row[key], key) for key in ("caption", "short_caption") if row.get(key) not in (None, "")
    ]
    boxes = field_of(row, "bbox_info")
    if not isinstance(boxes, list):
        raise FieldError(f"bbox_info must be a list; got {shown(boxes)}")
    count_keys(row, KEYS, left_out, "rows")
    regions, problems = [], []
    for number, given in enumerate(boxes):
        try:
            region = _region(as_object(given), f"bbox_info[{number}]")
            if negatives and not any(text.role == NEGATIVE for text in region.texts):
                left_out["regions without wrong expressions"] += 1
            else:
                regions.append(region)
            count_keys(given, BOX_KEYS, left_out, "boxes")
        except FieldError as error:
            problems.append(problem_in(error, f"{name}, bbox_info[{number}]", file))
    return Entry(name, regions, captions, None, {}, problems)


def _region(info: Mapping[str, Any], where: str) -> RawRegion:
    """A box, of which only the first four numbers are one: a score may stand behind them."""
    box = field_of(info, "bbox")
    numbers = box[:4] if isinstance(box, list) else ()
    if len(numbers) != 4 or not all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in numbers):
        raise FieldError(f"bbox must begin with 4 numbers [x1, y1, x2, y2]; got {shown(box)}")
    text = as_text(field_of(info, "short_expr"), "short_expr").strip()
    texts = [Text(text, role, SOURCE) for role, text in _texts(info)]
    return RawRegion(tuple(map(float, numbers)), text, where, source=SOURCE, texts=tuple(texts))


def _texts(info: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if info.get("long_expr") not in (None, ""):
        yield LONG, as_text(info["long_expr"], "long_expr").strip()
    wrong = info.get("short_expr_negs") or {}
    if not isinstance(wrong, (dict, list)):
        raise FieldError(f"short_expr_negs must be an object or a list; got {shown(wrong)}")
    if info.get("flag_short_neg", 1):
        for given in wrong.values() if isinstance(wrong, dict) else wrong:
            yield NEGATIVE, as_text(given, "short_expr_negs").strip()
