"""Remote shards: the same samples from any location, fetched once, bounded, safely, again when that fails."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from open_cloc.cli.data import open_source
from open_cloc.data.order import WindowedOrder, order_of
from open_cloc.data.readers import open_reader
from open_cloc.data.shards import cache as shard_cache
from open_cloc.data.shards.cache import ShardCache
from open_cloc.data.shards.index import UnreadableShardError
from open_cloc.data.shards.read import ShardDataset
from open_cloc.data.shards.remote import RemoteShards, open_shards
from open_cloc.data.shards.write import write_shards
from tests.data.shards.serving import NUM_SHARDS, PER_SHARD, Server, numbered_samples, opened, serving
from tests.processes import CONTEXT, wait_until


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six shards, never changed."""
    folder = tmp_path_factory.mktemp("shards") / "out"
    write_shards(numbered_samples(), folder, PER_SHARD)
    return folder


@pytest.fixture
def server(shards: Path, tmp_path: Path) -> Iterator[Server]:
    with serving(shards, tmp_path / "www") as state:
        yield state


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between attempts, written down instead of waited for."""
    slept: list[float] = []
    monkeypatch.setattr(shard_cache.time, "sleep", slept.append)
    return slept


def memory_folder(shards: Path) -> str:
    url = f"memory://{shards.parent.name}/out"
    system, inner = fsspec.core.url_to_fs(url)
    for file in shards.iterdir():
        system.pipe(f"{inner}/{file.name}", file.read_bytes())
    return url


BRACES = "{00000..00005}.tar"
LOCATIONS = {
    "a folder of memory": lambda shards, server: memory_folder(shards),
    "a folder of files": lambda shards, server: f"file://{shards}",
    "a pattern of files": lambda shards, server: f"file://{shards}/{BRACES}",
    "a folder by HTTP": lambda shards, server: server.url + "/",
    "a pattern by HTTP": lambda shards, server: f"{server.url}/{BRACES}",
    "HTTP with a signature": lambda shards, server: f"{server.url}/{BRACES}?sign=1",
    "a command": lambda shards, server: f"pipe:cat {shards}/{BRACES}",
    "two joined": lambda shards, server: (
        f"file://{shards}/{{00000..00001}}.tar::{server.url}/{{00002..00005}}.tar"
    ),
}


@pytest.mark.parametrize("kind", LOCATIONS)
def test_the_same_samples_from_everywhere(kind: str, shards: Path, server: Server, tmp_path: Path) -> None:
    local = ShardDataset(str(shards))
    dataset = opened(LOCATIONS[kind](shards, server), tmp_path / "cache")
    assert dataset.shard_sizes.tolist() == [PER_SHARD] * NUM_SHARDS
    for index in np.random.default_rng(0).permutation(len(local)):
        assert dataset[int(index)] == local[int(index)]
    assert all(count == 1 for count in server.asked.values())
    with pytest.raises(IndexError):
        dataset[len(local)]


def test_opening_our_shards_fetches_none_of_them(server: Server, tmp_path: Path) -> None:
    dataset = opened(server.url, tmp_path / "cache")
    assert len(dataset) == NUM_SHARDS * PER_SHARD
    assert server.asked == {"sizes.json": 1}
    dataset[5]
    assert server.asked == {"sizes.json": 1, "00001.tar": 1}


def test_shards_of_unknown_size_are_fetched_once_and_remembered(server: Server, tmp_path: Path) -> None:
    (server.folder / "sizes.json").unlink()
    pattern = f"{server.url}/{BRACES}"
    small = 0.0  # room for a single shard: the others are deleted, their indices stay
    assert opened(pattern, tmp_path / "cache", small).shard_sizes.tolist() == [PER_SHARD] * NUM_SHARDS
    assert server.asked["00003.tar"] == 1
    assert len(opened(pattern, tmp_path / "cache", small)) == NUM_SHARDS * PER_SHARD
    assert server.asked["00003.tar"] == 1
    with pytest.raises(FileNotFoundError, match=r"no sizes\.json and no list of \.tar files in http"):
        opened(server.url, tmp_path / "cache")
    system, inner = fsspec.core.url_to_fs(memory_folder(server.folder))
    listed = opened(system.unstrip_protocol(inner), tmp_path / "cache")  # a store that can list its folder
    assert len(listed) == NUM_SHARDS * PER_SHARD


def size_of(cache: Path) -> int:
    return sum(tar.stat().st_size for tar in cache.glob("*.tar"))


def test_the_cache_is_bounded_and_drops_what_was_used_longest_ago(
    server: Server, shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = (shards / "00000.tar").stat().st_size
    dataset = opened(server.url, tmp_path / "cache", 3.5 * one / 1e9)
    for shard in (0, 1, 2):
        dataset[shard * PER_SHARD]
        os.utime(dataset.cache.path(dataset.urls[shard]), (shard, shard))
    dataset[0]  # used again
    dataset[3 * PER_SHARD]
    held = [url.rpartition("/")[2] for url in dataset.urls if dataset.cache.path(url).exists()]
    assert held == ["00000.tar", "00002.tar", "00003.tar"]
    assert not caplog.messages
    rng = np.random.default_rng(0)
    for index in rng.integers(0, len(dataset), 60):
        assert dataset[int(index)].key == f"k{index:03d}"
        assert size_of(tmp_path / "cache") <= 3.5 * one
    assert max(server.asked.values()) > 2  # shards came back, which costs
    assert caplog.messages == [f"cache_gb is too small: {tmp_path}/cache loses shards that are in use"]
    assert not list((tmp_path / "cache").glob("*.part"))


def test_processes_share_one_copy(server: Server, tmp_path: Path) -> None:
    server.hold = threading.Event()
    dataset = opened(server.url, tmp_path / "cache")
    with CONTEXT.Pool(4) as pool:
        jobs = [pool.apply_async(dataset.__getitem__, (index,)) for index in (0, 1, 2, 3) * 2]
        wait_until(lambda: server.asked["00000.tar"])
        server.hold.set()
        keys = [job.get(60).key for job in jobs]
    assert keys == ["k000", "k001", "k002", "k003"] * 2
    assert server.asked["00000.tar"] == 1


def test_prefetching_happens_in_the_background(server: Server, tmp_path: Path) -> None:
    server.hold = threading.Event()
    dataset = opened(server.url, tmp_path / "cache")
    dataset.prefetch([3, 1])  # returns while the server still waits
    server.hold.set()
    paths = [dataset.cache.path(dataset.urls[shard]) for shard in (1, 3)]
    wait_until(lambda: all(path.exists() for path in paths))
    assert server.asked == {"sizes.json": 1, "00001.tar": 1, "00003.tar": 1}
    order = order_of(dataset, (0,), True, 2)
    assert isinstance(order, WindowedOrder)


@pytest.mark.parametrize("codes", [[500, 503], [0], [429, 0, 500, 502, 504]])
def test_passing_failures_are_tried_again_with_growing_pauses(
    codes: list[int], server: Server, tmp_path: Path, waits: list[float]
) -> None:
    server.fail["00000.tar"] = list(codes)
    assert opened(server.url, tmp_path / "cache")[1].key == "k001"
    assert server.asked["00000.tar"] == len(codes) + 1
    assert len(waits) == len(codes)
    assert all(0.5 * 2**i <= pause <= 2**i for i, pause in enumerate(waits))


def test_lasting_failures_end_in_one_sentence_and_are_not_repeated(
    server: Server, tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = opened(server.url, tmp_path / "cache")
    worker = pickle.loads(pickle.dumps(dataset))
    server.fail["00000.tar"] = [500] * 100
    message = r"^shard cannot be fetched after 6 attempts: HTTP Error 500: .* \(http://.*/00000\.tar\)$"
    for index in (0, 1, 2):
        with pytest.raises(UnreadableShardError, match=message):
            dataset[index]
    assert server.asked["00000.tar"] == 6  # not again for each sample
    with pytest.raises(UnreadableShardError, match=message):
        worker[0]
    assert server.asked["00000.tar"] == 6  # nor by each worker, which would wait for each other
    with pytest.raises(UnreadableShardError, match=message):
        opened(server.url, tmp_path / "cache")[0]
    assert server.asked["00000.tar"] == 12  # but by the next run
    assert dataset[PER_SHARD].key == "k004"
    monkeypatch.setattr(shard_cache, "REMEMBER_FAILURE", 0.0)
    server.fail.clear()
    assert dataset[0].key == "k000"
    (server.folder / "00002.tar").unlink()
    with pytest.raises(UnreadableShardError, match="after 1 attempts: HTTP Error 404"):  # of no use again
        dataset[2 * PER_SHARD]
    assert not list((tmp_path / "cache").glob("*.part"))


def test_broken_shards_are_named(server: Server, tmp_path: Path) -> None:
    whole = (server.folder / "00000.tar").read_bytes()
    (server.folder / "00000.tar").write_bytes(whole[: len(whole) // 2])
    (server.folder / "00001.tar").write_bytes(b"<html>moved</html>" * 100)
    shutil.copy(server.folder / "00005.tar", server.folder / "00002.tar")
    sizes = json.loads((server.folder / "sizes.json").read_text())
    (server.folder / "sizes.json").write_text(json.dumps(sizes | {"00002.tar": PER_SHARD + 1}))
    dataset = opened(server.url, tmp_path / "cache")
    for index, message in ((0, "broken tar file: cut short"), (PER_SHARD, "this is a web page, no tar")):
        with pytest.raises(UnreadableShardError, match=rf"{message}.*\(http://.*\.tar\)") as caught:
            dataset[index]
        assert str(tmp_path) not in str(caught.value)  # the user knows the URL, not the cache
    assert dataset[2 * PER_SHARD].key == "k020"
    with pytest.raises(UnreadableShardError, match="holds 4 samples with a picture, fewer than its sizes"):
        dataset[3 * PER_SHARD]


def test_a_command_that_fails_gives_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(UnreadableShardError, match="command ended with code 3: no such bucket"):
        opened("pipe:echo one >&2; echo no such bucket >&2; exit 3", tmp_path)


def test_a_kill_while_fetching_leaves_no_half_shard(shards: Path, tmp_path: Path) -> None:
    """Nor does the command that outlives its process write into the shard that is fetched next."""
    go, started, late = tmp_path / "go", tmp_path / "started", tmp_path / "late"
    command = f"pipe:head -c 2000 {shards}/00000.tar; if ! test -e {go}; then touch {started}; "
    command += f"sleep 2; head -c 3000 /dev/zero; touch {late}; exit; fi; "
    command += f"tail -c +2001 {shards}/00000.tar"
    cache = ShardCache(tmp_path / "cache", 1e9)
    process = CONTEXT.Process(target=cache.fetch, args=(command,))
    process.start()
    wait_until(started.exists)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not cache.path(command).exists()
    go.touch()
    assert opened(command, tmp_path / "cache")[3].key == "k003"
    wait_until(late.exists)
    assert cache.path(command).read_bytes() == (shards / "00000.tar").read_bytes()


def test_wrong_locations_are_named(server: Server, shards: Path, tmp_path: Path) -> None:
    cases = [
        (f"file://{shards}::{shards}", "local and remote shards cannot be joined"),
        ("nowhere://bucket/x", "cannot be read: Protocol not known: nowhere"),
        (f"{server.url}/list", r"expected numbers of samples by the tar's name \(http.*/list/sizes\.json\)"),
        (f"{server.url}/text", r"/text/sizes\.json is not valid JSON: "),
    ]
    for name, content in (("list", "[1]"), ("text", "{,")):
        (server.folder / name).mkdir()
        (server.folder / name / "sizes.json").write_text(content)
    for path, message in cases:
        with pytest.raises(ValueError, match=message):
            open_shards(path, cache=tmp_path)
    with pytest.raises(ValueError, match=r"cache_gb in 'shards:.*' must be a number; got 'much'"):
        open_reader(f"shards:{server.url},cache_gb=much")
    with pytest.raises(FileNotFoundError, match=r"no sizes\.json"):
        open_shards(f"file://{tmp_path}/nothing", cache=tmp_path)
    server.fail["sizes.json"] = [500]
    with pytest.raises(ValueError, match=r"cannot be read: HTTP Error 500: .*/sizes\.json"):
        open_shards(server.url)


def test_commands_and_recipes_take_urls(server: Server, shards: Path, tmp_path: Path) -> None:
    spec = f"shards:{server.url},cache={tmp_path}/cache,cache_gb=0.5"
    dataset = open_reader(spec)
    assert isinstance(dataset, RemoteShards)
    assert (dataset.cache.folder, dataset.cache.max_bytes) == (tmp_path / "cache", 5e8)
    assert isinstance(open_source(server.url), RemoteShards)
    assert isinstance(open_reader(f"shards:{shards}"), ShardDataset)
