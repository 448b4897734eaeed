"""Shards that were fetched: noticed where they were made anew, bounded, made again where they are damaged."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from open_cloc.data.bad_samples import read_usable
from open_cloc.data.shards import cache as shard_cache
from open_cloc.data.shards import urls
from open_cloc.data.shards.index import UnreadableShardError, index_file, scan_shard
from open_cloc.data.shards.remote import RemoteShards, open_shards
from open_cloc.data.shards.write import write_shards
from open_cloc.errors import UserError
from tests.data.shards.serving import PER_SHARD, Server, numbered_samples, opened, serving
from tests.data.shards.tars import encoded, tar_of


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two shards, never changed."""
    folder = tmp_path_factory.mktemp("shards") / "out"
    write_shards(numbered_samples()[: 2 * PER_SHARD], folder, PER_SHARD)
    return folder


@pytest.fixture
def server(shards: Path, tmp_path: Path) -> Iterator[Server]:
    with serving(shards, tmp_path / "www") as state:
        yield state


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_cache.time, "sleep", lambda seconds: None)


def remade(folder: Path) -> None:
    """The first shard with other pictures, as long as before."""
    tar = folder / "00000.tar"
    before = tar.stat()
    content = tar.read_bytes()
    tar.write_bytes(content.replace(b"caption 1", b"another 1"))
    assert tar.stat().st_size == before.st_size
    os.utime(tar, (before.st_mtime + 100, before.st_mtime + 100))


def test_a_shard_made_anew_is_noticed_by_the_next_run(server: Server, tmp_path: Path) -> None:
    assert opened(server.url, tmp_path / "cache")[1].captions == ("caption 1",)
    remade(server.folder)
    dataset = opened(server.url, tmp_path / "cache")
    assert dataset[1].captions == ("another 1",)
    assert [dataset[i].key for i in range(PER_SHARD)] == ["k000", "k001", "k002", "k003"]
    assert (server.asked["00000.tar"], server.told["00000.tar"]) == (2, 1)
    assert server.told["00001.tar"] == 0  # nobody has read of it
    again = opened(server.url, tmp_path / "cache")
    assert [again[i].captions for i in (1, 1, 2)] == [("another 1",), ("another 1",), ("caption 2",)]
    assert (server.asked["00000.tar"], server.told["00000.tar"]) == (2, 2)  # asked once a run


