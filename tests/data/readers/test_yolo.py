"""YOLO's text files: lines of boxes, scores and outlines, and the YAML that names classes and splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from open_cloc.data.bad_samples import read_usable
from open_cloc.data.readers import open_reader
from open_cloc.errors import SampleError, UserError
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


def test_a_wrong_line_costs_its_region_alone(tmp_path: Path) -> None:
    lines = [
        "0 .5 .5 1 1",
        "7 .5 .5 1 1",
        "cat .5 .5 1 1",
        "1 .5 .5 .2 .2 1.5",
        "0 .5 .5 1_0 1",
        "1 .5 .5 1 1e0",
    ]
    lines += ["0 nan .5 1 1", "0 .5 .5 1e999 1", "0 .9 .5 .9 .4", "", "1e999 .5 .5 1 1", "0"]
    dataset = open_reader(f"yolo:{write_yolo(tmp_path, {'a': lines, 'b': ['1 .5 .5 1 1']})}")
    sample, problems = read_usable(dataset, 0)
    assert sample is not None
    assert [region.text for region in sample.regions] == ["red mug", "cat"]
    assert sorted(problem.cause for problem in problems) == [
        "box not finite",
        "box outside the picture",
        *["broken line"] * 5,
        *["unknown class"] * 2,
    ]
    assert all("a.txt, line " in problem.message for problem in problems)
    assert read_usable(dataset, 1)[1] == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("[mug, no]", r"name of class 1 must be text; got false; put it into quotes.*data\.yaml\)"),
        ("[mug, 5]", r"name of class 1 must be text; got 5; put it into quotes"),
        ("{0: mug, 1: ~}", "name of class 1 must be text; got null; put it into quotes"),
        ("[mug, 10:30]", "name of class 1 must be text; got 630"),
        ("[mug, 2024-01-01]", "name of class 1 must be text; got datetime"),
        ("[mug, ' ']", r"name of class 1 must not be blank \("),
        ("{0: mug, 0: cup}", r"not valid YAML: key 0 comes twice in one table"),
        ("[&a [mug], *a]", r"not valid YAML: alias \*a is not read here"),
        ("{0: mug, 2: cup}", r"names must list the classes, or number them from 0; got \['0', '2'\]"),
        ("mug", "names must list the classes, or number them from 0; got str"),
        ("[" * 3000, "not valid YAML: nested too deeply"),
        ("[2024-99-99]", "not valid YAML: month must be in 1..12"),
    ],
)
def test_names_of_classes_are_texts(tmp_path: Path, names: str, message: str) -> None:
    config = write_yolo(tmp_path, {"a": ["0 .5 .5 1 1"]})
    config.write_text(f"train: images/train\nnames: {names}\n")
    with pytest.raises(UserError, match=message):
        open_reader(f"yolo:{config}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train: 7", r"train must be text; got 7 \(.*data\.yaml\)"),
        ("train: [images/train, null]", "train must be text; got null"),
        ("train: {a: b}", "train must be text; got"),
        ("train: images/train\npath: 7", "path must be text; got 7"),
        ("train: images/train\ntrain: images", "key 'train' comes twice"),
    ],
)
def test_places_are_texts(tmp_path: Path, line: str, message: str) -> None:
    config = write_yolo(tmp_path, {"a": ["0 .5 .5 1 1"]})
    config.write_text(f"{line}\nnames: [mug]\n")
    with pytest.raises(UserError, match=message):
        open_reader(f"yolo:{config}")


def test_what_has_no_partner_is_told(tmp_path: Path) -> None:
    config = write_yolo(tmp_path, {"a": ["0 .5 .5 1 1"], "b": None, "sub/c": None}, extra="nc: 3")
    for name in ("gone.txt", "also_gone.txt", "classes.txt", "._a.txt"):
        (tmp_path / "labels/train" / name).write_text("0 .5 .5 1 1")
    (tmp_path / "labels/train/nothing.txt").touch()
    (tmp_path / "labels/train/notes.txt").write_text("ask Ann\n")
    (tmp_path / "images/train/phone.heic").write_bytes(b"x")
    (tmp_path / "images/train/Thumbs.db").write_bytes(b"x")
    dataset: Any = open_reader(f"yolo:{config}")
    assert dataset.left_out == {
        "pictures without a text file, taken to show nothing": 2,
        "text files without boxes and without a picture": 1,
        "files .heic": 1,
        "files of macOS and Windows, such as ._NAME and Thumbs.db": 1,
        "split 'val'; give split=val": 1,
    }
    lone = [problem.message for problem in dataset.problems if problem.cause == "text file without a picture"]
    assert [message.partition(" (")[0].rpartition("/")[2] for message in lone] == [
        "also_gone.txt",
        "gone.txt",
        "nothing.txt",
    ]
    assert [problem.cause for problem in dataset.problems][3:] == ["another number of classes"]
    assert "split" not in str(open_reader(f"yolo:{config},split=train").left_out)  # type: ignore[attr-defined]


def test_pictures_without_any_text_file_are_refused(tmp_path: Path) -> None:
    config = write_yolo(tmp_path, {"a": None, "b": None})
    with pytest.raises(
        UserError, match=r"none of 2 pictures has a text file .*labels/train/a\.txt .*folder:PATH"
    ):
        open_reader(f"yolo:{config}")


def test_text_files_of_windows_are_read(tmp_path: Path) -> None:
    config = write_yolo(tmp_path, {"a": None})
    (tmp_path / "labels/train").mkdir(parents=True)
    (tmp_path / "labels/train/a.TXT").write_bytes(b"\xef\xbb\xbf0 .5 .5 1 1\r\n1 .5 .5 1 1\r\n")
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfimages\\train\\a.png\r\n./images/train/a.png\r\n")
    config.write_text("train: images/train\nval: list.txt\nnames: [mug, cat]\n")
    for split in ("train", "val"):
        dataset = open_reader(f"yolo:{config},split={split}")
        assert [len(sample.regions) for sample in samples(dataset)] == [2] * len(dataset)
        assert dataset[0].pixels().shape == (4, 6, 3)


def test_nothing_outside_of_the_data_set_is_read(tmp_path: Path) -> None:
    config = write_yolo(tmp_path / "set", {"a": ["0 .5 .5 1 1"], "b": ["0 .5 .5 1 1"]})
    pictures(tmp_path / "private", "images/x.png")
    (tmp_path / "private/labels").mkdir()
    (tmp_path / "private/labels/x.txt").write_text("0 .5 .5 1 1")
    for place in ("../private/images", str(tmp_path / "private/images")):
        config.write_text(f"train: {place}\nnames: [mug]\n")
        with pytest.raises(UserError, match=r"leads out of the data set .* outside=true"):
            open_reader(f"yolo:{config}")
        assert len(open_reader(f"yolo:{config},outside=true")[0].regions) == 1
    config.write_text(f"path: {tmp_path / 'private'}\ntrain: images\nnames: [mug]\n")
    with pytest.raises(UserError, match=r"path .* leads out of the data set .* outside=true"):
        open_reader(f"yolo:{config}")
    (tmp_path / "set/list.txt").write_text("images/train/a.png\n../private/images/x.png\nhttps://x/y.png\n")
    config.write_text("train: list.txt\nnames: [mug]\n")
    (tmp_path / "set/labels/train/a.txt").unlink()
    (tmp_path / "set/labels/train/a.txt").symlink_to(tmp_path / "private/labels/x.txt")
    dataset: Any = open_reader(f"yolo:{config}")
    for index, message in enumerate(["leads out of the data set", "leads out of the data set", "is a URL"]):
        with pytest.raises(SampleError, match=message):
            dataset[index]
