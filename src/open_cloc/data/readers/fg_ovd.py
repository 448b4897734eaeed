"""FG-OVD: boxes with a sentence and ten that are wrong.

FG-CLIP's scripts have it as JSON lines, a box each; the benchmark itself as a JSON in COCO's form, in which a
sentence is the name of a category.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from open_cloc.data.annotations import Problem, RawRegion
from open_cloc.data.fields import FieldError, as_box, as_id, as_text, field_of, shown
from open_cloc.data.readers.packed import (
    HEAD,
    Entry,
    PackedDataset,
    as_object,
    count_keys,
    declared_size,
    json_lines,
    list_in,
    looks_like,
    picture_folders,
    problem_in,
)
from open_cloc.files import read_json
from open_cloc.samples import Text

FOLDERS = ("coco", "images", "coco2017")
SOURCE, NEGATIVE = "fg_ovd", "negative"
KEYS = {
    *("img_path", "bbox", "pos_expression", "neg_expression", "category_id", "neg_category_ids"),
    *("width", "height", "image_id", "sent_id", "test_type"),
}
COCO_FORM = (re.compile(rb'"neg_category_ids"\s*:'),)
ANNOTATIONS = b'"annotations"'
SCANNED = 2**22  # bytes at a time
INNER = re.compile(rb":\s*\{[^{}]*\}")
FORM = (re.compile(rb'"pos_expression"\s*:'), re.compile(rb'"neg_expression"\s*:'))


def recognises(text: str) -> bool:
    """Whether this is a file of boxes with sentences that are right and wrong."""
    file = Path(text)
    return looks_like(file, (".jsonl", ".json"), FORM) or (
        looks_like(file, (".json",), COCO_FORM) and _holds_wrong_sentences(file)
    )


def _holds_wrong_sentences(file: Path) -> bool:
    """Whether boxes have `neg_category_ids`; LVIS's pictures have a list of that name, too.

    The benchmark's own files have pictures first, and boxes megabytes behind them.
    """
    with file.open("rb") as stream:
        flat = INNER.sub(b":0", _from_annotations(stream))  # run lengths stand inside of an annotation
    objects = (part.rpartition(b"{")[2] for part in flat.split(b"}"))
    return any(b'"bbox"' in one and b'"neg_category_ids"' in one for one in objects)


def _from_annotations(stream: BinaryIO) -> bytes:
    """The beginning of a JSON's annotations, however far behind; nothing where there are none."""
    window = stream.read(HEAD)
    while ANNOTATIONS not in window:
        more = stream.read(SCANNED)
        if not more:
            return b""
        window = window[-len(ANNOTATIONS) :] + more
    start = window.index(ANNOTATIONS)
    return window[start : start + HEAD] + stream.read(max(0, start + HEAD - len(window)))


def open_fg_ovd(path: str, images: Path | None = None, outside: bool = False) -> PackedDataset:
    """Open one difficulty of FG-OVD, such as `1_attributes.jsonl`, which is its hard set.

    The boxes of a picture come as one sample, wherever its lines stand. The sentences that are wrong are
    texts of a region, of the role `negative`.

    Args:
        path: The file.
        images: Folder of the pictures: the one above `val2017`; beside the file unless given.
        outside: Allow pictures that do not lie in the data set's folder.

    Raises:
        MissingFileError: If the file or the pictures are missing.
        UserError: If it is of neither form, or nothing can be used.
    """
    file = Path(path)
    problems: list[Problem] = []
    left_out: Counter[str] = Counter()
    is_coco = file.suffix.lower() == ".json" and not looks_like(file, (".json",), FORM)
    rows = _boxes(file, problems) if is_coco else _lines(file, problems)
    entries = list(_entries(rows, file, problems, left_out))
    folders = picture_folders(file, images, *FOLDERS)
    return PackedDataset(file, folders, entries, problems=problems, left_out=left_out, outside=outside)


def _lines(file: Path, problems: list[Problem]) -> Iterator[tuple[str, Any]]:
    return ((f"line {number}", row) for number, row in json_lines(file, problems))


