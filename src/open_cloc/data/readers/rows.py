"""Rows of Parquet files, of JSON and of CSV by number, read when they are asked for.

A row that cannot be read is that row's fault: it raises when it is asked for, and the others stay.
"""

from __future__ import annotations

import csv
import json
import re
from array import array
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias

import numpy as np

from open_cloc.config import require
from open_cloc.disguises import LOOKED_AT, what_it_is
from open_cloc.errors import MissingFileError, SampleError, UserError
from open_cloc.files import parse_json, read_json
from open_cloc.texts import PackedTexts

FIRST_ROWS = 100  # of JSON: these say which columns there are
LONGEST_FIELD = 2**27  # characters of a CSV field
BATCH = 256  # rows of Parquet that become Python's at a time
SEPARATORS = ",\t;|"
BROKEN = "broken row"

Row: TypeAlias = Mapping[str, Any]

# Suffixes of tables that are not read.
UNREAD = (".gz", ".zst", ".xz", ".bz2", ".zip", ".xlsx", ".xls", ".ods", ".arrow", ".feather")


class Rows(Protocol):
    """A table's rows by number.

    Attributes:
        file: The table.
        columns: Names of the columns, in order.
    """

    file: Path
    columns: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row:
        """A row; raises `SampleError` where it cannot be read."""
        ...

    def scan(self, columns: Sequence[str]) -> Iterator[Row | SampleError]:
        """All rows in order with at least these columns; an error stands for one that cannot be read."""
        ...


def parts_of(path: Path) -> list[Path]:
    """The files that a name with a `*` stands for, sorted; none where it has none, or is a file's own."""
    if "*" not in path.name or path.exists():
        return []
    return sorted(path.parent.glob(path.name))


def open_rows(file: Path) -> Rows:
    """The rows of a table by its file's suffix.

    Args:
        file: The table; `train-*.parquet` stands for all parts of one.

    Raises:
        MissingFileError: If it is not there.
        UserError: If the suffix is none of `ROWS`, or the file is not what its suffix says.
    """
    parts = parts_of(file)
    if parts and any(part.suffix.lower() != ".parquet" for part in parts):
        raise UserError(f"tables of several files must be Parquet; got {parts[0]} and others for {file}")
    if parts:
        return ParquetRows(*parts)
    if not file.is_file():
        raise MissingFileError(f"no such table: {file}")
    try:
        with file.open("rb") as stream:
            head = stream.read(LOOKED_AT)
    except OSError as error:
        raise UserError(f"table cannot be read: {error.strerror or error} ({file})") from error
    if head and (what := what_it_is(head)):
        raise UserError(f"table is {what} ({file})")
    is_csv = file.suffix.lower() in (".csv", ".tsv")
    if is_csv and b"\r" in head[:-1] and b"\n" not in head:  # the last may have its own behind it
        raise UserError(f"table has lines that end as old Macs ended them: save it as CSV in UTF-8 ({file})")
    if file.suffix.lower() not in ROWS:
        raise UserError(f"a table must end in {', '.join(ROWS)}; got {file}")
    return ROWS[file.suffix.lower()](file)


class JsonRows:
    """One JSON object a line; the lines' places in the file are kept, not the lines.

    Attributes:
        file: The table.
        columns: The names in the first rows.
    """

    def __init__(self, file: Path) -> None:
        """Find the lines.

        Raises:
            UserError: If none of the first rows is a JSON object.
        """
        self.file = file
        starts, end = array("q"), 0
        with file.open("rb") as stream:
            for line in stream:
                if line.strip():
                    starts.append(end)
                end += len(line)
        self._starts = np.array(starts, np.int64)
        self.columns = _columns_of(self)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Row:
        with self.file.open("rb") as stream:
            stream.seek(int(self._starts[index]))
            return self._parse(stream.readline(), index)

    def scan(self, columns: Sequence[str] = ()) -> Iterator[Row | SampleError]:
        """All rows, in order."""
        with self.file.open("rb") as stream:
            lines = (line for line in stream if line.strip())
            for index, line in enumerate(lines):
                try:
                    yield self._parse(line, index)
                except SampleError as error:
                    yield error

    def _parse(self, line: bytes, index: int) -> Row:
        where = f"{self.file}, row {index}"
        try:
            row = parse_json(line, "row")
        except UserError as error:
            raise SampleError(f"{error} ({where})", BROKEN) from error
        return _object(row, where)


