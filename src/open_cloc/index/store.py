"""An index on disk or in object storage: a LanceDB table of regions that knows which model made it."""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from open_cloc.config import from_dict, require
from open_cloc.errors import ExistingFileError, MissingFileError, RunError, UserError
from open_cloc.files import is_free, locked
from open_cloc.index.rows import FIELDS, PICTURES, VECTOR, schema_of
from open_cloc.shown import without_secrets

EXTRA = "index"
TABLE = "regions"
ABOUT = b"open_cloc"  # key of the schema's metadata under which `About` stands
LAYOUT = 1

# Rows from which on a search goes through an approximate index: below, looking at all is quick. What a filter
# leaves counts, since few of its rows may lie in the parts that would be looked at.
MIN_APPROXIMATE = 50_000
MOST_APPROXIMATE = 1000  # rows that are asked for; the parts looked at hold some thousands
# Parts of the approximate index that are looked at, and how many times the hits are compared exactly: with
# 200,000 regions ten hits of ten are the true ones (docs/log).
PROBES, REFINE = 20, 5
MOST_PARTITIONS = 4096
BATCH = 8192
KEPT_FOR = timedelta(hours=1)  # what was replaced stays for those who are reading it
NEWS = timedelta(seconds=1)  # after which an open index sees what other processes have added


@dataclass(frozen=True)
class About:
    """What an index says of itself.

    Attributes:
        model: `identity_of` the model that embedded its regions.
        weights: Where the model was, a folder or a hub id.
        columns: Columns of metadata, each with its type.
        thumbnail: Longer side of its small pictures in pixels; 0 where it has none.
        dtype: Type of the model's weights, as `open_cloc.load` takes it.
        layout: Version of the layout.
    """

    model: str
    weights: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    thumbnail: int = 320
    dtype: str = "fp32"
    layout: int = LAYOUT


