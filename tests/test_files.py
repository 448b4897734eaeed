"""Files appear whole or not at all, and JSON that is wrong is named."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import save_file

from open_cloc.errors import MissingFileError, UserError
from open_cloc.files import (
    LOCK,
    PART,
    is_free,
    locked,
    read_json,
    version_of,
    versions,
    write_json,
    write_text,
    write_whole,
)


def test_a_file_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new/folder/a.json"
    with write_whole(path) as part:
        part.write_text("half")
        assert not path.exists()
        assert (part.parent, part.suffix) == (path.parent, ".json")
        assert part.name.startswith(PART)
    assert path.read_text() == "half"
    assert list(path.parent.iterdir()) == [path]


def test_what_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail() -> None:
        with write_whole(path) as part:
            part.write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_longest_name_that_a_folder_takes_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250 + ".json")
    write_text(path, "{}")
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    """What the system says of a write names no file."""

    def fill(filename: str | None) -> None:
        with write_whole(tmp_path / "a.json") as part:
            part.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device", *([] if filename is None else [filename]))

    with pytest.raises(OSError, match=r"No space left on device: '.*/a\.json'$"):
        fill(None)
    with pytest.raises(OSError, match=r"No space left on device: '/other/b'$"):
        fill("/other/b")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match=r"/file'$"):
        write_text(tmp_path / "file" / "a.json", "")
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


HOLD = """
import sys, time
from pathlib import Path
from open_cloc.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
print("left", flush=True)
"""


def test_a_folder_is_for_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        (folder / "work").touch()
        with pytest.raises(UserError, match=r"another process works in .*run: wait"), locked(folder):
            pass
        assert sorted(path.name for path in folder.iterdir()) == [LOCK, "work"]
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline() == "left\n"
    with locked(folder):
        assert (folder / LOCK).exists()
    assert [path.name for path in folder.iterdir()] == ["work"]


def test_the_lock_of_a_dead_process_does_no_harm(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        other.kill()
    assert (tmp_path / LOCK).exists()
    assert is_free(tmp_path)
    with locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_locked_folder_may_get_another_name_or_go(tmp_path: Path) -> None:
    with locked(tmp_path / "a"):
        (tmp_path / "a").rename(tmp_path / "b")
    with locked(tmp_path / "c"):
        (tmp_path / "c" / LOCK).unlink()
        (tmp_path / "c").rmdir()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def acquire(self: FileLock) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with locked(tmp_path):
        pass
    assert "cannot be locked here ([Errno 37] No locks available)" in caplog.text


def test_what_is_free(tmp_path: Path) -> None:
    assert is_free(tmp_path)
    assert is_free(tmp_path / "absent")
    (tmp_path / "file").touch()
    assert not is_free(tmp_path)
    assert not is_free(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert not is_free(tmp_path / "link")


@pytest.mark.parametrize("document", [{"a": [1, 2.5, None]}, ["猫"], "x", 7])
def test_json_comes_back(tmp_path: Path, document: Any) -> None:
    write_json(tmp_path / "a.json", document)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text.endswith("\n")
    assert "\\u" not in text
    assert read_json(tmp_path / "a.json") == document


def test_json_knows_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": 1}).encode())
    assert read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize("content", [b'{"a": ', b"", b"\xff\xfe{}", b"nonsense"])
def test_wrong_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json is not valid JSON"):
        read_json(path)
    with pytest.raises(MissingFileError, match=r"no such file: .*absent\.json"):
        read_json(tmp_path / "absent.json")


def test_versions_of_what_is_there_and_what_is_not() -> None:
    assert version_of("no-such-package") == "not installed"
    found = versions("torch", "no-such-package")
    assert found == {"torch": version_of("torch"), "no-such-package": "not installed"}


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_others_may_read_what_the_umask_says(tmp_path: Path, mask: int, mode: int) -> None:
    """Also where a library writes for its user alone, as safetensors does."""
    before = os.umask(mask)
    try:
        with write_whole(tmp_path / "a.safetensors") as part:
            save_file({"a": torch.zeros(1)}, part)
        with write_whole(tmp_path / "b") as part:
            private = os.open(tmp_path / "private", os.O_CREAT | os.O_WRONLY, 0o600)
            os.close(private)
            os.replace(tmp_path / "private", part)
        write_text(tmp_path / "c", "text")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("a.safetensors", "b", "c"), mode)


def test_half_a_character_is_written_as_json_reads_it_back(tmp_path: Path) -> None:
    document = {"caption \ud83d": "a \ud83d mug \U0001f600"}
    write_json(tmp_path / "a.json", document)
    assert read_json(tmp_path / "a.json") == document
    write_text(tmp_path / "a.txt", "a \ud83d mug")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "a \\ud83d mug"
