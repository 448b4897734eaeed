"""Adding: all of a picture or nothing, resumed, odd data counted, and one pass of the tower a picture."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from open_cloc.data.readers import open_reader
from open_cloc.errors import UserError
from open_cloc.index import build as module
from open_cloc.index.region_index import RegionIndex
from open_cloc.index.rows import PICTURES
from open_cloc.inference.predictor import Predictor
from open_cloc.samples import Region
from tests.index.made import BOXES, rows_of, sample, samples
from tests.tiny import picture


@pytest.fixture
def empty(predictor: Predictor, tmp_path: Path) -> RegionIndex:
    return RegionIndex.build(tmp_path / "ix", predictor, columns={"year": "number"})


def test_rows_are_what_the_predictor_says(index: RegionIndex, predictor: Predictor) -> None:
    rows = rows_of(index)
    for number in (0, 4, 11):
        given = sample(number)
        own = sorted((r for r in rows if r["key"] == given.key), key=lambda row: int(row["id"].split(":")[1]))
        image = predictor.encode(given.pixels())
        height, width = image.size_hw
        boxes = np.array([[row[side] for side in ("x1", "y1", "x2", "y2")] for row in own])
        np.testing.assert_allclose(boxes[0], [0, 0, width, height])
        np.testing.assert_allclose(boxes[1:4], np.array(BOXES) * [width, height, width, height], rtol=1e-6)
        # In a batch of sixteen or alone, in float32 boxes or not.
        vectors = np.array([row["vector"] for row in own])
        np.testing.assert_allclose(vectors[0], image.embed(), atol=1e-5)
        np.testing.assert_allclose(vectors[1:], image.embed(boxes[1:]), atol=1e-5)
        assert [row["source"] for row in own[:5]] == ["picture", "made", "made", "made", "grid"]
        assert [row["text"] for row in own[:4]] == ["", "a dog", "a cat", "two red cats"]
        assert [row["score"] for row in own[:5]] == [None, 0.5, 0.5, 0.5, None]
        assert own[1]["area"] == pytest.approx(0.25)
        assert {row["year"] for row in own} == {2000 + number}


def test_one_pass_of_the_tower_a_picture(empty: RegionIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = empty.predictor.model.encode_image

    def counted(images: Any, *args: Any, **options: Any) -> Any:
        seen.append(len(images))
        return real(images, *args, **options)

    monkeypatch.setattr(empty.predictor.model, "encode_image", counted)
    empty.add(samples(5), "grid:100", "labels", batch_size=2)
    assert seen == [2, 2, 1]


def test_the_batch_changes_nothing(predictor: Predictor, tmp_path: Path) -> None:
    vectors = []
    for size in (1, 5):
        index = RegionIndex.build(tmp_path / f"{size}", predictor)
        index.add(samples(5), "labels", batch_size=size)
        vectors.append(np.array([row["vector"] for row in rows_of(index)]))
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)


def test_what_is_there_is_left(empty: RegionIndex) -> None:
    said: list[int] = []
    first = empty.add(samples(4), progress=said.append)
    assert (first.pictures, first.regions, first.known, sum(said)) == (4, 12, 0, 4)
    again = empty.add([*samples(6), sample(5), sample(1)], "grid", progress=said.append)
    assert (again.pictures, again.known) == (2, 6)
    assert sum(said) == 12
    assert empty.store.count(PICTURES) == 6
    other_key, other_content = sample(0, key="other"), sample(0, image=picture(seed=77))
    assert empty.add([other_key, other_content]).pictures == 2


def test_rows_of_a_picture_are_all_there_or_none(empty: RegionIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever write fails; what was said is there, and the next run goes on."""
    monkeypatch.setattr(module, "ROWS_PER_WRITE", 10)
    real, calls = empty.store._table.add, []

    def fails_later(rows: Any) -> Any:
        calls.append(len(rows))
        if len(calls) == 3:
            raise OSError("No space left on device")
        return real(rows)

    monkeypatch.setattr(empty.store._table, "add", fails_later)
    said: list[int] = []
    with pytest.raises(Exception, match="No space left"):
        empty.add(samples(20), batch_size=2, progress=said.append)
    counts = Counter(row["picture"] for row in rows_of(empty))
    assert set(counts.values()) == {4}
    assert len(counts) == sum(said) > 0
    added = empty.add(samples(20), batch_size=2)
    assert (added.pictures, added.known) == (20 - len(counts), len(counts))
    assert set(Counter(row["picture"] for row in rows_of(empty)).values()) == {4}