class Store:
    """The rows of an index.

    Attributes:
        place: Folder or URL.
        about: What the index says of itself.
    """

    def __init__(self, place: str, table: Any, about: About) -> None:
        """Take an open table; `Store.create` and `Store.open` make one."""
        self.place, self._table, self.about = place, table, about

    @classmethod
    def create(cls, place: str, width: int, about: About) -> Store:
        """Begin an index.

        Args:
            place: New or empty folder, or a URL of object storage, as LanceDB takes it.
            width: Length of an embedding.
            about: What it says of itself.

        Raises:
            ExistingFileError: If something is there.
            UserError: If the extra is not installed, or a column cannot be.
        """
        lancedb = require_lancedb()
        check_place(place)
        shown = without_secrets(place)
        schema = schema_of(width, about.columns, {ABOUT.decode(): json.dumps(asdict(about))})
        with speaking_of_index(shown):
            if is_url(place):
                try:
                    table = _connect(lancedb, place).create_table(TABLE, schema=schema)
                except ValueError as error:
                    if "already exists" not in str(error):
                        raise
                    raise ExistingFileError(f"there is an index at {shown} (add adds to it)") from None
            else:
                _create_whole(lancedb, Path(place), schema)
                table = _connect(lancedb, place).open_table(TABLE)
        return cls(place, table, about)

    @classmethod
    def open(cls, place: str) -> Store:
        """Open an index.

        Raises:
            MissingFileError: If there is none.
            UserError: If it is damaged, of a later layout, or the extra is not installed.
        """
        lancedb = require_lancedb()
        shown = without_secrets(place)
        if not is_url(place) and not (Path(place) / f"{TABLE}.lance").is_dir():
            raise MissingFileError(f"no index at {shown} (open-cloc index build makes one)")
        with speaking_of_index(shown):
            try:
                table = _connect(lancedb, place).open_table(TABLE)
            except ValueError as error:
                if "not found" not in str(error):
                    raise
                raise MissingFileError(f"no index at {shown} (open-cloc index build makes one)") from None
            written = (table.schema.metadata or {}).get(ABOUT)
        if written is None or any(name not in table.schema.names for name in (*FIELDS, VECTOR)):
            raise UserError(f"{shown} holds a table that is no index of open-cloc")
        about = json.loads(written)
        if about.get("layout") != LAYOUT:
            raise UserError(f"{shown} is of layout {about.get('layout')}; this version reads {LAYOUT}")
        return cls(place, table, from_dict(About, about, "the index's description"))

    def check_model(self, identity: str) -> None:
        """Refuse a model that did not embed these regions: their cosines would mean nothing.

        Raises:
            UserError: If it is another one.
        """
        if identity != self.about.model:
            known = f" ({self.about.weights})" if self.about.weights else ""
            raise UserError(
                f"{without_secrets(self.place)} was made by another model{known}, or in another precision; "
                "search it by that one, or build an index anew"
            )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other processes of this machine from adding; readers go on.

        Nothing keeps processes from adding to object storage at once: pictures that two of them add are there
        twice, and searches fold them.

        Raises:
            UserError: If another process adds.
        """
        with nullcontext() if is_url(self.place) else locked(Path(self.place)):
            with self._speaking():
                self._table.checkout_latest()  # another may have added since this one opened it
            yield

    def count(self, where: str = "") -> int:
        """Rows, those of whole pictures too, that a filter lets through.

        Raises:
            UserError: If the filter cannot be understood.
        """
        with self._speaking(where):
            return self._table.count_rows(where or None)

    def pictures(self) -> set[str]:
        """Names of the pictures that are there, each with all of its rows."""
        with self._speaking():
            found = self._table.search().where(PICTURES).select(["picture"]).to_arrow()
        return set(found["picture"].to_pylist())

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows; when this returns they are there, and before, none of them.

        Raises:
            RunError: If they cannot be written, such as on a full disk: the index is as it was.
        """
        if rows:
            with self._speaking():
                self._table.add(list(rows))

    def remove(self, where: str) -> int:
        """Take out pictures, each with all of its rows; no other process of this machine writes meanwhile.

        Args:
            where: A filter in SQL; a picture goes if it lets one of its rows through.

        Returns:
            How many pictures were there.

        Raises:
            UserError: If the filter cannot be understood, or another process writes.
            RunError: If the rest cannot be written.
        """
        with self.writing():
            pictures = sorted(set(self.read(["picture"], where)["picture"].to_pylist()))
            for start in range(0, len(pictures), BATCH):
                # Of hexadecimal digits: nothing to quote.
                names = ", ".join(f"'{name}'" for name in pictures[start : start + BATCH])
                with self._speaking():
                    self._table.delete(f"picture IN ({names})")
            self.optimize()
        return len(pictures)

    def optimize(self) -> None:
        """Join small files, and make or renew the approximate index where there are rows enough."""
        with self._speaking():
            rows = self._table.count_rows()
            if rows >= MIN_APPROXIMATE and not self._is_indexed():
                self._table.create_index(
                    metric="cosine",
                    vector_column_name=VECTOR,
                    index_type="IVF_SQ",
                    num_partitions=min(MOST_PARTITIONS, round(rows**0.5)),
                )
            self._table.optimize(cleanup_older_than=KEPT_FOR)

    def _is_indexed(self) -> bool:
        return any(VECTOR in index.columns for index in self._table.list_indices())

    def nearest(self, vector: np.ndarray, limit: int, where: str = "", *, exact: bool = False) -> Any:
        """The rows nearest to a vector (D,), best first, as an Arrow table with `_distance`, 1 - cosine.

        Args:
            vector: What to look for, of any length but 0.
            limit: Most rows.
            where: A filter in SQL over the columns.
            exact: Look at all rows, also where there is an approximate index.

        Raises:
            UserError: If the filter cannot be understood.
        """
        found = None
        if not exact and limit <= MOST_APPROXIMATE and self._is_approximate(where):
            found = self._nearest(vector, limit, where, is_exact=False)
        if found is None or found.num_rows < limit:
            found = self._nearest(vector, limit, where, is_exact=True)
        return found

    def _is_approximate(self, where: str) -> bool:
        return self._is_indexed() and self.count(where) >= MIN_APPROXIMATE

    def _nearest(self, vector: np.ndarray, limit: int, where: str, *, is_exact: bool) -> Any:
        columns = [name for name in self._table.schema.names if name != "thumbnail"]
        with self._speaking(where):
            query = self._table.search(vector.astype(np.float32), vector_column_name=VECTOR)
            query = query.distance_type("cosine").limit(limit).select([*columns, "_distance"])
            query = query.where(where, prefilter=True) if where else query
            if is_exact:
                return query.bypass_vector_index().to_arrow()
            return query.nprobes(PROBES).refine_factor(REFINE).to_arrow()

    def read(self, columns: Sequence[str], where: str = "", limit: int | None = None) -> Any:
        """Columns of the rows that a filter lets through, as an Arrow table, in no order.

        Raises:
            UserError: If the filter cannot be understood.
        """
        with self._speaking(where):
            query = self._table.search().select(list(columns))
            query = query.where(where) if where else query
            return (query.limit(limit) if limit is not None else query).to_arrow()

    def batches(self, columns: Sequence[str], where: str = "") -> Iterator[Any]:
        """Rows that a filter lets through, as Arrow batches, whatever there are."""
        with self._speaking(where):
            query = self._table.search().select(list(columns))
            yield from (query.where(where) if where else query).to_batches(BATCH)

    def _speaking(self, where: str = "") -> Any:
        return speaking_of_index(without_secrets(self.place), where)


