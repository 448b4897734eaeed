"""Tables that list pictures, one row a sample: Parquet, JSON lines, or CSV, read when asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from open_cloc.data.readers.columns import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    KEY_COLUMNS,
    URL_COLUMNS,
    find_columns,
    scalars,
    texts_of,
)
from open_cloc.data.readers.rows import ROWS, Rows, open_rows
from open_cloc.errors import MissingFileError, UserError
from open_cloc.samples import RegionSample


def recognises(text: str) -> bool:
    """Whether a file's name ends as a table's does."""
    return Path(text).suffix.lower() in ROWS and Path(text).is_file()


def open_table(
    path: str,
    image: str | None = None,
    caption: str | None = None,
    key: str | None = None,
    root: Path | None = None,
) -> TableDataset:
    """Open a table of pictures.

    Args:
        path: A `.parquet`, `.jsonl`, `.csv` or `.tsv` file.
        image: Column of the picture: a path, the encoded bytes, or a struct of both (`bytes`, `path`). One of
            `IMAGE_COLUMNS` unless given.
        caption: Column of a text or a list of texts; one of `CAPTION_COLUMNS` unless given.
        key: Column of unique names; one of `KEY_COLUMNS` unless given; empty for row numbers.
        root: Folder that the pictures' paths are relative to; the table's own unless given.

    Raises:
        MissingFileError: If the table or the root does not exist.
        UserError: If the file is no such table, has no rows, a column is missing, or keys are not unique.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingFileError(f"no such table: {file}")
    folder = root or file.parent
    if not folder.is_dir():
        raise MissingFileError(f"no such folder of pictures: root={folder} ({file})")
    return TableDataset(open_rows(file), str(file), folder, image, caption, key)


class TableDataset:
    """The samples of a table: picture, captions, and the other columns that are numbers or text as metadata.

    Attributes:
        where: The table, for messages.
        columns: Names of the table's columns.
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
        """Find the columns, and check that keys are unique.

        Args:
            rows: The table's rows.
            where: The table, for messages.
            root: Folder that the pictures' paths are relative to.
            image: Column of the picture; found by its name unless given.
            caption: Column of the texts; found by its name unless given.
            key: Column of unique names; found by its name unless given; empty for row numbers.

        Raises:
            UserError: If there are no rows, a column is missing, or keys are not unique.
        """
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


def _as_key(value: Any) -> str:
    """A value as a sample's name: no dot, which would end it inside a tar; empty where there is none."""
    return "" if value is None else str(value).strip().lstrip("/").replace(".", "_")


def _only_urls(where: str) -> str:
    return (
        f"the pictures are URLs, which are not fetched here; download them with img2dataset and give its "
        f"shards ({where})"
    )
