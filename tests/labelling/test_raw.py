"""Raw detections on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from open_cloc.errors import UserError
from open_cloc.labelling.raw import read_raw, write_raw
from open_cloc.labelling.types import Caption, Detections, Failure, Phrase, Phrases, Picture


def test_raw_detections_round_trip(tmp_path: Path) -> None:
    pictures = [
        Picture(0, "a", failure=Failure("unreadable picture", "cut off"), given=("x",)),
        Picture(
            3,
            "b",
            given=("one", "two"),
            caption=Caption("one", "given"),
            phrases=Phrases((Phrase("one", 0, 3), Phrase("é", 4, 5)), {"duplicate": 2}),
            detections=Detections(
                np.array([[0, 0.1, 0.5, 1]], np.float32),
                np.array([[0.25, 0.5]], np.float32),
                {"not finite": 1},
            ),
            cycle=np.array([0.75], np.float32),
        ),
        Picture(
            4,
            "c",
            caption=Caption("no", "given"),
            phrases=Phrases(()),
            detections=Detections(np.zeros((0, 4), np.float32), np.zeros((0, 0), np.float32)),
        ),
    ]
    files = tmp_path / "pictures.parquet", tmp_path / "boxes.parquet"
    write_raw(pictures, *files)
    read = list(read_raw(*files))
    for got, expected in zip(read, pictures, strict=True):
        assert replace(got, detections=None, cycle=None) == replace(expected, detections=None, cycle=None)
        if expected.detections is None:
            assert got.detections is None
            continue
        assert got.detections is not None
        np.testing.assert_array_equal(got.detections.boxes, expected.detections.boxes)
        np.testing.assert_array_equal(got.detections.scores, expected.detections.scores)
        assert got.detections.dropped == expected.detections.dropped
    np.testing.assert_array_equal(read[1].cycle, [0.75])
    assert read[2].cycle is None


def test_a_picture_whose_labels_no_table_holds_is_a_failure_and_the_others_are_kept(tmp_path: Path) -> None:
    good = Picture(0, "a", caption=Caption("one", "given"), phrases=Phrases((Phrase("one", 0, 3),)))
    odd = replace(good, index=1, caption=Caption("half \ud83d", "given"))
    huge = replace(good, index=2, phrases=Phrases((Phrase("one", 2**40, 2**41),)))
    files = tmp_path / "pictures.parquet", tmp_path / "boxes.parquet"
    write_raw([good, odd, huge], *files)
    first, second, third = read_raw(*files)
    assert replace(first, detections=None) == good
    for picture in (second, third):
        assert picture.failure is not None
        assert picture.failure.cause == "labels that cannot be written"


def test_texts_of_failures_are_cleaned(tmp_path: Path) -> None:
    files = tmp_path / "pictures.parquet", tmp_path / "boxes.parquet"
    write_raw([Picture(0, "k\ud83d", failure=Failure("broken", "in \udcff.jpg"))], *files)
    (picture,) = read_raw(*files)
    assert (picture.key, picture.failure) == ("k", Failure("broken", "in .jpg"))


@pytest.mark.parametrize("damage", [b"", b"PAR1 and no more", None])
def test_damaged_raw_detections_are_named(tmp_path: Path, damage: bytes | None) -> None:
    files = tmp_path / "pictures.parquet", tmp_path / "boxes.parquet"
    write_raw([Picture(0, "a", failure=Failure("x", "y"))], *files)
    files[0].unlink() if damage is None else files[0].write_bytes(damage)
    with pytest.raises(UserError, match=r"raw detections cannot be read: .*pictures\.parquet"):
        read_raw(*files)
    write_raw([Picture(0, "a", failure=Failure("x", "y"))], files[1], tmp_path / "other.parquet")
    with pytest.raises(UserError, match="raw detections cannot be read"):
        read_raw(files[1], files[1])
