"""Raw detections on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

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
