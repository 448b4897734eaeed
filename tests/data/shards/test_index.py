"""Where samples lie in a tar: the index beside it, in the cache, and what a broken tar says."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from open_cloc.data.shards import index as shard_index
from open_cloc.data.shards.index import UnreadableShardError
from open_cloc.data.shards.read import ShardDataset
from open_cloc.data.shards.write import write_shards
from tests.data.shards.tars import encoded, samples, tar_of


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
    moved = tmp_path / "again"
    later = (moved / "00001_index.npz").stat().st_mtime + 10
    os.utime(moved / "00001.tar", (later, later))  # changed after its index was made
    (moved / "00002_index.npz").write_bytes(b"damaged")
    assert opened_by_scanning(str(moved), monkeypatch) == ["00001.tar", "00002.tar"]


def test_the_index_of_foreign_tars_is_kept_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = tar_of(tmp_path / "t.tar", [("a.jpg", encoded("JPEG"))])
    assert opened_by_scanning(str(tar), monkeypatch) == ["t.tar"]
    assert opened_by_scanning(str(tar), monkeypatch) == []
    tar_of(tar, [("a.jpg", encoded("JPEG")), ("b.jpg", encoded("JPEG"))])
    assert opened_by_scanning(str(tar), monkeypatch) == ["t.tar"]
    assert ShardDataset(str(tar)).keys.tolist() == ["a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["t.tar"]  # nothing is written beside it
    monkeypatch.setenv("OPEN_CLOC_CACHE", str(tar / "no folder"))
    assert len(ShardDataset(str(tar))) == 2  # a cache that cannot be written only costs time


def test_a_tar_that_was_cut_behind_its_index_is_a_broken_shard(tmp_path: Path) -> None:
    write_shards(samples(), tmp_path / "out")
    dataset = ShardDataset(str(tmp_path / "out"))
    tar = tmp_path / "out/00000.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[: len(whole) // 2])
    assert dataset[0].key == "k0"
    with pytest.raises(UnreadableShardError, match=r"shard is cut short before byte \d+ \(.*00000\.tar\)"):
        dataset[4]


def test_broken_tars_are_named(tmp_path: Path) -> None:
    write_shards(samples(), tmp_path / "out")
    tar = tmp_path / "out/00000.tar"
    whole = tar.read_bytes()
    end = whole.rstrip(b"\0")
    boundary = -(-len(end) // 512) * 512  # after the last member: only the end mark is gone
    with tarfile.open(tar) as opened:
        middle = opened.getmembers()[4].offset
    damaged = whole[:middle] + b"\x55" * 512 + whole[middle + 512 :]
    for content in (whole[:1300], whole[: len(whole) // 2], whole[:boundary], damaged, b"", b"no tar" * 200):
        tar.write_bytes(content)
        with pytest.raises(ValueError, match=r"broken tar file: .*00000\.tar"):
            ShardDataset(str(tmp_path / "out"))
    tar.write_bytes(damaged)
    tolerant = ShardDataset.tolerant(str(tmp_path / "out"))
    assert len(tolerant) >= 1
    assert len(tolerant.problems) == 1


def test_repeated_keys_are_named(tmp_path: Path) -> None:
    picture = encoded("JPEG")
    tar_of(tmp_path / "00000.tar", [("a.jpg", picture), ("b.jpg", picture)])
    tar_of(tmp_path / "00001.tar", [("b.jpg", picture)])
    with pytest.raises(ValueError, match=r"key 'b' occurs twice; .*00000\.tar and .*00001\.tar"):
        ShardDataset(str(tmp_path))
    assert len(ShardDataset.tolerant(str(tmp_path))) == 2
    twice = tar_of(tmp_path / "x.tar", [("a.jpg", picture), ("a.txt", b"1"), ("a.txt", b"2")])
    with pytest.raises(ValueError, match=r"key 'a' has two members \.txt"):
        ShardDataset(str(twice))
    apart = tar_of(tmp_path / "y.tar", [("a.jpg", picture), ("b.jpg", picture), ("a.png", picture)])
    with pytest.raises(ValueError, match="key 'a' occurs twice"):
        ShardDataset(str(apart))


def test_where_shards_are(tmp_path: Path) -> None:
    write_shards(samples(), tmp_path / "out", 2)
    assert len(ShardDataset(f"{tmp_path}/out/{{00000..00001}}.tar")) == 4
    assert len(ShardDataset(f"{tmp_path}/out/00002.tar")) == 1
    with pytest.raises(FileNotFoundError, match=r"no such shard: .*00003\.tar"):
        ShardDataset(f"{tmp_path}/out/{{00002..00003}}.tar")
    with pytest.raises(ValueError, match=r"no \.tar files in folder"):
        ShardDataset(str(tmp_path))
    only_text = tar_of(tmp_path / "t.tar", [("a.txt", b"hi"), ("folder/b.c.json", b"{}"), (".hidden", b"")])
    with pytest.raises(ValueError, match="no samples with a picture"):
        ShardDataset(str(only_text))


def test_keys_end_at_the_first_dot_and_keep_their_folder(tmp_path: Path) -> None:
    tar = tar_of(tmp_path / "t.tar", [("d.x/b.jpg", encoded("JPEG")), ("d.x/b.json", b"{}"), ("c.txt", b"x")])
    dataset = ShardDataset(str(tar))
    assert dataset.keys.tolist() == ["d.x/b"]
    assert dataset.left_out == {"keys without a picture": 1}
    assert dataset[0].captions == ()
