"""The input cut into units and batches."""

from __future__ import annotations

from pathlib import Path

import pytest

from open_cloc.errors import UserError
from open_cloc.labelling.source import known_pictures, plan_units, read_batches, tell_input
from tests.data.readers.made import pictures
from tests.labelling.made import (
    COUNT,
    captions_only,
)


def test_units_and_batches_follow_from_the_input(tmp_path: Path) -> None:
    source, scenes = captions_only(tmp_path / "in")
    units = plan_units(source, 1000)
    assert [unit.name for unit in units] == ["00000", "00001", "00002"]
    batches = [batch for unit in units for batch in read_batches(unit, 2)]
    assert [(b.unit, b.number, b.of, len(b.pictures)) for b in batches] == [
        *(("00000", i, 3, size) for i, size in enumerate((2, 2, 1))),
        *(("00001", i, 3, size) for i, size in enumerate((2, 2, 1))),
        ("00002", 0, 1, 2),
    ]
    assert [p.key for b in batches for p in b.pictures] == [scene.key for scene in scenes]
    assert known_pictures(units) == COUNT
    assert [(u.start, u.stop) for u in plan_units("scenes:val,num_samples=5", 2)] == [(0, 2), (2, 4), (4, 5)]


def test_what_the_reader_leaves_out_is_told_before_anything_starts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures(tmp_path, "a.png")
    (tmp_path / "phone.heic").write_bytes(b"x")
    (tmp_path / "metadata.jsonl").write_text('{"text": "of no picture"}')
    units = plan_units(str(tmp_path), 10)
    tell_input(units, str(tmp_path), 0.01)
    assert f"{tmp_path}: not used: files .heic: 1" in caplog.text
    assert f"{tmp_path}: 1 entry is broken (broken row: 1)" in caplog.text
    with pytest.raises(UserError, match="max_bad_fraction leaves them out"):
        tell_input(units, str(tmp_path), 0)


def test_a_comma_in_a_path_is_no_option(tmp_path: Path) -> None:
    source, _ = captions_only(tmp_path / "a,b")
    units = plan_units(f"{source},exif=apply", 1000)
    assert [unit.spec for unit in units] == [
        f"shards:{tmp_path}/a,b/{number:05d}.tar,exif=apply" for number in range(3)
    ]
    assert known_pictures(units) == COUNT
    assert sum(len(batch.pictures) for batch in read_batches(units[0], 2)) == 5