class JsonListRows:
    """The objects of a list in one JSON document, kept as text.

    Attributes:
        file: The table.
        columns: The names in the first rows.
    """

    def __init__(self, file: Path) -> None:
        """Parse the document.

        Raises:
            UserError: If it is no JSON, no list, or none of the first entries is an object.
        """
        self.file = file
        document = read_json(file)
        if not isinstance(document, list):
            kind = type(document).__name__
            raise UserError(f"a table in JSON must be a list of objects; got {kind} ({file})")
        try:
            self._rows = PackedTexts(json.dumps(row) for row in document)
        except RecursionError:
            raise UserError(f"JSON is nested too deeply ({file})") from None
        self.columns = _columns_of(self)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return _object(json.loads(self._rows[index]), f"{self.file}, row {index}")

    def scan(self, columns: Sequence[str] = ()) -> Iterator[Row | SampleError]:
        """All rows, in order."""
        for index in range(len(self)):
            try:
                yield self[index]
            except SampleError as error:
                yield error


def _object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise SampleError(f"a row must be a JSON object; got {type(row).__name__} ({where})", BROKEN)
    return row


def _columns_of(rows: JsonRows | JsonListRows) -> tuple[str, ...]:
    """The names in the first rows that can be read.

    Raises:
        UserError: If there are rows, and none of these can be read.
    """
    first = list(islice(rows.scan(), FIRST_ROWS))
    readable = [row for row in first if not isinstance(row, SampleError)]
    if first and not readable:
        raise UserError(f"none of the first {len(first)} rows can be read: {first[0]}")
    return tuple(dict.fromkeys(name for row in readable for name in row))


class CsvRows:
    """Text separated by commas, tabs, semicolons or bars, with a header; the rows' places are kept.

    A first line `sep=;`, as Excel reads it, is heeded.

    Attributes:
        file: The table.
        columns: The header; a column without a name is called `Unnamed: 0`, by its number.
    """

    def __init__(self, file: Path) -> None:
        """Find the rows.

        Raises:
            UserError: If the header cannot be read, or names a column twice.
        """
        self.file = file
        csv.field_size_limit(LONGEST_FIELD)
        self._separator, start = self._find_separator()
        scan = self._scan(start)
        _, header = next(scan, (start, []))
        if isinstance(header, SampleError):
            raise UserError(f"header cannot be read: {header} ({file})")
        self.columns = tuple(name.strip() or f"Unnamed: {i}" for i, name in enumerate(header))
        if len(set(self.columns)) < len(self.columns):
            raise UserError(f"a header must name every column once; got {self.columns} ({file})")
        self._starts = np.fromiter((place for place, _ in scan), np.int64)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Row:
        _, fields = next(self._scan(int(self._starts[index])))
        row = self._row(fields, index)
        if isinstance(row, SampleError):
            raise row
        return row

    def scan(self, columns: Sequence[str] = ()) -> Iterator[Row | SampleError]:
        """All rows, in order."""
        if len(self):
            for index, (_, fields) in enumerate(self._scan(int(self._starts[0]))):
                yield self._row(fields, index)

    def _row(self, fields: list[str] | SampleError, index: int) -> Row | SampleError:
        if isinstance(fields, SampleError):
            return SampleError(f"{fields} ({self.file}, row {index})", BROKEN)
        if len(fields) == len(self.columns):
            return dict(zip(self.columns, fields))
        return SampleError(
            f"a row must have {len(self.columns)} fields, as the header; got {len(fields)} ({self.file}, row "
            f"{index})",
            BROKEN,
        )

    def _find_separator(self) -> tuple[str, int]:
        """What separates the fields, and the byte where the header begins."""
        with self.file.open("rb") as stream:
            first = stream.readline()
            header = first.decode("utf-8-sig", "replace")
            said = header.strip('\r\n"')
            if said.lower().startswith("sep="):
                header = stream.readline().decode("utf-8", "replace")
                return said[4:5] or _separator_of(header), len(first)
        return _separator_of(header), 0

    def _scan(self, start: int) -> Iterator[tuple[int, list[str] | SampleError]]:
        """Rows that are not blank, each with the byte where it begins, which may be lines before its end."""
        with self.file.open("rb") as stream:
            while True:
                end = yield from self._scan_sound(stream, start)
                if end is None:
                    return
                # The line that broke is passed over; the next may be sound.
                stream.seek(end)
                start = end + len(stream.readline())

    def _scan_sound(
        self, stream: BinaryIO, start: int
    ) -> Generator[tuple[int, list[str] | SampleError], None, int | None]:
        """Rows from a byte on, up to the first that is broken; returns where that one begins."""
        place = start

        def lines() -> Iterator[str]:
            nonlocal place
            for line in stream:
                place += len(line)
                yield line.decode("utf-8-sig" if place == len(line) else "utf-8")

        stream.seek(start)
        reader = csv.reader(lines(), delimiter=self._separator, strict=True)
        while True:
            start = place  # the reader takes a line only when it needs it
            try:
                fields = next(reader)
            except StopIteration:
                return None
            except (csv.Error, UnicodeDecodeError) as error:
                advice = "; save the table in UTF-8" if isinstance(error, UnicodeDecodeError) else ""
                yield start, SampleError(f"not a row of CSV: {error}{advice}", BROKEN)
                return start
            if any(map(str.strip, fields)):
                yield start, fields


