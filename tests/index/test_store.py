"""The table: who may open it, who may write, what errors it speaks of, and the approximate index."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from open_cloc.errors import ExistingFileError, MissingFileError, RunError, UserError
from open_cloc.files import locked
from open_cloc.index import store as module
from open_cloc.index.region_index import RegionIndex
from open_cloc.index.rows import schema_of
from open_cloc.index.store import About, Store
from open_cloc.inference.predictor import Predictor, load
from tests.index.made import fill, nearest, rows_of, samples
from tests.tiny import tiny_model


def test_an_index_is_opened_by_the_saved_model(
    index: RegionIndex, predictor: Predictor, tmp_path: Path
) -> None:
    predictor.model.save_pretrained(tmp_path / "model")
    again = RegionIndex.open(index.store.place, load(tmp_path / "model", "cpu"))
    assert again.store.about == index.store.about
    assert [hit.id for hit in again.search("a dog", 5)] == [hit.id for hit in index.search("a dog", 5)]


@pytest.mark.parametrize("kind", ["other weights", "bfloat16"])
def test_another_model_is_refused(index: RegionIndex, kind: str) -> None:
    model = tiny_model()
    if kind == "bfloat16":
        model = model.to(torch.bfloat16)
    else:
        with torch.no_grad():
            next(model.parameters()).view(-1)[0] += 1e-3
    with pytest.raises(UserError, match="made by another model, or in another precision"):
        RegionIndex.open(index.store.place, Predictor(model))


def test_nothing_is_built_over_what_is_there(
    index: RegionIndex, predictor: Predictor, tmp_path: Path
) -> None:
    with pytest.raises(ExistingFileError, match="new or empty folder"):
        RegionIndex.build(index.store.place, predictor)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ExistingFileError, match="new or empty folder"):
        RegionIndex.build(tmp_path, predictor)


def test_a_kill_while_an_index_is_begun_leaves_the_folder_free(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*args: Any) -> None:
        raise Killed

    monkeypatch.setattr("open_cloc.index.store.os.rename", die)
    with pytest.raises(Killed):
        RegionIndex.build(tmp_path / "ix", predictor)
    monkeypatch.undo()
    assert list((tmp_path / "ix").iterdir()) == []
    index = RegionIndex.build(tmp_path / "ix", predictor)
    index.add(samples(1))
    assert [path.name for path in tmp_path.iterdir()] == ["ix"]


def test_two_that_begin_one_index_at_once(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def after_another(source: Path, target: Path) -> None:
        monkeypatch.undo()
        RegionIndex.build(tmp_path / "ix", predictor).add(samples(1))
        rename(source, target)

    monkeypatch.setattr("open_cloc.index.store.os.rename", after_another)
    with pytest.raises(ExistingFileError, match="there is an index at"):
        RegionIndex.build(tmp_path / "ix", predictor)
    assert RegionIndex.open(tmp_path / "ix", predictor).store.count("source = 'picture'") == 1


def test_pictures_are_taken_out_with_all_of_their_regions(predictor: Predictor, tmp_path: Path) -> None:
    index = RegionIndex.build(tmp_path / "ix", predictor, columns={"year": "number"})
    index.add(samples(5), "labels", "grid:20")
    before = rows_of(index)
    assert index.remove("source = 'made' AND year < 2002") == 2
    assert index.remove("source = 'made' AND year < 2002") == 0
    left = rows_of(index)
    assert left == [row for row in before if row["key"] not in ("picture 0", "picture 1")]
    assert {hit.key for hit in index.search("a dog", 100)} == {"picture 2", "picture 3", "picture 4"}
    with pytest.raises(UserError, match="no column is named yaer; did you mean year"):
        index.remove("yaer = 2003")
    assert index.add(samples(5), "labels").pictures == 2  # they can come again
    with locked(tmp_path / "ix"), pytest.raises(UserError, match="another process works in"):
        index.remove("year > 0")


def test_what_is_no_index_is_said_so(tmp_path: Path) -> None:
    import lancedb

    with pytest.raises(MissingFileError, match=r"no index at .*open-cloc index build makes one"):
        Store.open(str(tmp_path / "none"))
    lancedb.connect(str(tmp_path / "other")).create_table("regions", [{"vector": [1.0], "name": "x"}])
    with pytest.raises(UserError, match="no index of open-cloc"):
        Store.open(str(tmp_path / "other"))
    (tmp_path / "cut" / "regions.lance").mkdir(parents=True)
    with pytest.raises(MissingFileError, match="no index"):
        Store.open(str(tmp_path / "cut"))


def test_a_later_layout_is_refused(tmp_path: Path) -> None:
    Store.create(str(tmp_path / "x"), 4, About("m", layout=99))
    with pytest.raises(UserError, match="of layout 99; this version reads 1"):
        Store.open(str(tmp_path / "x"))


@pytest.mark.parametrize("columns", [{"id": "text"}, {"_distance": "number"}, {"a b": "text"}, {"x": "date"}])
def test_columns_that_cannot_be(columns: dict[str, str], tmp_path: Path, predictor: Predictor) -> None:
    with pytest.raises(UserError, match="column"):
        RegionIndex.build(tmp_path / "x", predictor, columns=columns)
    assert not (tmp_path / "x").exists()
    assert schema_of(4, {"fine": "bool"}, {}).field("fine")


def test_places_in_object_storage_by_a_url(predictor: Predictor, tmp_path: Path) -> None:
    """Of these only the file system's is here; buckets were not tried."""
    url = f"file://{tmp_path}/ix"
    RegionIndex.build(url, predictor).add(samples(2))
    opened = RegionIndex.open(url, predictor)
    assert opened.store.count() == 8
    assert opened.search("a dog", 1)
    with pytest.raises(ExistingFileError, match="there is an index at"):
        RegionIndex.build(url, predictor)
    with pytest.raises(MissingFileError, match="no index at"):
        RegionIndex.open(f"file://{tmp_path}/none", predictor)