def check_place(place: str) -> None:
    """Refuse a folder for a new index in which something is.

    Raises:
        ExistingFileError: If something is there.
    """
    if not is_url(place) and not is_free(Path(place)):
        raise ExistingFileError(f"index must be a new or empty folder; got {place} (add adds to one)")


def _create_whole(lancedb: Any, folder: Path, schema: Any) -> None:
    """Begin a table beside its folder and give it its name when it is whole, whenever this process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name[:100]}.", dir=folder.resolve().parent))
    try:
        _connect(lancedb, str(beside)).create_table(TABLE, schema=schema)
        try:
            os.rename(beside / f"{TABLE}.lance", folder / f"{TABLE}.lance")
        except OSError as error:
            if not (folder / f"{TABLE}.lance").is_dir():
                raise
            raise ExistingFileError(f"there is an index at {folder} (add adds to it)") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def is_url(place: str) -> bool:
    """Whether a place is in object storage."""
    return "://" in place


def require_lancedb() -> Any:
    """Import LanceDB.

    Raises:
        UserError: If the extra is not installed.
    """
    # Its own warnings, of clusters that stay empty, are of no use to whoever adds pictures.
    os.environ.setdefault("LANCEDB_LOG", "error")
    return require("lancedb", EXTRA)


def _connect(lancedb: Any, place: str) -> Any:
    return lancedb.connect(place, read_consistency_interval=NEWS)


# How LanceDB's errors begin where a filter is at fault, and no file.
OF_FILTERS = re.compile(r"Invalid (user )?input|Schema error|SQL|type_coercion|Cast error", re.IGNORECASE)
# What stands before the reason itself in them: the filter as it was rewritten, and whose error it is.
BEFORE_REASON = re.compile(
    r".*(sql parser error|Invalid user input|Invalid SQL predicate|Error during planning|Schema error): ",
    re.IGNORECASE,
)
OF_RUST = re.compile(r",? ?\S*/(src|rust)/\S+\.rs:\d+(:\d+)?")


@contextmanager
def speaking_of_index(place: str, where: str = "") -> Iterator[None]:
    """Put LanceDB's errors, which speak of its own source files, into words.

    Args:
        place: The index, as it may be shown.
        where: The filter that is at work, if any.

    Raises:
        UserError: If the filter is at fault.
        RunError: On any other error of LanceDB.
    """
    try:
        yield
    except (UserError, RunError):
        raise
    except (RuntimeError, ValueError, OSError) as error:
        said = OF_RUST.sub("", str(error)).strip().partition("\n")[0] or type(error).__name__
        if where and OF_FILTERS.search(said):
            raise UserError(f"the filter {where!r:.200} cannot be applied: {_of_filter(said)}") from error
        raise RunError(f"index {place}: {said[:300]}") from error


def _of_filter(said: str) -> str:
    """Why a filter cannot be applied, without LanceDB's own rewriting of it."""
    reason = BEFORE_REASON.sub("", said).rstrip(" )")
    unknown = re.match(r"No field named (.+?)\. (.*)", reason)
    if not unknown:
        return reason.removeprefix("Invalid input, ")[:200]
    name = unknown[1].strip("'`\"")
    # It says one that is near, or all that there are, by the way that it looks for rows.
    known = re.findall(r"\w+", unknown[2].removeprefix("Did you mean").removeprefix("Valid fields are"))
    nearest = difflib.get_close_matches(name, known, 1)
    return f"no column is named {name}" + (f"; did you mean {nearest[0]}?" if nearest else "")
