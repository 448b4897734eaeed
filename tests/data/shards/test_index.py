"""Where samples lie in a tar: the index beside it, in the cache, and of which tar it is."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from open_cloc.data.bad_samples import read_usable
from open_cloc.data.shards import index as shard_index
from open_cloc.data.shards.index import UnreadableShardError
from open_cloc.data.shards.read import ShardDataset
from open_cloc.data.shards.write import write_shards
from open_cloc.samples import RegionSample
from tests.data.shards.tars import encoded, keys_of, samples, tar_of


def opened_by_scanning(path: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tars that opening a dataset scans."""
    scanned: list[str] = []
    scan = shard_index.scan_shard
    with monkeypatch.context() as patch:
        patch.setattr(shard_index, "scan_shard", lambda tar: scanned.append(tar.name) or scan(tar))
        ShardDataset(path)
    return scanned


def test_the_index_beside_our_shards_is_used_while_it_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write_shards(samples(), out, 2)
    assert opened_by_scanning(str(out), monkeypatch) == []
    with_index = ShardDataset(str(out))
    for file in out.glob("*_index.npz"):
        file.unlink()
    scanned = ShardDataset(str(out))
    assert [scanned[i] for i in range(5)] == [with_index[i] for i in range(5)]
    write_shards(samples(), tmp_path / "again", 2)
    (tmp_path / "again/00002_index.npz").write_bytes(b"damaged")
    assert opened_by_scanning(str(tmp_path / "again"), monkeypatch) == ["00002.tar"]


def test_the_index_survives_copying_without_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(samples(), tmp_path / "out", 2)
    copies = tmp_path / "copies"
    copies.mkdir()
    # In alphabetical order, and with whatever times: an index may be older than its tar.
    for number, file in enumerate(sorted((tmp_path / "out").iterdir(), reverse=True)):
        shutil.copyfile(file, copies / file.name)
        os.utime(copies / file.name, (number, number))
    assert opened_by_scanning(str(copies), monkeypatch) == []


def one(colour: int, key: str = "a") -> list[RegionSample]:
    return [RegionSample(key, np.full((8, 8, 3), colour, np.uint8))]


def test_an_index_is_never_used_for_another_tar_of_equal_size(tmp_path: Path) -> None:
    """Whatever the clocks say: here the tar looks older than the index of the tar that was there before."""
    for name in ("one", "two"):
        members = [
            (f"{name}{i}.png", encoded("PNG", (8 + i if name == "one" else 10 - i, 8))) for i in range(3)
        ]
        tar_of(tmp_path / f"{name}.tar", members)
    assert (tmp_path / "one.tar").stat().st_size == (tmp_path / "two.tar").stat().st_size
    folder = tmp_path / "set"
    folder.mkdir()
    shutil.copy(tmp_path / "one.tar", folder / "0.tar")
    tar = folder / "0.tar"
    shard_index.save_index(shard_index.index_file(tar), shard_index.scan_shard(tar), tar)
    assert keys_of(ShardDataset(str(folder))) == ["one0", "one1", "one2"]
    shutil.copy(tmp_path / "two.tar", tar)
    os.utime(tar, (1, 1))
    dataset = ShardDataset(str(folder))
    assert keys_of(dataset) == ["two0", "two1", "two2"]
    assert [dataset[i].pixels().shape[1] for i in range(3)] == [10, 9, 8]


def test_an_index_of_version_0_1_knows_its_tar_by_name_and_size_of_the_samples(tmp_path: Path) -> None:
    """It has no checks of headers."""
    tar = tar_of(tmp_path / "0.tar", [(f"a{i}.png", encoded("PNG")) for i in range(3)])
    scan = shard_index.scan_shard(tar)
    old = {"keys": np.array(["a0", "a1", "a2"]), "spans": scan.spans, "without_image": 0}
    np.savez(tmp_path / "0_index.npz", **old, tar_size=tar.stat().st_size)
    loaded = shard_index.load_index(tmp_path / "0_index.npz", tar, is_beside=True)
    assert loaded is not None
    assert [loaded.key(row) for row in range(3)] == ["a0", "a1", "a2"]
    assert ShardDataset(str(tar))[2].key == "a2"
    tar_of(tar, [(f"b{i}.png", encoded("PNG")) for i in range(3)])
    os.utime(tar, (1, 1))
    assert keys_of(ShardDataset(str(tar))) == ["b0", "b1", "b2"]


