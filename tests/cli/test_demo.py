"""`open-cloc demo` from end to end, with too few scenes to be convincing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from open_cloc.cli import main as cli

ROWS = {
    "region accuracy, seen pairs": {"CLIP crop", "CLIP RoIAlign", "CLOC Prompter"},
    "region accuracy, held-out pairs": {"CLIP crop", "CLIP RoIAlign", "CLOC Prompter"},
    "image-to-text recall@1": {"CLIP", "CLOC"},
    "text-to-image recall@1": {"CLIP", "CLOC"},
    "grounding accuracy at IoU 0.5": {"CLOC box head", "CLOC ranked boxes"},
}


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Both models train in processes of their own, as on the command line."""
    monkeypatch.setenv("TQDM_DISABLE", "1")
    output = tmp_path / "demo"
    argv = ["demo", "--samples", "256", "--scenes", "20", "--output", str(output)]
    assert cli.main(argv) == 0
    printed = capfd.readouterr().out
    report = json.loads((output / "demo.json").read_text())
    assert report["scenes_seen"] == 256
    for metric, methods in ROWS.items():
        assert methods <= set(report["results"][metric])
        assert metric in printed
    for values in report["results"].values():
        assert all(np.isfinite(value) and -1 <= value <= 1 for value in values.values())
    picture = np.asarray(Image.open(output / "demo.png"))
    assert picture.ndim == 3
    assert picture.std() > 10
    recipes = [json.loads((output / name / "recipe.json").read_text()) for name in ("clip", "cloc")]
    assert [recipe["data"]["loader"].pop("num_regions") > 0 for recipe in recipes] == [False, True]
    for recipe in recipes:
        del recipe["name"], recipe["run"]["output"]
    assert recipes[0] == recipes[1]  # nothing else differs
    assert cli.main(argv) == 2
    assert "is not empty: give --overwrite, or another --output" in capfd.readouterr().err


def test_overwriting_removes_a_demo_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("clip/model", "cloc"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "demo.png").touch()  # stopped before the report
    (tmp_path / "thesis.txt").touch()
    assert cli.main(["demo", "--output", str(tmp_path), "--overwrite"]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
