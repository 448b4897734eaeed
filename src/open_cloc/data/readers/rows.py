"""Rows of Parquet files, of JSON lines and of CSV by number, read when they are asked for."""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from open_cloc.config import require
from open_cloc.errors import UserError

FIRST_ROWS = 100  # of JSON lines: these say which columns there are
LONGEST_FIELD = 2**27  # characters of a CSV field


class Rows(Protocol):
    """A table's rows by number, and the names of its columns."""

    @property
    def columns(self) -> Sequence[str]:
        """The names, in order."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...

    def column(self, name: str) -> Iterator[Any]:
        """A column's values, in order."""
        ...


def open_rows(file: Path) -> Rows:
    """The rows of a table by its file's suffix.

    Raises:
        UserError: If the suffix is none of `ROWS`, or the file is not what its suffix says.
    """
    if file.suffix.lower() not in ROWS:
        raise UserError(f"a table must end in {', '.join(ROWS)}; got {file}")
    return ROWS[file.suffix.lower()](file)


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
    pyarrow, parquet = require("pyarrow", "label"), require("pyarrow.parquet", "label")
    try:
        return parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"not a Parquet file: {error} ({file})") from error


ROWS: dict[str, Callable[[Path], Rows]] = {
    ".parquet": ParquetRows,
    ".jsonl": JsonRows,
    ".csv": CsvRows,
    ".tsv": CsvRows,
}
