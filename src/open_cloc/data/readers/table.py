"""Tables that list pictures, one row a sample: Parquet, JSON, or CSV, read when asked for.

A row that is wrong costs its sample, a caption that is none costs itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from open_cloc.data.annotations import Problem, RawSample, finish
from open_cloc.data.fields import FieldError, as_id, as_text, shown
from open_cloc.data.names import is_url, make_keys, resolve, root_of
from open_cloc.data.readers.box_rows import is_box_a_row, open_box_rows
from open_cloc.data.readers.columns import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    KEY_COLUMNS,
    URL_COLUMNS,
    find_boxes,
    find_columns,
    scalars,
    texts_of,
    unused,
)
from open_cloc.data.readers.files import is_regular
from open_cloc.data.readers.objects import COLUMNS, Objects, column_of, names_beside, names_in, objects_of
from open_cloc.data.readers.packed import PackedDataset
from open_cloc.data.readers.rows import FIRST_ROWS, ROWS, UNREAD, ParquetRows, Rows, open_rows, parts_of
from open_cloc.data.readers.unread import form_of
from open_cloc.errors import MissingFileError, SampleError, UserError
from open_cloc.files import read_names
from open_cloc.samples import RegionSample
from open_cloc.texts import PackedTexts

LONGEST_NAME = 4096  # characters; what is longer is no path


def recognises(text: str) -> bool:
    """Whether a file's name ends as a table's does; a JSON must begin as a list of objects, without boxes."""
    file = Path(text)
    if parts_of(file):
        return True
    suffix, before = file.suffix.lower(), Path(file.stem).suffix.lower()
    if not is_regular(file):
        return False
    if suffix == ".json":
        with file.open("rb") as stream:
            head = stream.read(4096).removeprefix(b"\xef\xbb\xbf").split()
        return b"".join(head)[:2] == b"[{" and not form_of(file)
    return suffix in ROWS or (suffix in UNREAD and (before in ROWS or before == ""))


def open_table(
    path: str,
    image: str | None = None,
    caption: str | None = None,
    key: str | None = None,
    root: Path | None = None,
    outside: bool = False,
    objects: str | None = None,
    box_format: str = "",
    normalized: bool = False,
    names: Path | None = None,
) -> TableDataset | PackedDataset:
    """Open a table of pictures, with boxes where `box_format` says what those of a column are.

    A table with four columns of a box, and a row for each, has the rows of a picture as one sample.

    Args:
        path: A `.parquet`, `.jsonl`, `.json`, `.csv` or `.tsv` file; with a `*` in its name, as in
            `data/train-*.parquet`, all such files as one table.
        image: Column of the picture: a path, the encoded bytes, or a struct of both (`bytes`, `path`). One of
            `IMAGE_COLUMNS` unless given.
        caption: Column of a text or a list of texts; one of `CAPTION_COLUMNS` unless given; empty for none.
        key: Column of unique names; one of `KEY_COLUMNS` unless given; empty for row numbers.
        root: Folder that the pictures' paths are relative to; the table's own unless given.
        outside: Allow pictures that do not lie in that folder or the table's.
        objects: Column of boxes with names, as Hugging Face's data sets for detection have it;
            `objects` unless given. Lists of numbers alone are named by a column beside, such as `labels`.
        box_format: `xyxy`, `xywh` or `cxcywh`; nothing in a table says it, and without it no box is read.
        normalized: Boxes are shares of the picture's sides instead of pixels.
        names: File with the names that whole numbers stand for, one a line; Parquet of the hub has them.

    Raises:
        MissingFileError: If the table or the root does not exist.
        UserError: If the file is no such table, has no rows, a column is missing, or keys are not unique.
    """
    file = Path(path)
    rows = open_rows(file)
    folder = root or file.parent
    if not folder.is_dir():
        raise MissingFileError(f"no such folder of pictures: root={folder} ({file})")
    known = read_names(names) if names is not None else _names_in(rows, column_of(rows.columns, objects))
    if box_format and objects is None and is_box_a_row(rows.columns):
        if caption or key:
            raise UserError(
                f"caption= and key= are of tables with a row a picture; here is one a box ({file})"
            )
        return open_box_rows(rows, folder, image, box_format, normalized, known, outside)
    boxes = objects_of(rows.columns, objects, box_format, normalized, known, str(file))
    return TableDataset(rows, folder, image, caption, key, outside, boxes)


def _names_in(rows: Rows, column: str) -> tuple[str, ...]:
    return names_in(rows.features, rows.columns, column) if isinstance(rows, ParquetRows) else ()


class TableDataset:
    """The samples of a table: picture, captions, and the other columns that are numbers or text as metadata.

    Attributes:
        where: The table, for messages.
        columns: Names of the table's columns.
        class_names: What numbers of categories stand for; empty where names stand in the table, or no boxes.
        keys: A name for each row; empty where the column of keys holds none.
        problems: None: what is wrong belongs to a row.
        left_out: What was seen and is not used, with counts.
    """

    def __init__(
        self,
        rows: Rows,
        root: Path,
        image: str | None = None,
        caption: str | None = None,
        key: str | None = None,
        outside: bool = False,
        objects: Objects | None = None,
    ) -> None:
        """Find the columns, and check that keys are unique.

        Args:
            rows: The table's rows.
            root: Folder that the pictures' paths are relative to.
            image: Column of the picture; found by its name unless given.
            caption: Column of the texts; found by its name unless given; empty for none.
            key: Column of unique names; found by its name unless given; empty for row numbers.
            outside: Allow pictures that do not lie in `root` or the table's folder.
            objects: The column of boxes; none is read unless given.

        Raises:
            UserError: If there are no rows, a column is missing, or keys are not unique.
        """
        self._rows, self.where, self.root, self.outside = rows, str(rows.file), root, outside
        self.objects, self.class_names = objects, tuple(objects.names if objects else ())
        if not len(rows):
            raise UserError(f"table has no rows, but perhaps a header that is one ({self.where})")
        self.columns = rows.columns
        self._image = self._find("image", image, IMAGE_COLUMNS)
        self._caption = self._find("caption", caption, CAPTION_COLUMNS)
        self._key = self._find("key", key, KEY_COLUMNS)
        if not self._image:
            raise UserError(self._no_image_column())
        self._is_caption_known = caption is not None or bool(self._caption)
        self.keys = PackedTexts(self._read_keys() if self._key else ())
        self.problems: list[Problem] = []  # every row is a sample
        self.left_out = self._count_unused()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> RegionSample:
        """A sample; its picture is neither looked for nor decoded.

        Raises:
            SampleError: If the row has no picture, a URL for one, or captions that are not text.
        """
        return finish(self.raw(index))

    def raw(self, index: int) -> RawSample:
        """A sample with what is wrong with its captions.

        Raises:
            SampleError: If the row cannot be read, has no key, no picture, or a URL for one.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)} ({self.where})")
        row = self._rows[index]
        where = f"{self.where}, row {index}"
        try:
            key = self._key_of(row, index)
            image, file_name = self._picture(row)
        except SampleError as error:
            raise SampleError(f"{error} ({where})", error.cause) from error
        captions, problems = self._captions(row, where)
        boxes = self.objects
        regions, broken = boxes.read(row, where) if boxes else ((), ())
        used = (self._image, self._caption, self._key)
        others = {name: value for name, value in row.items() if name not in used}
        return RawSample(
            key=key,
            image=image,
            size_hw=None,
            where=where,
            captions=captions,
            regions=regions,
            box_format=boxes.box_format if boxes else "xyxy",
            normalized=boxes.normalized if boxes else True,
            metadata=({"file_name": file_name} if file_name else {}) | scalars(others),
            problems=(*problems, *broken),
        )

    def _find(self, what: str, given: str | None, known: Sequence[str]) -> str:
        """The column of something; empty where there is none."""
        if given and given not in self.columns:
            columns = ", ".join(self.columns)
            raise UserError(f"no column {given!r} for {what}; the columns are {columns} ({self.where})")
        return next(iter(find_columns(self.columns, known)), "") if given is None else given

    def _no_image_column(self) -> str:
        if any(column.lower() in URL_COLUMNS for column in self.columns):
            return f"{_only_urls()} ({self.where})"
        columns = ", ".join(self.columns)
        return f"no column of pictures; give it as image=COLUMN, one of {columns} ({self.where})"

    def _read_keys(self) -> list[str]:
        """A key for each row, empty where the row has none.

        Raises:
            UserError: If two rows share one.
        """
        given = [_id_of(row, self._key) for row in self._rows.scan([self._key])]
        first: dict[str, int] = {}
        for index, own in enumerate(given):
            if own and first.setdefault(own, index) != index:
                raise UserError(
                    f"rows {first[own]} and {index} share the key {own!r} of column {self._key!r}; give "
                    f"another column as key=COLUMN, or key= for row numbers ({self.where})"
                )
        keys = iter(make_keys([own for own in given if own]))
        return [next(keys) if own else "" for own in given]

    def _key_of(self, row: Mapping[str, Any], index: int) -> str:
        if not self._key:
            return f"{index:09d}"
        if not self.keys[index]:
            as_id(row.get(self._key), f"key in column {self._key!r}")  # says what is wrong
        return self.keys[index]

    def _captions(self, row: Mapping[str, Any], where: str) -> tuple[tuple[str, ...], tuple[Problem, ...]]:
        """The texts of a row, and what is wrong with them."""
        column = self._caption
        if not self._is_caption_known:  # none of the first rows has one
            column = next(iter(find_columns(row, CAPTION_COLUMNS)), "")
        try:
            return texts_of(row.get(column)), ()
        except FieldError as error:
            return (), (Problem(error.cause, f"{error} ({where}, column {column!r})"),)

    def _picture(self, row: Mapping[str, Any]) -> tuple[bytes | Path, str]:
        """The picture of a row, and its file's name where it has one."""
        name = value = row.get(self._image)
        if isinstance(value, list) and len(value) == 1:  # a list of the sample's pictures
            name = value = value[0]
        if isinstance(value, Mapping):
            name, encoded = value.get("path"), value.get("bytes")
            if isinstance(encoded, bytes) and encoded:
                return encoded, name if isinstance(name, str) else ""
        if isinstance(name, bytes) and name:
            return name, ""
        if name is None or name in ("", b""):
            raise FieldError(f"no picture in column {self._image!r}", "no picture")
        if not isinstance(name, str):
            raise FieldError(f"a picture must be a path or bytes; got {shown(value)}", "broken picture")
        if is_url(name):
            raise FieldError(f"{_only_urls()}: {shown(name)}", "picture is a URL")
        if name.startswith("data:") or len(name) > LONGEST_NAME:
            raise FieldError(
                "a picture must be a path or bytes; got a text of base64 or the like", "broken picture"
            )
        name = as_text(name, f"column {self._image!r}")
        return resolve(self.root, name, root_of(self._rows.file), self.outside), name

    def _count_unused(self) -> Counter[str]:
        """What the first rows hold that no sample will; pictures are not read for it."""
        columns = [name for name in self.columns if name != self._image]
        counts: Counter[str] = Counter()
        boxes = find_boxes(columns)
        if self.objects:
            boxes = self.objects.columns
        elif boxes:
            is_read = len(boxes) == 4 or find_columns(boxes, COLUMNS) or names_beside(columns, boxes[0])
            advice = "; box_format=... reads them" if is_read else ""
            counts[f"boxes in the columns {', '.join(boxes)}{advice}"] = len(self)
        if not self._is_caption_known and not self.objects:
            counts["rows without a column of captions; give it as caption=COLUMN"] = len(self)
        used = (self._image, self._caption, self._key, *boxes)
        scanned = islice(self._rows.scan(columns), FIRST_ROWS) if columns else ()
        first = [row for row in scanned if not isinstance(row, SampleError)]
        names = {name for row in first for name in unused(row, used)}
        if self.objects:
            keys = {key for row in first for key in self.objects.unused(row)}
            counts.update({f"boxes' key {key!r}": len(self) for key in sorted(keys)})
        counts.update({f"column {name!r}": len(self) for name in columns if name in names})
        return counts


def _id_of(row: Mapping[str, Any] | SampleError, column: str) -> str:
    """The id that a row gives itself; empty where it gives none that can be read."""
    try:
        return "" if isinstance(row, SampleError) else as_id(row.get(column), "key")
    except FieldError:  # said when the row is read
        return ""


def _only_urls() -> str:
    advice = "download them with img2dataset and give its shards"
    return f"the pictures are URLs, which are not fetched here; {advice}"