def test_secrets_of_urls_are_not_said() -> None:
    with (
        pytest.raises(RunError) as caught,
        module.speaking_of_index(module.without_secrets("s3://me:pw@x/y")),
    ):
        raise RuntimeError("lance error: no bucket, /root/.cargo/registry/src/x/y.rs:12:3")
    assert "pw" not in str(caught.value)
    assert str(caught.value).endswith("lance error: no bucket")


def test_two_writers_are_refused(predictor: Predictor, tmp_path: Path) -> None:
    one = RegionIndex.build(tmp_path / "ix", predictor)
    with one.store.writing():
        with pytest.raises(UserError, match="another process works in"):
            RegionIndex.open(tmp_path / "ix", predictor).add(samples(1))
        assert RegionIndex.open(tmp_path / "ix", predictor).search("a dog") == []  # readers go on


def test_who_opened_before_another_added_adds_nothing_twice(predictor: Predictor, tmp_path: Path) -> None:
    early = RegionIndex.build(tmp_path / "ix", predictor)
    RegionIndex.open(tmp_path / "ix", predictor).add(samples(3))
    added = early.add(samples(4))
    assert (added.pictures, added.known) == (1, 3)
    assert early.store.count() == 16


def test_a_full_disk_leaves_the_index_as_it_was(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = RegionIndex.build(tmp_path / "ix", predictor)
    index.add(samples(2))

    def full(rows: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(index.store._table, "add", full)
    with pytest.raises(RunError, match=r"^index .*ix: .*No space left on device$"):
        index.add(samples(5))
    monkeypatch.undo()
    assert index.store.count() == 8
    assert index.add(samples(5)).pictures == 3


def test_files_that_the_system_cuts_off(predictor: Predictor, tmp_path: Path) -> None:
    """As on a full disk, by the system's own limit."""
    place = tmp_path / "ix"
    RegionIndex.build(place, predictor, thumbnail=0).add(samples(2))
    code = (
        "import resource\n"
        "from open_cloc.errors import RunError\n"
        "from open_cloc.index.region_index import RegionIndex\n"
        "from open_cloc.inference.predictor import Predictor\n"
        "from tests.index.made import samples\n"
        "from tests.tiny import tiny_model\n"
        f"index = RegionIndex.open({str(place)!r}, Predictor(tiny_model()))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "try:\n"
        "    index.add(samples(40), 'grid:200')\n"
        "except RunError as error:\n"
        "    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(run.stdout.strip().splitlines()) == 1
    assert "File too large" in run.stdout
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 8192
    assert RegionIndex.open(place, predictor).store.count() == 8


def test_the_approximate_index_is_near(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIN_APPROXIMATE", 300)
    index = RegionIndex.build(tmp_path / "ix", predictor, thumbnail=0)
    fill(index, 15)
    index.store.optimize()
    fill(index, 3, seed=1)
    index.store.optimize()  # the second time there is one
    kinds = []
    real = index.store._nearest

    def spied(*args: Any, is_exact: bool) -> Any:
        kinds.append(is_exact)
        return real(*args, is_exact=is_exact)

    monkeypatch.setattr(index.store, "_nearest", spied)
    rows = rows_of(index)
    shares = []
    for seed in range(10):
        vector = np.random.default_rng(seed).normal(size=32).astype(np.float32)
        expected = [row["id"] for row in nearest(rows, vector)[:10]]
        found = index.store.nearest(vector, 10)
        np.testing.assert_allclose(
            found["_distance"][0].as_py(), 1 - nearest(rows, vector)[0]["cosine"], atol=1e-5
        )
        shares.append(len(set(found["id"].to_pylist()) & set(expected)) / 10)
        exact = index.store.nearest(vector, 10, exact=True)
        assert exact["id"].to_pylist() == expected
    assert np.mean(shares) >= 0.9
    assert kinds == [False, True] * 10
    kinds.clear()
    # Few rows are left by the filter, or many are asked for: all are looked at.
    assert index.store.nearest(vector, 5, "key = '1 0 0'").num_rows == 5
    assert index.store.nearest(vector, 2000).num_rows == len(rows)
    assert kinds == [True, True]


def test_an_approximate_index_that_gives_too_few_is_passed_over(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIN_APPROXIMATE", 300)
    monkeypatch.setattr(module, "PROBES", 1)
    index = RegionIndex.build(tmp_path / "ix", predictor, thumbnail=0)
    fill(index, 15)
    index.store.optimize()
    vector = np.random.default_rng(0).normal(size=32).astype(np.float32)
    expected = [row["id"] for row in nearest(rows_of(index), vector)[:300]]
    assert index.store.nearest(vector, 300)["id"].to_pylist() == expected
