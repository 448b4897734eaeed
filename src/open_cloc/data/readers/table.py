"""Tables that list pictures, one row a sample: Parquet, JSON lines, or CSV, read when asked for."""

from __future__ import annotations

import csv
import json
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from open_cloc.data.shards.region_json import SIZES, WRITTEN
from open_cloc.errors import MissingFileError, UserError
from open_cloc.samples import RegionSample

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
FIRST_ROWS = 100  # of JSON lines: these say which columns there are
LONGEST_FIELD = 2**27  # characters of a CSV field


class Rows(Protocol):
    """A table's rows by number, and the names of its columns."""

    columns: Sequence[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...

    def column(self, name: str) -> Iterator[Any]:
        """A column's values, in order."""
        ...


def open_table(
    path: str,
    image: str | None = None,
    caption: str | None = None,
    key: str | None = None,
    root: str | None = None,
) -> TableDataset:
    """Open a table of pictures.

    Args:
        path: A `.parquet`, `.jsonl`, `.csv` or `.tsv` file.
        image: Column of the picture: a path, the encoded bytes, or a struct of both (`bytes`, `path`). One of
            `IMAGE_COLUMNS` unless given.
        caption: Column of a text or a list of texts; one of `CAPTION_COLUMNS` unless given.
        key: Column of unique names; one of `KEY_COLUMNS` unless given; empty for row numbers.
        root: Folder that paths are relative to; the table's own unless given.

    Raises:
        MissingFileError: If the table or the root does not exist.
        UserError: If the file is no such table, has no rows, a column is missing, or keys are not unique.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingFileError(f"no such table: {file}")
    folder = Path(root) if root else file.parent
    if not folder.is_dir():
        raise MissingFileError(f"no such folder of pictures: root={folder} ({file})")
    return TableDataset(open_rows(file), str(file), folder, image, caption, key)


def open_rows(file: Path) -> Rows:
    """The rows of a table by its file's suffix."""
    kinds: dict[str, Any] = {".parquet": ParquetRows, ".jsonl": JsonRows, ".csv": CsvRows, ".tsv": CsvRows}
    if file.suffix.lower() not in kinds:
        raise UserError(f"a table must end in {', '.join(kinds)}; got {file}")
    return kinds[file.suffix.lower()](file)


class TableDataset:
    """The samples of a table: picture, captions, and the other columns that are numbers or text as metadata.

    Attributes:
        where: The table, for messages.
        columns: Its columns.
    """

    def __init__(
        self,
        rows: Rows,
        where: str,
        root: Path,
        image: str | None = None,
        caption: str | None = None,
        key: str | None = None,
    ) -> None:
        """As `open_table`, for rows that are open."""
        if not len(rows):
            raise UserError(f"table has no rows ({where})")
        self._rows, self.where, self.root = rows, where, root
        self.columns = tuple(rows.columns)
        self._image = self._find("image", image, IMAGE_COLUMNS)
        self._caption = self._find("caption", caption, CAPTION_COLUMNS)
        self._key = "" if key == "" else self._find("key", key, KEY_COLUMNS)
        if not self._image:
            raise UserError(self._no_image_column())
        if self._key:
            self._check_keys()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> RegionSample:
        """A sample; its picture is neither looked for nor decoded.

        Raises:
            UserError: If the row has no picture, a URL for one, or captions that are not text.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)} ({self.where})")
        row = self._rows[index]
        key = _as_key(row.get(self._key)) if self._key else f"{index:09d}"
        image, file_name = self._picture(row, index)
        captions = texts_of(row.get(self._caption), f"{self.where}, row {index}, column {self._caption!r}")
        used = (self._image, self._caption, self._key)
        others = {name: value for name, value in row.items() if name not in used}
        metadata = {"file_name": file_name} if file_name else {}
        return RegionSample(key, image, captions, metadata=metadata | scalars(others))

    def _find(self, what: str, given: str | None, known: Sequence[str]) -> str:
        """The column of something; empty where there is none."""
        if given is not None:
            if given not in self.columns:
                columns = ", ".join(self.columns)
                raise UserError(f"no column {given!r} for {what}; the columns are {columns} ({self.where})")
            return given
        return next(iter(find_columns(self.columns, known)), "")

    def _no_image_column(self) -> str:
        if any(column.lower() in URL_COLUMNS for column in self.columns):
            return _only_urls(self.where)
        columns = ", ".join(self.columns)
        return f"no column of pictures; give it as image=COLUMN, one of {columns} ({self.where})"

    def _check_keys(self) -> None:
        seen: dict[str, int] = {}
        for index, value in enumerate(self._rows.column(self._key)):
            key = _as_key(value)
            advice = f"give another column as key=COLUMN, or key= for row numbers ({self.where})"
            if not key:
                raise UserError(f"row {index} has no key in column {self._key!r}; {advice}")
            first = seen.setdefault(key, index)
            if first != index:
                raise UserError(
                    f"rows {first} and {index} share the key {key!r} of column {self._key!r}; {advice}"
                )

    def _picture(self, row: Mapping[str, Any], index: int) -> tuple[bytes | Path, str]:
        """The picture of a row, and its file's name where it has one."""
        where = f"{self.where}, row {index}"
        name = value = row.get(self._image)
        if isinstance(value, Mapping):
            name, encoded = value.get("path"), value.get("bytes")
            if encoded:
                return encoded, name if isinstance(name, str) else ""
        if not name:
            raise UserError(f"no picture in column {self._image!r} ({where})")
        if isinstance(name, bytes):
            return name, ""
        if not isinstance(name, str):
            raise UserError(f"a picture must be a path or bytes; got {type(name).__name__} ({where})")
        if name.lower().startswith(("http://", "https://")):
            raise UserError(_only_urls(where))
        return self.root / name, name


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


class JsonRows:
    """One JSON object a line; the lines' places in the file are kept, not the lines.

    Attributes:
        columns: The names in the first rows.
    """

    def __init__(self, file: Path) -> None:
        """Find the lines.

        Raises:
            UserError: If one of the first rows is not a JSON object.
        """
        self.file = file
        starts, end = array("q"), 0
        with file.open("rb") as stream:
            for line in stream:
                if line.strip():
                    starts.append(end)
                end += len(line)
        self._starts = np.array(starts, np.int64)
        first = [self[index] for index in range(min(len(self), FIRST_ROWS))]
        self.columns = tuple(dict.fromkeys(name for row in first for name in row))

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        with self.file.open("rb") as stream:
            stream.seek(int(self._starts[index]))
            return self._parse(stream.readline(), index)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        with self.file.open("rb") as stream:
            lines = (line for line in stream if line.strip())
            yield from (self._parse(line, index) for index, line in enumerate(lines))

    def column(self, name: str) -> Iterator[Any]:
        return (row.get(name) for row in self)

    def _parse(self, line: bytes, index: int) -> Mapping[str, Any]:
        where = f"({self.file}, row {index})"
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"not a line of JSON: {error} {where}") from error
        if not isinstance(row, dict):
            raise UserError(f"a row must be a JSON object; got {type(row).__name__} {where}")
        return row