KILLED = """
import sys
from open_cloc.index import build
from open_cloc.index.region_index import RegionIndex
from open_cloc.inference.predictor import Predictor
from tests.index.made import samples
from tests.tiny import tiny_model

build.ROWS_PER_WRITE = 30
index = RegionIndex.open(sys.argv[1], Predictor(tiny_model()))
index.add(samples(400), "grid:20", batch_size=2, progress=lambda count: print(count, flush=True))
"""


def test_what_was_said_is_there_after_a_kill(predictor: Predictor, tmp_path: Path) -> None:
    place = tmp_path / "ix"
    RegionIndex.build(place, predictor, thumbnail=0)
    for lines in (1, 4):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(place)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        said = sum(int(process.stdout.readline()) for _ in range(lines))
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate()
        said += sum(map(int, rest.split()))
        assert process.returncode == -signal.SIGKILL
        index = RegionIndex.open(place, predictor)
        counts = Counter(row["picture"] for row in rows_of(index))
        assert 0 < said <= len(counts) < 400
        assert len(set(counts.values())) == 1
        assert len(index.search("a dog", 3)) == 3
    known = len(counts)
    added = index.add(samples(known + 3), "grid:20")
    assert (added.pictures, added.known) == (3, known)


ODD = {
    "another type of metadata": (sample(90, metadata={"year": "1999"}), "column 'year' must be a number"),
    "a truth value": (sample(91, metadata={"year": True}), "column 'year' must be a number"),
    "a box outside": (sample(92, regions=(Region((0, 0, 30, 40), "x"),)), "outside the picture"),
    "no number": (sample(93, regions=(Region((0, 0, float("nan"), 1), "x"),)), "not finite"),
    "a text that is none": (sample(94, regions=(Region((0, 0, 1, 1), 5),)), "region text must be text"),  # type: ignore[arg-type]
    "a missing file": (sample(95, image=Path("/none/x.png")), "/none/x.png"),
    "no picture": (sample(96, image=b"<html>"), "picture 96"),
}


@pytest.mark.parametrize(("given", "reason"), ODD.values(), ids=ODD)
def test_odd_samples_are_counted_and_told(empty: RegionIndex, given: Any, reason: str) -> None:
    with pytest.raises(UserError, match="past max_bad_fraction=0") as caught:
        empty.add([sample(0), given, sample(1)])
    assert reason in str(caught.value)
    assert empty.store.count() == 0
    added = empty.add([sample(0), given, sample(1)], max_bad_fraction=0.5)
    assert (added.pictures, added.causes.total()) == (2, 1)
    assert {row["key"] for row in rows_of(empty)} == {"picture 0", "picture 1"}


def test_regions_without_area_and_names_that_mislead(empty: RegionIndex) -> None:
    regions = (
        Region((0.2, 0.2, 0.2, 0.9), "a line"),
        Region((0.0, 0.0, 1.0, 1.0), "whole", source="picture"),
    )
    added = empty.add([sample(0, regions=regions, metadata={"year": None})])
    assert (added.pictures, added.regions) == (1, 1)
    assert empty.store.count(PICTURES) == 1
    (hit,) = empty.search("whole")
    assert (hit.source, hit.columns) == ("picture region", {"year": None})


def test_names_that_no_text_holds(predictor: Predictor, tmp_path: Path) -> None:
    """A file name that is not UTF-8: found by its thumbnail."""
    folder = tmp_path / "photos"
    folder.mkdir()
    name = folder / b"caf\xe9.png".decode("utf-8", "surrogateescape")
    Image.fromarray(picture()).save(name)
    index = RegionIndex.build(tmp_path / "ix", predictor)
    assert index.add([sample(0, key=name.name, image=name)]).pictures == 1
    assert index.add([sample(0, key=name.name, image=name)]).known == 1
    (hit, *_) = index.search("a dog")
    assert (hit.path, hit.key) == ("", "caf.png")
    assert index.picture_of(hit)
    assert index.sheet([hit]).shape[2] == 3


def test_a_folder_of_photos(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    index = RegionIndex.build(tmp_path / "ix", predictor)
    added = index.add(open_reader(f"folder:{photos}"), "grid:20")
    assert added.pictures == 4
    assert added.regions > 40
    (hit, *_) = index.search("a dog")
    assert Path(hit.path).parent == photos.resolve()


def test_thumbnails(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"thumbnail must be in 0\.\.2048"):
        RegionIndex.build(tmp_path / "x", predictor, thumbnail=-1)
    index = RegionIndex.build(tmp_path / "none", predictor, thumbnail=0)
    index.add(samples(1))
    (hit, *_) = index.search("a dog")
    assert index.picture_of(hit) is None
    with pytest.raises(UserError, match="none whose picture is there"):
        index.sheet([hit])