def test_a_sample_in_the_middle_of_another_tar_is_a_bad_sample(tmp_path: Path) -> None:
    """An index looks at a few headers when it is opened; each header is looked at when its sample is read."""
    pictures = [(f"a{i}.png", encoded("PNG")) for i in range(9)]
    tar = tar_of(tmp_path / "0.tar", pictures)
    shard_index.save_index(shard_index.index_file(tar), shard_index.scan_shard(tar), tar)
    tar_of(tar, [(name.replace("a4", "b4"), picture) for name, picture in pictures])
    dataset = ShardDataset(str(tar))
    assert dataset[3].key == "a3"
    sample, (problem,) = read_usable(dataset, 4)
    assert sample is None
    assert problem.cause == "unreadable shard"
    assert problem.message.startswith("shard is not the one that was indexed: delete its _index.npz (")
    shard_index.index_file(tar).unlink()
    assert ShardDataset(str(tar))[4].key == "b4"


def test_the_index_of_foreign_tars_is_kept_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = tar_of(tmp_path / "t.tar", [("a.jpg", encoded("JPEG"))])
    assert opened_by_scanning(str(tar), monkeypatch) == ["t.tar"]
    assert opened_by_scanning(str(tar), monkeypatch) == []
    tar_of(tar, [("a.jpg", encoded("JPEG")), ("b.jpg", encoded("JPEG"))])
    assert opened_by_scanning(str(tar), monkeypatch) == ["t.tar"]
    assert keys_of(ShardDataset(str(tar))) == ["a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["t.tar"]  # nothing is written beside it
    monkeypatch.setenv("OPEN_CLOC_CACHE", str(tar / "no folder"))
    assert len(ShardDataset(str(tar))) == 2  # a cache that cannot be written only costs time


def test_a_tar_that_was_mended_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size and first samples are what they were."""
    whole = tar_of(tmp_path / "0.tar", [(f"a{i}.png", encoded("PNG")) for i in range(6)])
    content = whole.read_bytes()
    with tarfile.open(whole) as tar:
        middle = tar.getmembers()[3].offset
    whole.write_bytes(content[:middle] + b"\x55" * 512 + content[middle + 512 :])
    assert len(ShardDataset(str(whole))) == 3
    assert opened_by_scanning(str(whole), monkeypatch) == []
    whole.write_bytes(content)
    assert len(ShardDataset(str(whole))) == 6
    assert not ShardDataset(str(whole)).problems


def test_a_tar_that_was_cut_behind_its_index_is_a_broken_shard(tmp_path: Path) -> None:
    write_shards(samples(), tmp_path / "out")
    dataset = ShardDataset(str(tmp_path / "out"))
    tar = tmp_path / "out/00000.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[: len(whole) // 2])
    assert dataset[0].key == "k0"
    with pytest.raises(UnreadableShardError, match=r"shard is cut short before byte \d+ \(.*00000\.tar\)"):
        dataset[4]


def test_where_shards_are(tmp_path: Path) -> None:
    write_shards(samples(), tmp_path / "out", 2)
    assert len(ShardDataset(f"{tmp_path}/out/{{00000..00001}}.tar")) == 4
    assert len(ShardDataset(f"{tmp_path}/out/00002.tar")) == 1
    with pytest.raises(FileNotFoundError, match=r"no such shard: .*00003\.tar"):
        ShardDataset(f"{tmp_path}/out/{{00002..00003}}.tar")
    with pytest.raises(
        ValueError, match=r"no \.tar files in folder .*; there are some in out below it: name"
    ):
        ShardDataset(str(tmp_path))
    with pytest.raises(ValueError, match="pattern of shards cannot be understood"):
        ShardDataset(f"{tmp_path}/out/{{00002..00003.tar")
    shutil.copy(tmp_path / "out/00000.tar", tmp_path / "{one}.tar")
    assert len(ShardDataset(f"{tmp_path}/{{one}}.tar")) == 2  # a name that looks like a pattern
    only_text = tar_of(tmp_path / "t.tar", [("a.txt", b"hi"), ("folder/b.c.json", b"{}"), (".hidden", b"")])
    with pytest.raises(ValueError, match=r"no samples with a picture .*; not used: .*members \.c\.json: 1"):
        ShardDataset(str(only_text))
