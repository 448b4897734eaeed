"""What changed between two runs, and the command that tells it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from open_cloc.cli.label import comparison_lines, main
from open_cloc.labelling.diff import compare
from tests.labelling.made import Labelled, copy_of


def test_a_run_and_its_copy_are_the_same(
    labelled: Labelled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = copy_of(labelled, tmp_path / "out")
    assert compare(output, labelled.output) == {"made": [], "came out": []}
    assert main(["report", str(output)]) == 0
    assert str(output / "report.html") in capsys.readouterr().out
    assert main(["diff", str(output), str(labelled.output)]) == 0
    assert "made: the same" in capsys.readouterr().out


def test_differences_are_named(labelled: Labelled, tmp_path: Path) -> None:
    output = copy_of(labelled, tmp_path / "out")
    for mark in output.glob("*_label.json"):
        document = json.loads(mark.read_text())
        document["recipe"]["filter"]["min_score"] = 0.5
        document["counts"]["regions"] += 1
        mark.write_text(json.dumps(document))
    changes = compare(labelled.output, output)
    assert changes["made"] == [("recipe.filter.min_score", 0.1, 0.5)]
    ((what, before, after),) = changes["came out"]
    assert what == "regions"
    assert after == before + 3
    assert "  recipe.filter.min_score: 0.1 -> 0.5" in comparison_lines(changes)