def test_a_shard_of_another_size_is_noticed_where_nothing_else_is_told(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = iter(({"size": str((server.folder / "00000.tar").stat().st_size)}, {"size": "5"}))
    monkeypatch.setattr(shard_cache, "version_of", lambda url: next(versions))
    for times in (1, 1, 2):
        opened(server.url, tmp_path / "cache")[0]
        assert server.asked["00000.tar"] == times


@pytest.mark.parametrize(
    ("before", "now", "other"),
    [
        ({"etag": "a", "size": "1"}, {"etag": "a", "size": "1"}, False),
        ({"etag": "a"}, {"etag": "b"}, True),
        ({"etag": "a", "time": "1"}, {"etag": "a", "time": "2"}, False),  # copies on several servers
        ({"time": "1"}, {"time": "2"}, True),
        ({"etag": "a", "size": "1"}, {"time": "2", "size": "1"}, False),
        ({"etag": "a", "size": "1"}, {"etag": "a", "size": "2"}, True),
        ({}, {"etag": "a"}, False),
    ],
)
def test_versions_differ_by_the_surest_that_both_tell(
    before: dict[str, str], now: dict[str, str], other: bool
) -> None:
    assert urls.is_other(before, now) == urls.is_other(now, before) == other


def test_a_server_that_refuses_to_tell_is_asked_for_the_head_of_its_answer(
    server: Server, tmp_path: Path
) -> None:
    server.manner = "no-head"
    opened(server.url, tmp_path / "cache")[0]
    assert opened(server.url, tmp_path / "cache")[1].captions == ("caption 1",)
    assert server.asked["00000.tar"] == 2
    remade(server.folder)
    assert opened(server.url, tmp_path / "cache")[1].captions == ("another 1",)


def test_a_store_that_is_away_costs_nothing_but_a_warning(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened(server.url, tmp_path / "cache")[0]

    def away(url: str) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(shard_cache, "version_of", away)
    dataset = opened(server.url, tmp_path / "cache")
    assert [dataset[i].key for i in (0, 1)] == ["k000", "k001"]
    (message,) = caplog.messages
    assert message.startswith("cannot ask whether cached shards are current: no route to host (http")


def test_other_stores_tell_versions_too(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(shards, folder)
    opened(f"file://{folder}", tmp_path / "cache")[0]
    remade(folder)
    assert opened(f"file://{folder}", tmp_path / "cache")[1].captions == ("another 1",)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "the tar is cut": lambda tar: os.truncate(tar, 3000),
    "the tar is empty": lambda tar: os.truncate(tar, 0),
    "the tar is gone": lambda tar: tar.unlink(),
    "the tar is overwritten": lambda tar: tar.write_bytes(b"x" * tar.stat().st_size),
    "the index is cut": lambda tar: os.truncate(index_file(tar), 100),
    "the index is gone": lambda tar: index_file(tar).unlink(),
    "the index is something else": lambda tar: index_file(tar).write_text("hello"),
    "the note is something else": lambda tar: tar.with_suffix(".json").write_text("[1, {"),
    "the note is of another kind": lambda tar: tar.with_suffix(".json").write_text(
        '{"version": 7, "bytes": "x"}'
    ),
    "the note is gone": lambda tar: tar.with_suffix(".json").unlink(),
    "a failure is damaged": lambda tar: tar.with_suffix(".failed").write_text("soon broken"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_damaged_in_the_cache_is_made_anew(kind: str, server: Server, tmp_path: Path) -> None:
    dataset = opened(server.url, tmp_path / "cache")
    assert dataset[0].key == "k000"
    running = open_shards(server.url, cache=tmp_path / "cache")
    assert running[1].key == "k001"
    DAMAGE[kind](dataset.cache.path(dataset.urls[0]))
    later = opened(server.url, tmp_path / "cache")
    for own in (later, running):
        assert [own[i].captions for i in range(4)] == [(f"caption {i}",) for i in range(4)]
    assert server.asked["00000.tar"] <= 2


def test_a_cache_of_version_0_1_is_used(server: Server, tmp_path: Path) -> None:
    """It has no notes, and another form of indices."""
    dataset = opened(server.url, tmp_path / "cache")
    dataset[0]
    tar = dataset.cache.path(dataset.urls[0])
    tar.with_suffix(".json").unlink()
    scan = scan_shard(tar)
    keys = np.array([scan.key(row) for row in range(len(scan))])
    np.savez(index_file(tar), keys=keys, spans=scan.spans, without_image=0, tar_size=tar.stat().st_size)
    assert opened(server.url, tmp_path / "cache")[3].key == "k003"


def test_a_failure_on_another_host_or_in_another_time_is_not_believed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = opened(server.url, tmp_path / "cache")
    note = dataset.cache.path(dataset.urls[0]).with_suffix(".failed")
    note.parent.mkdir(exist_ok=True)
    now = time.monotonic()
    own = shard_cache.Moment.now().host
    for asked in ([own, now + 1e6], ["another", now], [own, 0.0], "now", None, [now, own]):
        note.write_text(json.dumps({"asked": asked, "message": "an old story"}))
        assert dataset[0].key == "k000"
        dataset.cache.drop(dataset.urls[0])
    note.write_text(f"{time.time() + 1e6} an old story")  # as version 0.1 wrote it, by the clock
    assert dataset[0].key == "k000"
    dataset.cache.drop(dataset.urls[0])
    note.write_text(json.dumps({"asked": shard_cache.Moment.now(), "message": "a new story"}))
    with pytest.raises(UnreadableShardError, match="a new story"):
        dataset[0]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "GRACE", 0.3)
    monkeypatch.setattr(shard_cache, "LEAST_MOST", 3e6)
    monkeypatch.setattr(shard_cache, "ATTEMPTS", 2)


@pytest.mark.parametrize(
    ("manner", "message"),
    [("drip", r"only \d+ bytes came in \d+ s"), ("endless", r"more than 0\.003 GB came")],
)
def test_a_server_without_end_is_left(
    impatient: None,
    server: Server,
    tmp_path: Path,
    manner: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if manner == "endless":  # ended by its size, however slowly a busy machine begins
        monkeypatch.setattr(urls, "GRACE", 60)
    server.manner = manner
    dataset = opened(server.url, tmp_path / "cache", 1e-6)
    started = time.monotonic()
    sample, (problem,) = read_usable(dataset, 0)
    assert time.monotonic() - started < 30
    assert sample is None
    assert problem.cause == "unreadable shard"
    assert "after 2 attempts: " in problem.message
    assert threading.active_count() < 20
    with pytest.raises(UnreadableShardError, match=message):
        dataset[1]
    assert not list((tmp_path / "cache").glob("*.part"))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("sleep 100", "only 0 bytes came"),
        ("cat /dev/zero", "GB came"),
        ("sleep 100 & sleep 100", "only 0 bytes"),
    ],
)
def test_a_command_without_end_is_ended_with_all_that_it_started(
    impatient: None, tmp_path: Path, command: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "GB" in message:
        monkeypatch.setattr(urls, "GRACE", 60)
    started = time.monotonic()
    with pytest.raises(UnreadableShardError, match=message):
        opened(f"pipe:{command} # {tmp_path}", tmp_path / "cache", 1e-6)
    assert time.monotonic() - started < 30
    running = [
        path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _content(path)
    ]
    assert running == []


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_logins_are_sent_to_their_host_alone_and_shown_nowhere(
    server: Server, shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(shards, tmp_path / "other") as other:
        server.manner = f"redirect {other.url}"
        secret = server.url.replace("http://", "http://anna:s3cret%21@") + "/{00000..00001}.tar?sign=h1dden"
        dataset = opened(secret, tmp_path / "cache")
        assert dataset[1].captions == ("caption 1",)
        assert "Basic YW5uYTpzM2NyZXQh" in server.logins
        assert other.logins == {None}
        server.manner = ""
        server.fail["00001.tar"] = [500] * 10
        with pytest.raises(UnreadableShardError) as caught:
            opened(secret, tmp_path / "cache2")[PER_SHARD]
        (server.folder / "00001.tar").write_bytes(b"<html>")
        with pytest.raises(UnreadableShardError) as broken:
            opened(secret, tmp_path / "cache3")[PER_SHARD]
    told = " ".join([str(caught.value), str(broken.value), *caplog.messages])
    notes = [path.read_text() for path in tmp_path.rglob("*.failed")] + [
        p.read_text() for p in tmp_path.rglob("*.json")
    ]
    for word in ("s3cret", "h1dden", "anna"):
        assert word not in told
        assert not any(word in note for note in notes)
    assert server.url.removeprefix("http://") in told


@pytest.mark.parametrize(
    "content",
    [
        '{"00000.tar": -1}',
        '{"00000.tar": 1e30}',
        '{"../../etc/x.tar": 4}',
        '{"a/x.tar": 4}',
        '{"passwd": 4}',
        '{"00000.tar": 4, "00000.tar": 5}',
        "[" * 100_000,
        '{"00000.tar": 99999999999999999999}',
        "null",
        "\xff",
    ],
)
def test_lists_of_sizes_that_are_none_are_one_sentence(server: Server, tmp_path: Path, content: str) -> None:
    (server.folder / "sizes.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"/sizes\.json"):
        opened(server.url, tmp_path / "cache")


def test_a_list_of_sizes_without_end_is_left(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("open_cloc.data.shards.remote.MOST_SIZES", 1000)
    (server.folder / "sizes.json").write_bytes(b" " * 100_000)
    with pytest.raises(UserError, match=r"cannot be read: more than 1e-06 GB came"):
        opened(server.url, tmp_path / "cache")


def test_what_is_not_used_of_fetched_shards_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        tar_of(
            tmp_path / f"{number}.tar",
            [(f"{number}.jpg", encoded("JPEG")), (f"{number}.npy", b""), (f"{number}.jpg", b"")],
        )
    dataset = open_shards(f"file://{tmp_path}/{{0..2}}.tar", cache=tmp_path / "cache")
    assert isinstance(dataset, RemoteShards)
    assert [dataset[i].key for i in range(3)] == ["0", "1", "2"]
    told = [message for message in caplog.messages if "not used" in message or "two members" in message]
    assert len(told) == 2
    assert "not used: members .npy: 1, perhaps of other shards too (file://" in " ".join(told)
