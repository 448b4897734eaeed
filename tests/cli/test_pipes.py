"""A reader that leaves, as `open-cloc eval ... | head` does, costs no result: files are written first."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from open_cloc.cli.main import main
from tests.tiny import picture, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and pictures with captions."""
    path = tmp_path_factory.mktemp("pipes")
    tiny_model().save_pretrained(path / "model")
    (path / "photos").mkdir()
    for number in range(3):
        Image.fromarray(picture(seed=number)).save(path / "photos" / f"{number}.png")
        (path / "photos" / f"{number}.txt").write_text(f"a mug {number}")
    return path


def leave(*values: Any, to_errors: bool = False) -> None:
    """In the place of `say`."""
    if not to_errors:
        raise BrokenPipeError


@pytest.mark.parametrize(
    ("module", "argv"),
    [
        ("eval", ["eval", "zeroshot-retrieval", "--weights", "MODEL", "--data", "PHOTOS", "--output", "OUT"]),
        ("compare", ["compare", "RESULT", "RESULT", "--output", "OUT"]),
        ("data", ["data", "check", "PHOTOS", "--json", "OUT"]),
        ("plan", ["plan", "scenes-cloc", "--output", "OUT"]),
    ],
)
def test_the_file_is_there(
    module: str, argv: list[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"MODEL": folder / "model", "PHOTOS": folder / "photos", "OUT": tmp_path / "out.json"}
    places["RESULT"] = tmp_path / "result.json"
    if "RESULT" in argv:
        made = ["eval", "zeroshot-retrieval", "--weights", "MODEL", "--data", "PHOTOS", "--output", "RESULT"]
        assert main([str(places.get(word, word)) for word in made]) == 0
    monkeypatch.setattr(importlib.import_module(f"open_cloc.cli.{module}"), "say", leave)
    with pytest.raises(BrokenPipeError):  # of this test's making: standard output is still read
        main([str(places.get(word, word)) for word in argv])
    assert json.loads((tmp_path / "out.json").read_text())


def test_the_sheet_of_hits_is_there(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lancedb", reason="lancedb is not installed")
    index, sheet = str(tmp_path / "ix"), tmp_path / "hits.png"
    data = ["--data", str(folder / "photos"), "--weights", str(folder / "model"), "--regions", "grid:5"]
    assert main(["index", "build", index, *data]) == 0
    monkeypatch.setattr(importlib.import_module("open_cloc.cli.index"), "say", leave)
    with pytest.raises(BrokenPipeError):
        main(["index", "search", index, "a mug", "--output", str(sheet)])
    assert sheet.exists()
