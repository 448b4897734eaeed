"""What `metadata.jsonl`, `.csv` or `.parquet` says of a folder's pictures, as Hugging Face lays it out."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import replace
from pathlib import Path, PurePosixPath

from open_cloc.data.annotations import Problem, RawSample
from open_cloc.data.bad_samples import problem_of
from open_cloc.data.fields import FieldError, as_text, field_of
from open_cloc.data.names import resolve
from open_cloc.data.readers.columns import (
    CAPTION_COLUMNS,
    find_boxes,
    find_columns,
    scalars,
    texts_of,
    unused,
)
from open_cloc.data.readers.rows import Row, Rows, open_rows
from open_cloc.errors import SampleError, UserError

FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
NAME = "file_name"


class Metadata:
    """The rows that speak of the pictures of a folder.

    Attributes:
        names: Paths of the files that are read, below the folder.
        problems: Files and rows that cannot be used.
        left_out: What was seen and is not used, with counts.
    """

    def __init__(self, folder: Path, pictures: Sequence[str], others: Sequence[str], outside: bool) -> None:
        """Read which row speaks of which picture; what a nearer folder says replaces the outer's.

        Args:
            folder: The data set's.
            pictures: Paths of the pictures below it.
            others: Paths of other files below it; those named as `FILES` are read.
            outside: Allow links that lead out of the folder.
        """
        found = [name for name in others if PurePosixPath(name).name in FILES]
        self.names = sorted(found, key=lambda name: name.count("/"))
        self.problems: list[Problem] = []
        self.left_out: Counter[str] = Counter()
        self._files: list[Rows] = []
        self._rows: dict[str, tuple[int, int]] = {}  # path of a picture -> file and row
        known = set(pictures)
        for name in self.names:
            try:
                rows = open_rows(resolve(folder, name, outside=outside))
            except UserError as error:
                self.problems.append(Problem("unreadable metadata", str(error)))
                continue
            described = self._read(rows, name, known)
            self._rows |= {picture: (len(self._files), row) for picture, row in described.items()}
            self._files.append(rows)

    def add_to(self, sample: RawSample, picture: str) -> RawSample:
        """A sample with what the metadata say of its picture; their captions replace those it has.

        Args:
            sample: As the files beside the picture have it.
            picture: Path of the picture below the folder.

        Raises:
            SampleError: If the row cannot be read any more.
        """
        if picture not in self._rows:
            return sample
        number, index = self._rows[picture]
        rows = self._files[number]
        row = rows[index]
        column = _caption_column(row)
        others = {name: value for name, value in row.items() if name not in (NAME, column)}
        metadata = {**sample.metadata, **scalars(others)}
        try:
            captions = texts_of(row.get(column))
        except FieldError as error:
            problem = Problem(error.cause, f"{error} ({rows.file}, row {index}, column {column!r})")
            return replace(sample, metadata=metadata, problems=(*sample.problems, problem))
        return replace(sample, metadata=metadata, captions=captions or sample.captions)

    def _read(self, rows: Rows, name: str, known: Set[str]) -> dict[str, int]:
        """Which row of a file speaks of a picture, by the picture's path."""
        below = posixpath.dirname(name)
        found: dict[str, int] = {}
        absent: list[str] = []
        for index, row in enumerate(rows.scan(rows.columns)):
            try:
                if isinstance(row, SampleError):
                    raise row
                picture = _picture_of(row, below, known, f"{rows.file}, row {index}")
            except SampleError as error:
                self.problems.append(problem_of(error))
                continue
            if picture is None:
                absent.append(f"row {index} names {row.get(NAME)!r:.80}")
            elif found.setdefault(picture, index) != index:
                message = f"rows {found[picture]} and {index} both describe {picture!r} ({rows.file})"
                self.problems.append(Problem("repeated row", message))
            else:
                used = (NAME, _caption_column(row))
                self.left_out.update(_told(field, name) for field in unused(row, used))
        if absent and not found:
            message = (
                f"no row names a picture that is there, by its path from {rows.file.parent} ({rows.file})"
            )
            self.problems.append(Problem("rows without pictures", message))
            return found
        self.problems += [
            Problem("row without a picture", f"{row}, which is not there ({rows.file})") for row in absent
        ]
        return found


def _picture_of(row: Row, below: str, known: Set[str], where: str) -> str | None:
    """Path of the picture that a row speaks of; None where it is not there."""
    try:
        name = as_text(field_of(row, NAME), NAME)
    except FieldError as error:
        raise SampleError(f"a row must name a picture: {error} ({where})", "broken row") from error
    places = (posixpath.normpath(posixpath.join(below, own)) for own in (name, name.replace("\\", "/")))
    return next((place for place in places if place in known), None)


def _told(field: str, name: str) -> str:
    """What is said of a field that is not used; of boxes, who reads them."""
    advice = f"; table:{name},box_format=... reads them" if find_boxes([field]) else ""
    return f"key {field!r} of {name}{advice}"


def _caption_column(row: Row) -> str:
    return next(iter(find_columns(row, CAPTION_COLUMNS)), "")
