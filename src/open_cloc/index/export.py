"""An index as plain files: embeddings as NumPy arrays, and what they are of as Parquet, row by row."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from open_cloc.config import require
from open_cloc.errors import ExistingFileError, UserError
from open_cloc.files import is_free, write_whole
from open_cloc.index.rows import REGIONS, VECTOR
from open_cloc.index.store import EXTRA, Store

ROWS_PER_FILE = 500_000
COLUMNS = ("id", "key", "path", "width", "height", "x1", "y1", "x2", "y2", "text", "score", "source")


def export_index(
    store: Store,
    folder: Path,
    rows_per_file: int = ROWS_PER_FILE,
    progress: Callable[[int], object] = lambda count: None,
) -> int:
    """Write `region_emb/region_emb_N.npy` (rows, D) float16 `metadata/metadata_N.parquet`, row by row.

    The form is that of clip-retrieval, with a box in each row. Rows of whole pictures are not among them.

    Args:
        store: An open index.
        folder: New or empty folder.
        rows_per_file: Most rows of a file.
        progress: Is told of so many more rows that are written.

    Returns:
        Rows that were written.

    Raises:
        ExistingFileError: If something is there.
        UserError: If the index has no regions.
        OSError: If a file cannot be written: none is left.
    """
    if not is_free(folder):
        raise ExistingFileError(f"output must be a new or empty folder; got {folder}")
    if not store.count(REGIONS):
        raise UserError("the index has no regions to export")
    pa, parquet = require("pyarrow", EXTRA), require("pyarrow.parquet", EXTRA)
    columns = [*COLUMNS, *store.about.columns]
    count = 0
    try:
        for number, table in enumerate(_tables(pa, store, columns, rows_per_file)):
            vectors = np.stack(table[VECTOR].to_numpy(zero_copy_only=False)).astype(np.float16)
            with write_whole(folder / "region_emb" / f"region_emb_{number}.npy") as part:
                np.save(part, vectors)
            with write_whole(folder / "metadata" / f"metadata_{number}.parquet") as part:
                plain = table.drop_columns([VECTOR])
                names = ["image_path" if name == "path" else name for name in plain.column_names]
                parquet.write_table(plain.rename_columns(names), part)
            count += table.num_rows
            progress(table.num_rows)
    except BaseException:
        # Nobody shall take a part for the whole; the folder was empty.
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return count


def _tables(pa: Any, store: Store, columns: Sequence[str], size: int) -> Iterator[Any]:
    """Rows of regions, so many at a time, as Arrow tables."""
    waiting: list[Any] = []
    for batch in store.batches([*columns, VECTOR], REGIONS):
        waiting.append(batch)
        while sum(part.num_rows for part in waiting) >= size:
            table = pa.Table.from_batches(waiting)
            yield table.slice(0, size)
            waiting = table.slice(size).to_batches()
    if sum(part.num_rows for part in waiting):
        yield pa.Table.from_batches(waiting)
