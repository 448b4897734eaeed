"""One index of many tars: mapped, made once a host, of these tars alone, whatever becomes of its file."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_cloc.data.shards import index as shard_index
from open_cloc.data.shards import joined
from open_cloc.data.shards.joined import SampleIndex, open_index
from open_cloc.data.shards.read import ShardDataset
from tests.data.shards.tars import encoded, keys_of, tar_of
from tests.processes import CONTEXT

PICTURE = encoded("PNG")
NUM_TARS = 20  # more than are read at each start


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPEN_CLOC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """A folder of tars of 0, 1, 2, 3, 0, ... samples."""
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(NUM_TARS):
        tar_of(folder / f"{number:05d}.tar", [(f"{number:05d}_{i}.png", PICTURE) for i in range(number % 4)])
    return folder


def expected(folder: Path) -> list[str]:
    return [f"{number:05d}_{i}" for number in range(NUM_TARS) for i in range(number % 4)]


def cached(kind: str = "*.index") -> list[Path]:
    return sorted((Path(os.environ["OPEN_CLOC_CACHE"]) / "indices").glob(kind))


def test_many_tars_are_mapped_from_one_file(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ShardDataset(str(tars))
    assert len(cached()) == 1
    monkeypatch.setattr(joined, "index_shard", None)  # nothing is looked at again
    second = ShardDataset(str(tars))
    for dataset in (first, second, pickle.loads(pickle.dumps(second))):
        assert keys_of(dataset) == expected(tars)
        assert [dataset[i].key for i in range(len(dataset))] == expected(tars)
        assert dataset.shard_sizes.tolist() == [number % 4 for number in range(NUM_TARS)]
    assert not isinstance(second._index._content, bytes)


def test_few_samples_make_no_file(tmp_path: Path) -> None:
    tar_of(tmp_path / "0.tar", [("a.png", PICTURE)])
    dataset = ShardDataset(str(tmp_path))
    assert keys_of(pickle.loads(pickle.dumps(dataset))) == keys_of(dataset) == ["a"]
    assert cached() == []


def test_a_changed_tar_makes_a_new_file_and_the_old_one_goes(tars: Path) -> None:
    ShardDataset(str(tars))
    (before,) = cached()
    tar_of(tars / "00001.tar", [("new.png", PICTURE)])
    assert keys_of(ShardDataset(str(tars)))[0] == "new"
    (after,) = cached()
    assert after != before
    os.utime(tars / "00001.tar", (5, 5))
    assert keys_of(ShardDataset(str(tars)))[0] == "new"
    tar_of(tars / "99999.tar", [("last.png", PICTURE)])
    assert keys_of(ShardDataset(str(tars)))[-1] == "last"


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "zeros behind": lambda content: content + bytes(512),
    "all zeros": lambda content: bytes(len(content)),
    "something else": lambda content: b"hello" * 100,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_made_anew(kind: str, tars: Path) -> None:
    ShardDataset(str(tars))
    (file,) = cached()
    whole = file.read_bytes()
    file.write_bytes(DAMAGE[kind](whole))
    assert keys_of(ShardDataset(str(tars))) == expected(tars)
    assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_only_time(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPEN_CLOC_CACHE", "/dev/null/nothing")
    assert keys_of(ShardDataset(str(tars))) == expected(tars)

    monkeypatch.setenv("OPEN_CLOC_CACHE", str(tars.parent / "full"))
    monkeypatch.setattr(joined._Parts, "write", full_once(joined._Parts.write))
    assert keys_of(ShardDataset(str(tars))) == expected(tars)
    assert cached() == []


def full_once(write: Callable[..., None]) -> Callable[..., None]:
    calls = []

    def wrapped(*args: object) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        write(*args)

    return wrapped


def _open(folder: Path, log: Path) -> None:
    scan = shard_index.scan_shard

    def told(tar: Path) -> shard_index.ShardIndex:
        with log.open("a") as stream:
            stream.write(f"{tar.name}\n")
        return scan(tar)

    shard_index.scan_shard = told  # type: ignore[assignment]
    ShardDataset(str(folder))


def test_processes_of_a_host_scan_each_tar_once(tars: Path, tmp_path: Path) -> None:
    processes = [CONTEXT.Process(target=_open, args=(tars, tmp_path / "log")) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert sorted((tmp_path / "log").read_text().split()) == sorted(path.name for path in tars.iterdir())


def test_repeated_keys_are_found_whatever_is_compared_at_a_time(
    tars: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (3, 7):
        tar_of(tars / f"{number:05d}.tar", [("00002_1.png", PICTURE), (f"own{number}.png", PICTURE)])
    monkeypatch.setattr(joined, "AT_A_TIME", 4)
    dataset = ShardDataset(str(tars))
    keys = keys_of(dataset)
    assert keys.count("00002_1") == 1
    assert {"own3", "own7"} <= set(keys)
    assert [dataset[i].key for i in range(len(dataset))] == keys
    assert [problem.cause for problem in dataset.problems] == ["repeated key"] * 2
    assert dataset.shard_sizes.tolist()[3] == dataset.shard_sizes.tolist()[7] == 1
    assert dataset.shard_sizes.sum() == len(dataset) == len(keys)
    monkeypatch.setattr("builtins.hash", lambda key: 7)  # hashes say who may be equal, names who is
    os.utime(tars / "00003.tar", (5, 5))
    assert keys_of(ShardDataset(str(tars))) == keys


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_damage_of_the_file_is_none_or_a_key_error_of_that_sample(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A file that says what it is, and lies: it stays in the file's bounds."""
    folder = tmp_path_factory.mktemp("fuzz")
    paths = [tar_of(folder / f"{i}.tar", [(f"{i}.png", PICTURE)]) for i in range(3)]
    content = bytearray(open_index(paths)._content)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    (folder / "x.index").write_bytes(content)
    index = SampleIndex.load(folder / "x.index")
    if index is not None:
        for row in range(min(len(index), 10)):
            try:
                index.place(row)
            except (UnicodeDecodeError, ValueError):  # `read_usable` takes it for that sample's fault
                continue


def test_rows_take_60_bytes_and_names_as_many_as_they_have(tars: Path) -> None:
    ShardDataset(str(tars))
    (file,) = cached()
    names = sum(map(len, expected(tars)))
    assert file.stat().st_size - (len(expected(tars)) + 1) * 60 - names < 1000
    assert np.dtype(joined.ROW).itemsize == 60
