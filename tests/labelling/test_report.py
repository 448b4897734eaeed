"""The report of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from open_cloc.cli.label import summary_lines
from open_cloc.data.shards.read import ShardDataset
from open_cloc.errors import UserError
from open_cloc.labelling import report
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
    made = write_report(output)
    total = made["counts"]["histograms"]["regions a picture"]
    assert sum(int(key) * count for key, count in total.items()) == made["counts"]["regions"]
    assert "Most frequent phrases" in (output / "report.html").read_text()
    assert Image.open(output / "sheet.jpg").width > 300
    assert json.loads((output / "report.json").read_text()) == made


def test_the_sheet_opens_no_more_tars_than_it_shows(
    labelled: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def counting(path: str) -> ShardDataset:
        opened.append(Path(path).name)
        return ShardDataset(path)

    monkeypatch.setattr("open_cloc.labelling.report.ShardDataset", counting)
    monkeypatch.setattr("open_cloc.labelling.report.SHEET_SIZE", 2)
    run = RunFolder.load(labelled.output)
    keys = [sample.key for sample in report._evenly(run)]
    assert keys == [labelled.scenes[index].key for index in (0, 6)]
    assert opened == ["00000.tar", "00001.tar"]


def test_a_run_without_a_region_has_a_report(tmp_path: Path) -> None:
    source, _ = captions_only(tmp_path / "in", 2)
    units = plan_units(source, 1000)
    mine = recipe(tmp_path)
    run = RunFolder.open(tmp_path / "out", mine, source, units)
    with pytest.raises(UserError, match="nothing is labelled yet"):
        write_report(run.path)
    failed = Picture(0, "a", failure=Failure("unreadable picture", "cut off"))
    write_unit(run.path, mine, units[0], [Batch("00000", 0, 1, (failed,))])
    made = write_report(run.path)
    assert set(made["summary"].values()) == {None}
    assert "regions a picture: none" in summary_lines(made)
    assert not (run.path / "sheet.jpg").exists()


def test_where_there_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no labelling run"):
        write_report(tmp_path)