def _separator_of(header: str) -> str:
    """The most common separator of a header, outside of quotes."""
    return max(SEPARATORS, key=re.sub(r'"[^"]*"', "", header).count)


class ParquetRows:
    """The rows of a Parquet file, or of several that are parts of one table; one row group is in memory.

    Attributes:
        file: The table; the first of its parts.
        columns: The schema's top names.
    """

    def __init__(self, file: Path, *others: Path) -> None:
        """Read the footers.

        Args:
            file: The table, or its first part.
            others: Further parts, in order.

        Raises:
            UserError: If it is no Parquet file, names a column twice, parts differ in their columns, or
                pyarrow is missing.
        """
        self.file = file
        pyarrow = require("pyarrow", "label")
        # What a damaged file leads to: `ArrowException` is the kin of all errors of theirs.
        self._errors = (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError)
        footers = {part: self._read_footer(part) for part in (file, *others)}
        self.columns = footers[file][0]
        for part, (columns, _) in footers.items():
            if columns != self.columns:
                raise UserError(
                    f"parts of a table must have the same columns; got {self.columns} in {file}, "
                    f"{columns} in {part}"
                )
        self._groups = [(part, group) for part, (_, own) in footers.items() for group in range(len(own))]
        sizes = [size for _, own in footers.values() for size in own]
        self._starts = np.cumsum([0, *sizes])
        self._group: tuple[int, Any] | None = None
        self.features = _hub_features(file)

    def _read_footer(self, file: Path) -> tuple[tuple[str, ...], list[int]]:
        """A file's columns, and how many rows its groups have."""
        try:
            with _open_parquet(file) as table:
                columns = tuple(table.schema_arrow.names)
                sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        except self._errors as error:
            raise UserError(f"not a Parquet file: {error} ({file})") from error
        if len(set(columns)) < len(columns):
            raise UserError(f"a table must name every column once; got {columns} ({file})")
        return columns, sizes

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Row:
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        try:
            if self._group is None or self._group[0] != group:
                file, number = self._groups[group]
                with _open_parquet(file) as table:
                    self._group = (group, table.read_row_group(number, use_threads=False))
            return self._group[1].slice(index - int(self._starts[group]), 1).to_pylist()[0]
        except self._errors as error:
            raise self._broken(error, index) from error

    def scan(self, columns: Sequence[str]) -> Iterator[Row | SampleError]:
        """All rows in order, with these columns alone."""
        for group, size in enumerate(np.diff(self._starts).tolist()):
            num_read = 0
            file, number = self._groups[group]
            try:
                with _open_parquet(file) as table:
                    batches = table.iter_batches(BATCH, [number], list(columns), use_threads=False)
                    for row in (row for batch in batches for row in batch.to_pylist()):
                        num_read += 1
                        yield row
            except self._errors as error:
                start = int(self._starts[group])
                yield from (self._broken(error, start + row) for row in range(num_read, size))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_group": None}  # worker processes read their own

    def _broken(self, error: Exception, index: int) -> SampleError:
        return SampleError(f"row cannot be read: {error} ({self.file}, row {index})", BROKEN)


def _hub_features(file: Path) -> dict[str, Any]:
    """What a Parquet file of the hub says of its columns in its footer; nothing where it says nothing."""
    with _open_parquet(file) as table:
        said = (table.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(said).get("info", {}).get("features", {})
    except (ValueError, AttributeError, RecursionError):  # of another form than theirs
        return {}
    return features if isinstance(features, dict) else {}


def _open_parquet(file: Path) -> Any:
    """An open `pyarrow.parquet.ParquetFile`."""
    return require("pyarrow.parquet", "label").ParquetFile(file)


ROWS: dict[str, Callable[[Path], Rows]] = {
    ".parquet": ParquetRows,
    ".jsonl": JsonRows,
    ".ndjson": JsonRows,
    ".jsonlines": JsonRows,
    ".json": JsonListRows,
    ".csv": CsvRows,
    ".tsv": CsvRows,
}
