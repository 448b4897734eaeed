"""The report of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from open_cloc.cli.label import summary_lines
from open_cloc.errors import UserError
from open_cloc.labelling.output import RunFolder, write_unit
from open_cloc.labelling.report import write_report
from open_cloc.labelling.source import plan_units
from open_cloc.labelling.types import Batch, Failure, Picture
from tests.labelling.made import (
    Labelled,
    captions_only,
    copy_of,
    recipe,
)


def test_the_report(labelled: Labelled, tmp_path: Path) -> None:
    output = copy_of(labelled, tmp_path / "out")
    report = write_report(output)
    total = report["counts"]["histograms"]["regions a picture"]
    assert sum(int(key) * count for key, count in total.items()) == report["counts"]["regions"]
    assert "Most frequent phrases" in (output / "report.html").read_text()
    assert Image.open(output / "sheet.jpg").width > 300
    assert json.loads((output / "report.json").read_text()) == report


def test_a_run_without_a_region_has_a_report(tmp_path: Path) -> None:
    source, _ = captions_only(tmp_path / "in", 2)
    units = plan_units(source, 1000)
    mine = recipe(tmp_path)
    run = RunFolder.open(tmp_path / "out", mine, source, units)
    with pytest.raises(UserError, match="nothing is labelled yet"):
        write_report(run.path)
    failed = Picture(0, "a", failure=Failure("unreadable picture", "cut off"))
    write_unit(run.path, mine, units[0], [Batch("00000", 0, 1, (failed,))])
    report = write_report(run.path)
    assert set(report["summary"].values()) == {None}
    assert "regions a picture: none" in summary_lines(report)
    assert not (run.path / "sheet.jpg").exists()


def test_where_there_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no labelling run"):
        write_report(tmp_path)
