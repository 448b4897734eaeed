"""YOLO's text files: lines of boxes, scores and outlines, and the YAML that names classes and splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from open_cloc.data.readers import open_reader
from tests.data.readers.made import pictures, samples, write_yolo


def test_boxes_scores_outlines_and_pictures_without_any(tmp_path: Path) -> None:
    lines = ["0 0.5 0.5 0.2 0.4", "1 0.25 0.5 0.5 1 0.75", "1 0.1 0.2 0.5 0.2 0.3 0.6", ""]
    dataset: Any = open_reader(f"yolo:{write_yolo(tmp_path, {'a': lines, 'sub/b': None})}")
    first, second = samples(dataset)
    assert dataset.class_names == ("red mug", "cat")
    assert [region.text for region in first.regions] == ["red mug", "cat", "cat"]
    assert [region.score for region in first.regions] == [1, 0.75, 1]
    expected = [(0.4, 0.3, 0.6, 0.7), (0, 0, 0.5, 1), (0.1, 0.2, 0.5, 0.6)]
    assert [region.box for region in first.regions] == [pytest.approx(box) for box in expected]
    assert {region.source for region in first.regions} == {"yolo"}
    assert (first.key, second.key) == ("images/train/a", "images/train/sub/b")
    assert second.regions == ()
    assert first.metadata == {"file_name": "images/train/a.png"}
    assert first.pixels().shape == (4, 6, 3)
    with pytest.raises(IndexError):
        dataset[2]


def test_keypoints_are_passed_over(tmp_path: Path) -> None:
    lines = ["1 0.5 0.5 0.2 0.4 0.1 0.1 2 0.3 0.3 2"]
    path = write_yolo(tmp_path, {"a": lines}, extra="kpt_shape: [2, 3]")
    assert open_reader(f"yolo:{path}")[0].regions[0].box == pytest.approx((0.4, 0.3, 0.6, 0.7))


def test_splits_are_folders_lists_of_them_or_text_files(tmp_path: Path) -> None:
    pictures(tmp_path / "data", "valid/images/v.png", "a/images/1.png", "b/2.png")
    for name in ("valid/labels/v.txt", "a/labels/1.txt", "b/2.txt"):
        label = tmp_path / "data" / name
        label.parent.mkdir(exist_ok=True)
        label.write_text("0 0.5 0.5 1 1\n")
    (tmp_path / "data/list.txt").write_text("./b/2.png\n\na/images/1.png\n")
    config = tmp_path / "data/data.yaml"
    # Roboflow's `..`, and a root that was on another machine.
    config.write_text(
        "path: /nowhere/data\ntrain: [a/images, b]\nval: ../valid/images\ntest: list.txt\nnames: [dog]\n"
    )
    keys = {
        split: [sample.key for sample in samples(open_reader(f"yolo:{config.parent},split={split}"))]
        for split in ("train", "val", "test")
    }
    assert keys == {
        "train": ["a/images/1", "b/2"],
        "val": ["valid/images/v"],
        "test": ["b/2", "a/images/1"],
    }
    for split in keys:
        found = samples(open_reader(f"yolo:{config},split={split}"))
        assert [region.text for sample in found for region in sample.regions] == ["dog"] * len(found)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7 0.5 0.5 1 1", r"unknown class 7; expected 0 to 1 \(.*a\.txt, line 2\)"),
        ("0.5 0.5 0.5 1 1", r"unknown class 0\.5; expected"),
        ("0 0.5 0.5 1", r"a line must be a class, then x y w h.*got '0 0\.5 0\.5 1' \(.*a\.txt, line 2\)"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "or an outline"),
        ("cat 0.5 0.5 1 1", r"a line must be numbers; got 'cat .*a\.txt, line 2"),
        ("0 320 240 100 100", r"box is outside the picture.*cxcywh normalised.*a\.txt, line 2"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    dataset = open_reader(f"yolo:{write_yolo(tmp_path, {'a': ['0 0.5 0.5 1 1', line]})}")
    with pytest.raises(ValueError, match=message):
        dataset[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("names: [a]\nval: images\n", r"no split 'train'; expected one of val \(.*data\.yaml\)"),
        ("names: [a]\ntrain: nowhere\n", r"no such folder of pictures: .*nowhere \(.*data\.yaml\)"),
        ("names: [a]\ntrain: empty\n", r"no pictures of split 'train' \(.*data\.yaml\)"),
        ("train: images\n", r"names must list the classes, or number them from 0; got NoneType"),
        ("names: {1: a}\ntrain: images\n", r"names must list .* got \['1'\]"),
        ("- a\n", r"table of names and splits; got list"),
        ("names: [", r"data\.yaml is not valid YAML"),
    ],
)
def test_wrong_configs_are_named(tmp_path: Path, content: str, message: str) -> None:
    pictures(tmp_path / "images", "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "data.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        open_reader(f"yolo:{tmp_path}")
    with pytest.raises(FileNotFoundError, match="no such data set"):
        open_reader(f"yolo:{tmp_path / 'images'}")