class CsvRows:
    """Comma, tab or semicolon separated text with a header; the rows' places in the file are kept.

    Attributes:
        columns: The header.
    """

    def __init__(self, file: Path) -> None:
        """Find the rows.

        Raises:
            UserError: If the header is missing or names a column twice, or the text is no UTF-8 or no CSV.
        """
        self.file = file
        csv.field_size_limit(LONGEST_FIELD)
        with file.open("rb") as stream:
            header = stream.readline().decode("utf-8-sig", "replace")
        self._separator = max(",\t;", key=header.count)
        starts = array("q")
        self.columns: tuple[str, ...] = ()
        for start, fields in self._scan():
            if self.columns:
                starts.append(start)
            else:
                self.columns = tuple(field.strip() for field in fields)
        if len(set(self.columns)) < len(self.columns) or not all(self.columns):
            raise UserError(f"a header must name every column once; got {self.columns} ({file})")
        self._starts = np.array(starts, np.int64)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        _, fields = next(self._scan(int(self._starts[index])))
        if len(fields) != len(self.columns):
            raise UserError(
                f"a row must have {len(self.columns)} fields, as the header; got {len(fields)} "
                f"({self.file}, row {index})"
            )
        return dict(zip(self.columns, fields))

    def column(self, name: str) -> Iterator[Any]:
        place = self.columns.index(name)
        rows = self._scan(int(self._starts[0]))
        return (fields[place] if place < len(fields) else None for _, fields in rows)

    def _scan(self, start: int = 0) -> Iterator[tuple[int, list[str]]]:
        """Rows that are not blank, each with the byte where it begins, which may be lines before its end."""
        place = start

        def lines() -> Iterator[str]:
            nonlocal place
            for line in stream:
                place += len(line)
                yield line.decode("utf-8-sig" if place == len(line) else "utf-8")

        with self.file.open("rb") as stream:
            stream.seek(start)
            reader = csv.reader(lines(), delimiter=self._separator, strict=True)
            while True:
                start = place  # the reader takes a line only when it needs it
                try:
                    fields = next(reader)
                except StopIteration:
                    return
                except (csv.Error, UnicodeDecodeError) as error:
                    raise UserError(f"not a row of CSV: {error} ({self.file}, byte {start})") from error
                if fields:
                    yield start, fields


class ParquetRows:
    """The rows of a Parquet file; one row group at a time is in memory.

    Attributes:
        columns: The schema's top names.
    """

    def __init__(self, file: Path) -> None:
        """Read the footer.

        Raises:
            UserError: If it is no Parquet file, or pyarrow is missing.
        """
        self.file = file
        with _parquet(file) as table:
            self.columns = tuple(table.schema_arrow.names)
            sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        self._starts = np.cumsum([0, *sizes])
        self._group: tuple[int, Any] | None = None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        if self._group is None or self._group[0] != group:
            with _parquet(self.file) as table:
                self._group = (group, table.read_row_group(group, use_threads=False))
        return self._group[1].slice(index - int(self._starts[group]), 1).to_pylist()[0]

    def column(self, name: str) -> Iterator[Any]:
        with _parquet(self.file) as table:
            for batch in table.iter_batches(columns=[name], use_threads=False):
                yield from batch.column(0).to_pylist()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_group": None}  # worker processes read their own


def _parquet(file: Path) -> Any:
    """An open `pyarrow.parquet.ParquetFile`."""
    from open_cloc.config import require

    pyarrow, parquet = require("pyarrow", "label"), require("pyarrow.parquet", "label")
    try:
        return parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"not a Parquet file: {error} ({file})") from error


def _as_key(value: Any) -> str:
    """A value as a sample's name: no dot, which would end it inside a tar; empty where there is none."""
    return "" if value is None else str(value).strip().lstrip("/").replace(".", "_")


def _only_urls(where: str) -> str:
    return (
        f"the pictures are URLs, which are not fetched here; download them with img2dataset and give its "
        f"shards ({where})"
    )
