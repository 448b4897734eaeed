"""URLs and commands: what is shown of them, and what is left of them when they are stopped."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from open_cloc.data.readers import guess_spec, open_reader
from open_cloc.data.shards import urls
from open_cloc.data.shards.cache import ShardCache
from open_cloc.data.shards.urls import Bounds, download, lasting, one_line, shown
from open_cloc.errors import UserError
from tests.processes import wait_until

SECRETS = (
    "https://me:hunter2@host.invalid/{0..1}.tar",
    "https://host.invalid/{0..1}.tar?sig=hunter2",
    "s3://me:hunter2@bucket/0.tar",
    "nothing://me:hunter2@host/0.tar",
    "pipe:false -u me:hunter2 https://host.invalid/0.tar",
)


def test_what_is_shown_and_what_lasts() -> None:
    assert shown("https://me:hunter2@host/0.tar?sig=hunter2") == "https://***@host/0.tar"
    assert lasting("https://me:hunter2@host/0.tar?sig=hunter2") == "https://me:hunter2@host/0.tar"
    assert lasting("pipe:cat a?b.tar") == "pipe:cat a?b.tar"
    assert one_line(OSError("no\n such  https://me:hunter2@host/0.tar?x")) == "no such https://***@host/0.tar"


def test_two_peoples_shards_of_one_place_are_two(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 1e9)
    one, other, today = "https://a@host/0.tar", "https://b@host/0.tar", "https://a@host/0.tar?s=1"
    assert cache.path(one) == cache.path(today) != cache.path(other)


@pytest.mark.parametrize("url", SECRETS)
def test_errors_hold_no_secrets(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of data sets that cannot be opened, for whatever reason."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(f"cannot connect to {url}")

    monkeypatch.setattr(urls.urllib.request, "urlopen", fail)
    monkeypatch.setattr(urls.fsspec, "open", fail)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setenv("OPEN_CLOC_CACHE", str(tmp_path))
    for spec in (f"shards:{url}", f"shards:{url},colour=red", f"ark:{url}", f"shards:{url}::here.tar"):
        with pytest.raises(UserError) as raised:
            open_reader(spec)
        assert "hunter2" not in str(raised.value)
    noted = "".join(file.read_text(errors="replace") for file in tmp_path.rglob("*") if file.is_file())
    assert "hunter2" not in noted


def test_urls_that_are_written_wrong_hold_no_secrets() -> None:
    with pytest.raises(UserError) as raised:
        guess_spec("http:/me:hunter2@host/a.json")
    assert "hunter2" not in str(raised.value)


def test_a_command_that_is_stopped_ends_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = tmp_path / "pid"

    def interrupted(self: Any, received: int) -> None:
        wait_until(lambda: pid.exists() and pid.read_text())
        raise KeyboardInterrupt

    monkeypatch.setattr(Bounds, "check", interrupted)
    with (tmp_path / "out").open("wb") as out, pytest.raises(KeyboardInterrupt):
        download(f"pipe:sleep 60 & echo $! > {pid}; wait", out, Bounds.from_now(1e9))
    started = Path(f"/proc/{pid.read_text().strip()}/stat")
    deadline = time.monotonic() + 10
    while started.exists() and started.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)
