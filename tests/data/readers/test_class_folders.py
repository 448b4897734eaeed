"""A folder of pictures for each class, as ImageNet's `val` and torchvision's `ImageFolder` have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from open_cloc.cli.data import main
from open_cloc.data.bad_samples import read_usable
from open_cloc.data.readers import guess_spec, open_reader
from open_cloc.errors import MissingFileError, SampleError, UserError
from tests.data.readers.made import SYNSETS, pictures, samples, write_class_folders


def labels(dataset: Any) -> list[str]:
    return [sample.metadata["label"] for sample in samples(dataset)]


def test_each_folder_is_a_class(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path)
    dataset: Any = open_reader(f"class_folders:{folder}")
    assert [sample.key for sample in samples(dataset)] == [
        "n01440764/ILSVRC2012_val_00000293",
        "n01440764/ILSVRC2012_val_00002138",
        "n01443537/ILSVRC2012_val_00000236",
    ]
    assert labels(dataset) == ["n01440764", "n01440764", "n01443537"]
    assert dataset.class_names == ("n01440764", "n01443537", "n01484850")
    assert (dataset.problems, dataset.left_out) == ([], {})
    assert samples(dataset)[0].captions == ()
    assert guess_spec(str(folder)) == f"folder:{folder}"  # which does not take folders for classes


@pytest.mark.parametrize("text", [SYNSETS, SYNSETS.replace(" ", "\t", 1), "\ufeff" + SYNSETS + "\r\n"])
def test_classes_have_the_names_of_a_list(tmp_path: Path, text: str) -> None:
    folder = write_class_folders(tmp_path)
    words = tmp_path / "LOC_synset_mapping.txt"
    words.write_text(text, encoding="utf-8")
    dataset: Any = open_reader(f"class_folders:{folder},names={words}")
    assert labels(dataset) == ["tench", "tench", "goldfish"]
    assert dataset.class_names == ("tench", "goldfish", "great white shark")


def test_a_tab_parts_folders_with_blanks(tmp_path: Path) -> None:
    pictures(tmp_path / "val", "golden dog/a.png", "cat/b.png")
    (tmp_path / "words").write_text("golden dog\tgolden retriever, goldie\ncat house cat")
    dataset: Any = open_reader(f"class_folders:{tmp_path / 'val'},names={tmp_path / 'words'}")
    assert dataset.class_names == ("house cat", "golden retriever")


def test_pictures_are_torchvisions(tmp_path: Path) -> None:
    """Nested folders belong to the class above them; names with capitals come first."""
    theirs = pytest.importorskip("torchvision.datasets").ImageFolder
    pictures(tmp_path, "b/z.png", "b/deep/er/a.jpg", "b/A.JPG", "Z/1.webp", "a/x.v2.bmp", "a/x.png")
    dataset: Any = open_reader(f"class_folders:{tmp_path}")
    expected = theirs(str(tmp_path))
    assert list(dataset.class_names) == expected.classes == ["Z", "a", "b"]
    found = [(str(sample.image), sample.metadata["label"]) for sample in samples(dataset)]
    assert sorted(found) == sorted((path, expected.classes[number]) for path, number in expected.samples)
    assert found == sorted(found)


def test_what_is_not_used_is_counted(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png", "b.jpg", "cat/c.png", "__MACOSX/cat/c.png", ".cache/d.png", "cat/._c.png")
    for name in ("cat/phone.heic", "notes.md", "cat/c.txt", "dog/README"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("words")
    (tmp_path / "cat/c.xml").write_text("<annotation><object><bndbox><xmin>3</xmin></bndbox></object>")
    dataset: Any = open_reader(f"class_folders:{tmp_path}")
    assert labels(dataset) == ["cat"]
    assert dataset.class_names == ("cat", "dog")
    assert dataset.left_out == {
        "pictures beside the folders of classes, which have no class": 2,
        "files of macOS and Windows, such as ._NAME and Thumbs.db": 2,
        "hidden files and folders": 1,
        "files .heic": 1,
        "files .md": 1,
        "files .txt": 1,
        "files without a suffix": 1,
        "boxes of Pascal VOC in cat/c.xml": 1,
    }


def test_links_are_those_of_a_folder(tmp_path: Path) -> None:
    pictures(tmp_path / "private", "x.png")
    pictures(tmp_path / "data", "cat/a.png")
    (tmp_path / "data/dog").symlink_to(tmp_path / "private")
    (tmp_path / "data/cat/c.png").symlink_to(tmp_path / "private/x.png")
    (tmp_path / "data/circle").symlink_to(tmp_path / "data")
    (tmp_path / "data/kitten").symlink_to(tmp_path / "data/cat")
    dataset: Any = open_reader(f"class_folders:{tmp_path / 'data'}")
    assert [dataset.keys[index] for index in range(len(dataset))] == [
        "cat/a",
        "cat/c",
        "kitten/a",
        "kitten/c",
    ]
    assert dataset.class_names == ("cat", "dog", "kitten")
    assert [problem.cause for problem in dataset.problems] == ["file outside of the data set"]
    assert dataset.left_out == {"links that lead in a circle": 1}
    with pytest.raises(SampleError, match=r"'cat/c\.png' leads out of the data set .* outside=true"):
        dataset[1]
    assert read_usable(dataset, 1)[0] is None
    every: Any = open_reader(f"class_folders:{tmp_path / 'data'},outside=true")
    assert labels(every) == ["cat", "cat", "dog", "kitten", "kitten"]
    assert every.problems == []


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("cat house cat", r"words does not name 'dog' of .*: add what each is called"),
        ("other name", r"words does not name 'cat' and 1 more folders of "),
        ("cat crane\ndog crane, bird", r"share the names 'crane' \(cat, dog\): give each its own in .*words"),
        ("cat a\ndog b\ncat c", r"folder 'cat' is named again \(.*words, line 3\): keep one of its lines"),
        ("cat\ndog b", r"a line must be FOLDER NAME; got 'cat' \(.*words, line 1\)"),
        ("cat , a\ndog b", r"a line must be FOLDER NAME"),
        ("cat <b>\ndog b", r"folder 'cat' in .* has no name to be a class"),
    ],
)
def test_lists_that_do_not_fit_are_named(tmp_path: Path, lines: str, message: str) -> None:
    pictures(tmp_path / "val", "cat/a.png", "dog/b.png")
    (tmp_path / "words").write_text(lines)
    with pytest.raises(UserError, match=message):
        open_reader(f"class_folders:{tmp_path / 'val'},names={tmp_path / 'words'}")


def test_folders_of_one_name_are_refused(tmp_path: Path) -> None:
    pictures(tmp_path, "red mug/a.png", "red  mug/a.png", "cat/b.png", "caf\u00e9/a.png")
    with pytest.raises(
        UserError, match=r"share the names 'red mug' \(red  mug, red mug\): rename them or give names=FILE"
    ):
        open_reader(f"class_folders:{tmp_path}")


def test_wrong_folders_are_named(tmp_path: Path) -> None:
    spec = f"class_folders:{tmp_path}"
    with pytest.raises(MissingFileError, match="no such folder"):
        open_reader(f"{spec}/absent")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/a.heic").touch()
    with pytest.raises(UserError, match=r"no pictures .*; there are \.heic: 1$"):
        open_reader(spec)
    pictures(tmp_path, "a.png", "b.png")
    with pytest.raises(UserError, match=r"no picture lies in a sub-folder of .*, and 2 beside them"):
        open_reader(spec)
    pictures(tmp_path, "cat/a.png")
    with pytest.raises(MissingFileError, match="absent"):
        open_reader(f"{spec},names={tmp_path / 'absent'}")


def test_splits_are_no_classes(tmp_path: Path) -> None:
    pictures(tmp_path, "train/cat/a.png", "val/cat/b.png")
    with pytest.raises(
        UserError, match=f"holds splits instead of classes; give one of class_folders:{tmp_path}/train, "
    ):
        open_reader(f"class_folders:{tmp_path}")
    assert labels(open_reader(f"class_folders:{tmp_path / 'val'}")) == ["cat"]
    (tmp_path / "words").write_text("train a train\nval a valley")
    named = open_reader(f"class_folders:{tmp_path},names={tmp_path / 'words'}")
    assert labels(named) == ["a train", "a valley"]


def test_shards_keep_labels_and_classes(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path)
    spec = f"class_folders:{folder},names={tmp_path / 'LOC_synset_mapping.txt'}"
    before: Any = open_reader(spec)
    main(["convert", spec, str(tmp_path / "out")])
    after: Any = open_reader(f"shards:{tmp_path / 'out'}")
    assert tuple(after.class_names) == before.class_names
    assert labels(after) == labels(before)
    for one, other in zip(samples(before), samples(after), strict=True):
        np.testing.assert_array_equal(one.pixels(), other.pixels())
