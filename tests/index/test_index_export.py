"""An index as plain files: each row of an array is a region, beside its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from open_cloc.errors import ExistingFileError, UserError
from open_cloc.index import export as module
from open_cloc.index.export import export_index
from open_cloc.index.region_index import RegionIndex
from open_cloc.inference.predictor import Predictor
from tests.index.made import rows_of


@pytest.mark.parametrize("size", [7, 10**6])
def test_arrays_are_rows(index: RegionIndex, tmp_path: Path, size: int) -> None:
    from pyarrow import parquet

    said: list[int] = []
    count = export_index(index.store, tmp_path / "out", size, said.append)
    expected = {row["id"]: row for row in rows_of(index) if row["source"] != "picture"}
    assert count == sum(said) == len(expected)
    found = {}
    files = sorted((tmp_path / "out" / "region_emb").iterdir())
    assert len(files) == -(-count // size)
    for number in range(len(files)):
        vectors = np.load(tmp_path / "out" / "region_emb" / f"region_emb_{number}.npy")
        lines = parquet.read_table(tmp_path / "out" / "metadata" / f"metadata_{number}.parquet").to_pylist()
        assert vectors.dtype == np.float16
        assert len(vectors) == len(lines) <= size
        found |= {line["id"]: (line, vector) for line, vector in zip(lines, vectors)}
    assert set(found) == set(expected)
    for name, (line, vector) in found.items():
        np.testing.assert_allclose(vector, expected[name]["vector"], atol=1e-3)
        assert {key: line[key] for key in ("x1", "y2", "text", "score", "source", "year", "key")} == {
            key: expected[name][key] for key in ("x1", "y2", "text", "score", "source", "year", "key")
        }
        assert line["image_path"] == ""


def test_nothing_is_written_over_and_nothing_half(
    index: RegionIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, predictor: Predictor
) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine.txt").write_text("x")
    with pytest.raises(ExistingFileError, match="new or empty folder"):
        export_index(index.store, tmp_path / "x")
    empty = RegionIndex.build(tmp_path / "empty", predictor)
    with pytest.raises(UserError, match="no regions to export"):
        export_index(empty.store, tmp_path / "none")

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        export_index(index.store, tmp_path / "cut")
    assert not (tmp_path / "cut").exists()
    assert not (tmp_path / "none").exists()
