"""Datasets to shards in one process and in several: the same bytes, the same faults."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from open_cloc.data.shards.convert import convert_dataset
from open_cloc.data.shards.read import ShardDataset
from open_cloc.errors import MissingFileError, SampleError
from open_cloc.samples import Region, RegionSample
from tests.data.shards.tars import files, keys_of, samples

NUM = 30


class Made:
    """Samples of which some are bad in their own way; says which were read."""

    def __init__(self, faults: dict[int, str] | None = None) -> None:
        self.faults = faults or {}

    def __len__(self) -> int:
        return NUM

    def __getitem__(self, index: int) -> RegionSample:
        pixels = np.random.default_rng(index).integers(0, 255, (20 + index, 30, 3), dtype=np.uint8)
        good = replace(samples(3)[2], key=f"k{index:02d}", image=pixels)
        match self.faults.get(index):
            case "missing":
                return replace(good, image=Path("/nowhere/a.jpg"))
            case "undecodable":
                return replace(good, image=b"text")
            case "box":
                return replace(good, regions=(Region((9, 9, 50, 20), "px"),))
            case "metadata":
                return replace(good, metadata={"x": {1, 2}})
            case "key":
                return replace(good, key="a.b")
            case "repeated":
                return replace(good, key="k00")
            case "defect":
                raise TypeError("unhashable")
            case "odd":
                raise OddError(1, 2)
        return good


class OddError(SampleError):
    """An error that cannot be made of its message alone, as torch would."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second} do not fit", "odd numbers")


@pytest.mark.parametrize("max_side", [0, 24])
def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path, max_side: int) -> None:
    faults = {3: "missing", 17: "undecodable", 25: "box"}
    for workers in (0, 1, 3):
        result = convert_dataset(
            Made(faults), tmp_path / str(workers), 7, max_side=max_side, max_bad_fraction=0.2, workers=workers
        )
        assert result.written == NUM - 3
        assert result.causes == {
            "missing picture": 1,
            "undecodable picture": 1,
            "box outside the picture": 1,
        }
    assert files(tmp_path / "0") == files(tmp_path / "1") == files(tmp_path / "3")


@pytest.mark.parametrize("workers", [0, 1])
def test_whatever_fails_between_reading_and_writing_costs_the_sample(tmp_path: Path, workers: int) -> None:
    faults = dict(enumerate(FAULTS, start=2))
    result = convert_dataset(Made(faults), tmp_path / "out", max_bad_fraction=0.5, workers=workers)
    assert sorted(result.causes) == sorted(FAULTS.values())
    written = keys_of(ShardDataset(str(tmp_path / "out")))
    assert written == [f"k{number:02d}" for number in range(NUM) if number not in faults]


FAULTS = {
    "missing": "missing picture",
    "undecodable": "undecodable picture",
    "box": "box outside the picture",
    "metadata": "metadata that is no JSON",
    "key": "unusable key",
    "repeated": "repeated key",
    "defect": "unusable sample",
    "odd": "odd numbers",
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["missing", "undecodable", "metadata", "key", "repeated", "odd"])
def test_without_leave_the_first_bad_sample_stops(tmp_path: Path, workers: int, kind: str) -> None:
    data = Made({11: kind})
    with pytest.raises(SampleError) as caught:
        convert_dataset(data, tmp_path / "out", 7, workers=workers)
    assert caught.value.cause == FAULTS[kind]
    assert "Traceback" not in str(caught.value)
    assert isinstance(caught.value, MissingFileError) == (kind == "missing")
    assert list(tmp_path.iterdir()) == []


def test_a_defect_in_a_worker_shows_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)data worker has failed:\nTraceback.*TypeError: unhashable"):
        convert_dataset(Made({11: "defect"}), tmp_path / "out", workers=1)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("allowed", [0.0, 0.3])
def test_a_stopped_conversion_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, workers: int, allowed: float
) -> None:
    rest = {4: "missing"} if allowed else {}
    with pytest.raises(SampleError):
        convert_dataset(Made({23: "metadata"}), tmp_path / "out", 7, resume=True, workers=workers)
    unfinished = tmp_path / "out.incomplete"
    assert len(list(unfinished.glob("*.tar"))) == 3
    if not allowed:
        kept = (unfinished / "00000.tar").stat().st_ino
        convert_dataset(Made(), tmp_path / "out", 7, resume=True, workers=workers)
        assert (tmp_path / "out/00000.tar").stat().st_ino == kept
    else:  # other samples than those of the finished shards
        with pytest.raises(ValueError, match="holds other samples; start anew without resume"):
            convert_dataset(
                Made(rest), tmp_path / "out", 7, max_bad_fraction=allowed, resume=True, workers=workers
            )
        convert_dataset(Made(rest), tmp_path / "out", 7, max_bad_fraction=allowed, workers=workers)
    convert_dataset(Made(rest), tmp_path / "whole", 7, max_bad_fraction=allowed)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