def _boxes(file: Path, problems: list[Problem]) -> Iterator[tuple[str, Any]]:
    """The annotations of a JSON in COCO's form, as lines."""
    document = read_json(file)
    pictures = _by_id(document, file, "images", problems)
    sentences = {own: row.get("name") for own, row in _by_id(document, file, "categories", problems).items()}
    for position, given in enumerate(list_in(document, file, "FG-OVD", "annotations")):
        where = f"annotation at position {position}"
        try:
            row = as_object(given)
            wrong = field_of(row, "neg_category_ids")
            if not isinstance(wrong, list):
                raise FieldError(f"neg_category_ids must be a list; got {shown(wrong)}")
            picture = _known(pictures, row, "image_id")
            yield (
                where,
                {
                    "img_path": field_of(picture, "file_name"),
                    "bbox": field_of(row, "bbox"),
                    "pos_expression": [_known(sentences, row, "category_id")],
                    "neg_expression": [_known(sentences, {"neg_category_ids": own}) for own in wrong],
                    **{key: picture[key] for key in ("width", "height") if key in picture},
                    "image_id": row["image_id"],
                },
            )
        except FieldError as error:
            problems.append(problem_in(error, where, file))


def _by_id(document: Any, file: Path, part: str, problems: list[Problem]) -> dict[str, Mapping[str, Any]]:
    found = {}
    for position, given in enumerate(list_in(document, file, "FG-OVD", part)):
        try:
            row = as_object(given)
            found[as_id(field_of(row, "id"), "id")] = row
        except FieldError as error:
            problems.append(problem_in(error, f"entry of {part} at position {position}", file))
    return found


def _known(found: Mapping[str, Any], row: Mapping[str, Any], name: str = "neg_category_ids") -> Any:
    """What the id in a field stands for."""
    own = as_id(field_of(row, name), name)
    if own not in found:
        raise FieldError(f"{name} {own!r} is not there")
    return found[own]


def _entries(
    rows: Iterator[tuple[str, Any]], file: Path, problems: list[Problem], left_out: Counter[str]
) -> Iterator[Entry]:
    """The pictures in the order of their first boxes."""
    pictures: dict[str, tuple[list[RawRegion], tuple[int, int] | None, dict[str, Any]]] = {}
    for where, row in rows:
        try:
            name, region, size_hw, metadata = _line(as_object(row), where)
            first = pictures.setdefault(name, ([], size_hw, metadata))
            for what, own, other in (
                ("height and width", size_hw, first[1]),
                ("image_id", metadata.get("image_id"), first[2].get("image_id")),
            ):
                if own != other:
                    raise FieldError(f"{name} is of {what} {own} here and {other} before", "other picture")
        except FieldError as error:
            problems.append(problem_in(error, where, file))
            continue
        first[0].append(region)
        count_keys(row, KEYS, left_out, "lines")
    for name, (regions, size_hw, metadata) in pictures.items():
        yield Entry(name, regions, (), size_hw, metadata)


def _line(
    entry: Mapping[str, Any], where: str
) -> tuple[str, RawRegion, tuple[int, int] | None, dict[str, Any]]:
    right, wrong = field_of(entry, "pos_expression"), field_of(entry, "neg_expression")
    if not isinstance(right, list) or len(right) != 1:
        raise FieldError(f"pos_expression must be a list of one sentence; got {shown(right)}")
    if not isinstance(wrong, list) or not wrong:
        raise FieldError(f"neg_expression must be a list of sentences; got {shown(wrong)}")
    texts = tuple(Text(as_text(text, "neg_expression").strip(), NEGATIVE, SOURCE) for text in wrong)
    box = as_box(field_of(entry, "bbox"), "bbox [x, y, w, h]")
    text = as_text(right[0], "pos_expression").strip()
    region = RawRegion(box, text, where, source=SOURCE, texts=texts)
    kept = {key: entry[key] for key in ("image_id", "test_type") if isinstance(entry.get(key), (int, str))}
    return as_text(field_of(entry, "img_path"), "img_path"), region, declared_size(entry), kept
