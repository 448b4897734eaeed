"""Label maps of each data set's form: a known pixel has the class that it must have."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from open_cloc.data.bad_samples import read_usable
from open_cloc.data.check import check_dataset
from open_cloc.data.readers import open_reader
from open_cloc.errors import MissingFileError, SampleError, UserError
from tests.data.readers.made import picture_of, write_map, write_masks, write_panoptic


def test_ade20k(tmp_path: Path) -> None:
    dataset: Any = open_reader(f"masks:{write_masks(tmp_path)}")
    assert dataset.class_names == ("wall", "building, edifice")
    assert [dataset[index].key for index in range(2)] == ["ADE_val_00000001", "ADE_val_00000002"]
    found = pickle.loads(pickle.dumps(dataset)).label_map(1)
    assert found.shape == (50, 100)
    assert (found[10, 10], found[40, 10], found[40, 90]) == (0, 1, -1)


def test_voc_with_and_without_its_background(tmp_path: Path) -> None:
    picture_of(tmp_path, "JPEGImages/2007_000033.jpg")
    picture_of(tmp_path, "JPEGImages/2007_000042.jpg")
    numbers = np.zeros((50, 100), np.uint8)
    numbers[:10], numbers[20:30] = 1, 255
    write_map(tmp_path / "SegmentationClass/2007_000033.png", numbers, palette=True)
    (tmp_path / "val.txt").write_text("2007_000033\n")
    (tmp_path / "voc21.txt").write_text("background\naeroplane\n")
    (tmp_path / "voc20.txt").write_text("aeroplane\n")
    base = f"masks:{tmp_path / 'JPEGImages'},labels={tmp_path / 'SegmentationClass'}"
    base += f",split={tmp_path / 'val.txt'}"
    whole: Any = open_reader(f"{base},classes={tmp_path / 'voc21.txt'}")
    assert len(whole) == 1
    found = whole.label_map(0)
    assert (found[5, 5], found[15, 5], found[25, 5]) == (1, 0, -1)
    without: Any = open_reader(f"{base},classes={tmp_path / 'voc20.txt'},first=1")
    found = without.label_map(0)
    assert (found[5, 5], found[15, 5], found[25, 5]) == (0, -1, -1)
    every: Any = open_reader(f"{base.rpartition(',split')[0]},classes={tmp_path / 'voc21.txt'}")
    assert [problem.cause for problem in every.problems] == ["picture without a label map"]
    assert "name the pictures that are meant by split=FILE" in every.problems[0].message
    assert whole.problems == []
    (tmp_path / "val.txt").write_text("2007_000033\n2007_999999\n")
    with pytest.raises(MissingFileError, match="1 of the 2 pictures"):
        open_reader(f"{base},classes={tmp_path / 'voc21.txt'}")


@pytest.mark.parametrize("part", ["images/validation/", "annotations/validation/"])
def test_pictures_and_label_maps_come_in_pairs(tmp_path: Path, part: str) -> None:
    spec = write_masks(tmp_path)
    gone = next(file for file in (tmp_path / part).iterdir() if file.stem.endswith("2"))
    gone.unlink()
    dataset: Any = open_reader(f"masks:{spec}")
    assert len(dataset) == 1
    ((cause, message),) = dataset.problems
    lone = "label map without a picture" if part.startswith("images") else "picture without a label map"
    assert cause == lone
    assert "ADE_val_00000002" in message
    assert lone in check_dataset(dataset).errors
    (tmp_path / "some.txt").write_text("ADE_val_00000001\n")
    asked: Any = open_reader(f"masks:{spec},split={tmp_path / 'some.txt'}")
    assert asked.problems == []


def test_label_maps_among_their_pictures(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture_of(tmp_path, f"set/{name}.jpg")
        write_map(tmp_path / f"set/{name}_mask.png", np.full((50, 100), 1))
    (tmp_path / "classes.txt").write_text("x\ny\n")
    spec = f"masks:{tmp_path}/set,labels={tmp_path}/set/../set,classes={tmp_path}/classes.txt"
    dataset: Any = open_reader(f"{spec},label_end=_mask.png")
    assert (len(dataset), dataset.problems, dataset.left_out) == (2, [], {})
    (tmp_path / "set/b.jpg").unlink()
    dataset = open_reader(f"{spec},label_end=_mask.png")
    assert [problem.cause for problem in dataset.problems] == ["label map without a picture"]


def test_cityscapes_names(tmp_path: Path) -> None:
    picture_of(tmp_path, "leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png")
    write_map(tmp_path / "gtFine/val/ulm/ulm_000000_000019_gtFine_labelTrainIds.png", np.full((50, 100), 1))
    write_map(tmp_path / "gtFine/val/ulm/ulm_000000_000019_gtFine_color.png", np.full((50, 100), 9))
    (tmp_path / "c.txt").write_text("road\nsidewalk\n")
    dataset: Any = open_reader(
        f"masks:{tmp_path / 'leftImg8bit/val'},labels={tmp_path / 'gtFine/val'},classes={tmp_path / 'c.txt'},"
        "picture_end=_leftImg8bit,label_end=_gtFine_labelTrainIds.png"
    )
    assert dataset.label_map(0)[3, 3] == 1


def test_wide_numbers(tmp_path: Path) -> None:
    picture_of(tmp_path, "i/a.jpg")
    (tmp_path / "l").mkdir()
    Image.fromarray(np.full((50, 100), 300, np.uint16)).save(tmp_path / "l" / "a.png")
    (tmp_path / "c.txt").write_text("\n".join(f"class {n}" for n in range(400)))
    dataset: Any = open_reader(f"masks:{tmp_path / 'i'},labels={tmp_path / 'l'},classes={tmp_path / 'c.txt'}")
    assert (dataset.label_map(0) == 300).all()


def test_what_is_no_label_map(tmp_path: Path) -> None:
    spec = write_masks(tmp_path)
    dataset: Any = open_reader(f"masks:{spec}")
    file = tmp_path / "annotations/validation/ADE_val_00000001.png"
    Image.new("RGB", (100, 50)).save(file)
    with pytest.raises(SampleError, match="one number a pixel; this is a picture of mode RGB"):
        dataset.label_map(0)
    write_map(file, np.full((50, 100), 3))
    with pytest.raises(
        SampleError, match="holds 3, which is none of the 2 classes from 1 on, nor ignore=255"
    ):
        dataset.label_map(0)
    file.write_bytes(b"nothing")
    with pytest.raises(SampleError, match="label map cannot be decoded"):
        dataset.label_map(0)
    file.unlink()
    with pytest.raises(SampleError):
        dataset.label_map(0)
    (tmp_path / "classes.txt").write_text("\n \n")
    with pytest.raises(UserError, match="is empty"):
        open_reader(f"masks:{spec}")
    with pytest.raises(UserError, match="unknown option 'colour'"):
        open_reader(f"masks:{spec},colour=red")
    with pytest.raises(UserError, match="labels"):
        open_reader(f"masks:{tmp_path / 'images'}")


def test_check_reads_every_map(tmp_path: Path) -> None:
    spec = write_masks(tmp_path)
    assert check_dataset(open_reader(f"masks:{spec}")).errors == {}
    write_map(tmp_path / "annotations/validation/ADE_val_00000001.png", np.full((50, 100), 200))
    write_map(tmp_path / "annotations/validation/ADE_val_00000002.png", np.full((40, 100), 1))
    found = check_dataset(open_reader(f"masks:{spec}")).errors
    assert set(found) == {"unknown class in a label map", "label map of another size"}


def test_masks_of_a_panoptic_json(tmp_path: Path) -> None:
    path = write_panoptic(tmp_path)
    bare: Any = open_reader(f"panoptic:{path}")
    with pytest.raises(UserError, match="masks=FOLDER"):
        bare.label_map(0)
    ids = np.zeros((50, 100), np.int64)
    ids[5:15, 10:30], ids[25:, 50:], ids[:5, :5] = 3226956, 7, 8
    write_map(tmp_path / "panoptic_val2017" / "000000000139.png", ids)
    write_map(tmp_path / "panoptic_val2017" / "000000000285.png", ids * (ids == 3226956))
    dataset: Any = open_reader(f"panoptic:{path},masks={tmp_path / 'panoptic_val2017'}")
    found = dataset.label_map(0)
    assert (found[10, 20], found[30, 60], found[2, 2], found[49, 0]) == (0, 1, 0, -1)
    assert (dataset.label_map(1) == 0).sum() == 200
    assert "masks; masks=FOLDER reads them" not in dataset.left_out
    person, banner = (region.mask.pixels() for region in dataset[0].regions)
    assert (person == (ids == 3226956)).all()
    assert (banner == (ids == 7)).all()
    with pytest.raises(FileNotFoundError, match="masks= of panoptic is the folder of its PNGs"):
        open_reader(f"panoptic:{path},masks=true")
    write_map(tmp_path / "panoptic_val2017" / "000000000285.png", ids)
    with pytest.raises(SampleError, match=r"segment [78] is not in segments_info"):
        dataset.label_map(1)


def test_outlines_of_odd_panoptic_data(tmp_path: Path) -> None:
    """A segment without pixels costs its region, one that is broken too, a PNG of another size the sample."""
    path = write_panoptic(tmp_path)
    ids = np.zeros((50, 100), np.int64)
    ids[5:15, 10:30] = 3226956
    folder = tmp_path / "panoptic_val2017"
    write_map(folder / "000000000139.png", ids)
    write_map(folder / "000000000285.png", ids.T)
    dataset: Any = open_reader(f"panoptic:{path},masks={folder}")
    sample, problems = read_usable(dataset, 0)
    assert sample is not None
    assert [region.text for region in sample.regions] == ["person"]
    assert [problem.cause for problem in problems] == ["segment without pixels"]
    assert "segment 7 has no pixel in 000000000139.png" in problems[0].message
    with pytest.raises(SampleError, match="must be of one size; got 50 x 100, 100 x 50"):
        dataset[1]
    document = json.loads(path.read_text())
    segments = document["annotations"][0]["segments_info"]
    segments += [
        {"id": 0, "category_id": 1, "bbox": [1, 1, 9, 9]},
        {"category_id": 1, "bbox": [1, 1, 9, 9]},
        None,
    ]
    path.write_text(json.dumps(document))
    sample, problems = read_usable(open_reader(f"panoptic:{path},masks={folder}"), 0)
    assert sample is not None
    assert len(sample.regions) == 1
    assert len(problems) == 4
    segments += segments[:1]
    path.write_text(json.dumps(document))
    repeated: Any = open_reader(f"panoptic:{path},masks={folder}")
    assert len(repeated) == 1
    assert "segment 3226956 occurs twice" in repeated.problems[0].message
