"""Files appear whole or not at all, and JSON that is wrong is named."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from open_cloc.errors import MissingFileError, UserError
from open_cloc.files import PART, read_json, version_of, versions, write_json, write_text, write_whole


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
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {
        name: mode for name in ("a.safetensors", "b", "c")
    }
