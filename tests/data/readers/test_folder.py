"""Folders of pictures."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from open_cloc.data.bad_samples import read_usable
from open_cloc.data.readers import guess_spec, open_reader
from open_cloc.data.shards.read import ShardDataset
from open_cloc.data.shards.write import write_shards
from open_cloc.errors import SampleError
from tests.data.readers.made import coco_document, encoded, pictures, samples, write_table


def test_a_folder_is_read_sorted_with_its_texts(tmp_path: Path) -> None:
    pictures(tmp_path, "b.JPG", "a.png", "sub/deep/c.v2.webp", "d.bmp", "e.tif", "f.gif", "g.jpeg")
    pictures(tmp_path, ".hidden.png", ".cache/x.png")
    (tmp_path / "notes.md").write_text("no picture")
    (tmp_path / "a.txt").write_text("\ufeffa red mug \n")
    (tmp_path / "d.txt").write_text(" \n")
    (tmp_path / "sub/deep/c.v2.txt").write_text("猫", encoding="utf-8")
    dataset = open_reader(f"folder:{tmp_path}")
    found = samples(dataset)
    assert [sample.key for sample in found] == ["a", "b", "d", "e", "f", "g", "sub/deep/c_v2"]
    assert [sample.captions for sample in found] == [("a red mug",), (), (), (), (), (), ("猫",)]
    assert found[1].metadata == {"file_name": "b.JPG"}
    assert [sample.pixels().shape for sample in found] == [(4, 6, 3)] * 7
    with pytest.raises(IndexError):
        dataset[7]
    assert guess_spec(str(tmp_path)) == f"folder:{tmp_path}"
    assert write_shards(found, tmp_path / "out", samples_per_shard=3) == 7
    again = ShardDataset(str(tmp_path / "out"))
    assert [sample.key for sample in samples(again)] == [sample.key for sample in found]
    assert [sample.captions for sample in samples(again)] == [sample.captions for sample in found]


def test_files_that_differ_by_suffix_alone_get_keys_of_their_own(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg", "a.png", "b.c.jpg", "b_c.jpg", "d.jpg")
    (tmp_path / "a.txt").write_text("both")
    found = samples(open_reader(f"folder:{tmp_path}"))
    assert [sample.key for sample in found] == ["a_jpg", "a_png", "b_c_jpg", "b_c_jpg-2", "d"]
    assert [sample.captions for sample in found[:2]] == [("both",)] * 2


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    pictures(tmp_path / "elsewhere", "x.png")
    pictures(tmp_path / "data", "sub/y.png")
    (tmp_path / "data/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/sub/circle").symlink_to(tmp_path / "data")
    (tmp_path / "data/gone.png").symlink_to(tmp_path / "absent.png")
    (tmp_path / "data/other").symlink_to(tmp_path / "data/sub")
    dataset: Any = open_reader(f"folder:{tmp_path / 'data'},outside=true")
    assert [dataset.keys[i] for i in range(len(dataset))] == ["gone", "link/x", "other/y", "sub/y"]
    assert dataset[1].pixels().shape == (4, 6, 3)
    with pytest.raises(FileNotFoundError, match="image of sample 'gone' not found"):
        dataset[0].pixels()


def test_links_that_lead_out_need_an_option(tmp_path: Path) -> None:
    pictures(tmp_path / "private", "x.png")
    (tmp_path / "private/key").write_text("a secret")
    pictures(tmp_path / "data", "a.png", "b.png")
    (tmp_path / "data/folder").symlink_to(tmp_path / "private")
    (tmp_path / "data/a.txt").symlink_to(tmp_path / "private/key")
    (tmp_path / "data/c.png").symlink_to(tmp_path / "private/x.png")
    dataset: Any = open_reader(f"folder:{tmp_path / 'data'}")
    assert [dataset.keys[i] for i in range(len(dataset))] == ["a", "b", "c"]
    assert [problem.message for problem in dataset.problems] == [
        f"link 'folder' leads out of the data set in {tmp_path / 'data'}; give outside=true to allow it"
    ]
    sample, problems = read_usable(dataset, 0)
    assert sample is not None
    assert sample.captions == ()
    assert [problem.cause for problem in problems] == ["file outside of the data set"]
    with pytest.raises(SampleError, match=r"'c\.png' leads out of the data set .* outside=true"):
        dataset[2]
    found = samples(open_reader(f"folder:{tmp_path / 'data'},outside=true"))
    assert [sample.captions for sample in found] == [("a secret",), (), (), ()]


def test_captions_stand_in_files_of_several_suffixes(tmp_path: Path) -> None:
    pictures(tmp_path, *(f"{i}.png" for i in range(5)))
    (tmp_path / "0.txt").write_text("zero")
    (tmp_path / "1.TXT").write_bytes(b"\xef\xbb\xbfone\r\n")
    (tmp_path / "2.caption").write_text("two")
    fields = {"caption": "three", "key": "x", "status": "success", "similarity": 0.5}
    region = {"box": [0.1, 0.1, 0.6, 0.6], "text": "red mug"}
    (tmp_path / "3.json").write_text(json.dumps(fields | {"regions": [region], "box_format": "xyxy_norm"}))
    (tmp_path / "3.txt").write_text("three, again")
    (tmp_path / "4.json").write_text("\ufeff" + json.dumps({"captions": ["four", "and more"]}))
    (tmp_path / "4.caption").write_text("four")
    dataset: Any = open_reader(str(tmp_path))
    found = samples(dataset)
    assert [sample.captions for sample in found] == [
        ("zero",),
        ("one",),
        ("two",),
        ("three", "three, again"),
        ("four", "and more"),
    ]
    assert [(region.text, region.box) for region in found[3].regions] == [("red mug", (0.1, 0.1, 0.6, 0.6))]
    assert found[3].key == "3"
    assert found[3].metadata == {"similarity": 0.5, "file_name": "3.png"}
    assert (dataset.left_out, dataset.problems) == ({}, [])


@pytest.mark.parametrize(
    ("name", "content", "cause", "message"),
    [
        (
            "a.txt",
            "0 0.5 0.5 0.2 0.1\n1 .5 0.5 1 1e-1",
            "boxes that are not read",
            "YOLO's boxes, no caption",
        ),
        ("a.txt", b"caf\xe9", "unreadable caption", "text is not UTF-8"),
        ("a.json", '{"shapes": [], "imagePath": "a"}', "boxes that are not read", "boxes of labelme"),
        ("a.json", '{"mood": "good"}', "JSON of another form", r"is not a sample's: got \['mood'\]"),
        ("a.json", "[1, 2]", "JSON of another form", "is not a sample's: got list"),
        ("a.json", "{", "broken JSON", r"a\.json is not valid JSON"),
        ("a.json", '{"caption": 7}', "JSON of another form", r"at \$\.caption"),
        ("a.json", '{"caption": "a", "caption": "b"}', "broken JSON", "key 'caption' comes twice"),
        ("a.json", '{"captions": ' + "[" * 5000, "broken JSON", "not valid JSON"),
    ],
)
def test_a_wrong_file_beside_a_picture_costs_itself(
    tmp_path: Path, name: str, content: Any, cause: str, message: str
) -> None:
    pictures(tmp_path, "a.png")
    (tmp_path / "a.caption").write_text("a mug")
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    dataset = open_reader(f"folder:{tmp_path}")
    with pytest.raises(SampleError, match=message) as caught:
        dataset[0]
    assert name in str(caught.value)
    sample, problems = read_usable(dataset, 0)
    assert sample is not None
    assert sample.captions == ("a mug",)
    assert [problem.cause for problem in problems] == [cause]


def test_what_is_not_used_is_counted(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png", "train/b.png", "._a.png", "__MACOSX/a.png", ".git/x.png")
    for name in ("phone.heic", "phone2.HEIC", "notes.md", "Thumbs.db", "README", "a.jpg.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "train/_annotations.coco.json").write_text(json.dumps(coco_document()))
    (tmp_path / "via.json").write_text('{"x": {"regions": [{"shape_attributes": {"x": 3}}]}}')
    (tmp_path / "train/b.xml").write_text("<annotation><object><bndbox><xmin>3</xmin></bndbox></object>")
    (tmp_path / "train/other.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    os.mkfifo(tmp_path / "c.png")
    dataset: Any = open_reader(f"folder:{tmp_path}")
    assert [dataset.keys[i] for i in range(len(dataset))] == ["a", "train/b"]
    assert dataset.left_out == {
        "files of macOS and Windows, such as ._NAME and Thumbs.db": 3,
        "hidden files and folders": 1,
        "pipes, sockets and devices": 1,
        "files .heic": 2,
        "files .md": 1,
        "files without a suffix": 1,
        "files .json": 1,
        "boxes of COCO in train/_annotations.coco.json": 1,
        "boxes of VIA in via.json": 1,
        "boxes of Pascal VOC in train/b.xml": 1,
        "boxes of YOLO in train/other.txt": 1,
    }


def test_many_files_with_boxes_are_one_line(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    for number in range(30):
        (tmp_path / f"{number:02d}.xml").write_text("<bndbox>")
    dataset: Any = open_reader(f"folder:{tmp_path}")
    assert dataset.left_out == {"files .xml with boxes of Pascal VOC, such as 00.xml": 30}


def test_metadata_of_image_folders(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png", "b.png", "data/c.png", "data/d.png")
    (tmp_path / "b.txt").write_text("from the text file")
    (tmp_path / "a.txt").write_text("not this one")
    outer = [
        {"file_name": "a.png", "text": "a mug", "licence": "cc0", "n": 3, "tags": ["x"], "caption": None},
        {"file_name": "data/c.png", "caption": "outer"},
        {"file_name": "absent.png", "caption": "x"},
    ]
    inner = [
        {"file_name": "./c.png", "captions": ["inner", " ", "second"]},
        {"file_name": "d.png", "text": ""},
    ]
    write_table(tmp_path / "metadata.jsonl", outer)
    write_table(tmp_path / "data/metadata.jsonl", inner)
    dataset: Any = open_reader(f"folder:{tmp_path}")
    found = samples(dataset)
    ((cause, message),) = dataset.problems
    assert cause == "row without a picture"
    assert "row 2 names 'absent.png', which is not there" in message
    assert dataset.left_out == {"key 'tags' of metadata.jsonl": 1}
    assert {sample.key: sample.captions for sample in found} == {
        "a": ("not this one",),  # its `caption` is null, and one column is the caption
        "b": ("from the text file",),
        "data/c": ("inner", "second"),
        "data/d": (),
    }
    assert found[0].metadata == {"file_name": "a.png", "text": "a mug", "licence": "cc0", "n": 3}
    assert found[2].metadata == {"file_name": "data/c.png"}


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_metadata_of_other_forms_and_systems(tmp_path: Path, suffix: str) -> None:
    pictures(tmp_path, "sub/a.png", "b.png")
    rows = [{"file_name": "sub\\a.png", "text": "a mug"}, {"file_name": "./b.png", "text": "a cat"}]
    write_table(tmp_path / f"metadata{suffix}", rows)
    found = samples(open_reader(f"folder:{tmp_path}"))
    assert {sample.key: sample.captions for sample in found} == {"b": ("a cat",), "sub/a": ("a mug",)}


def test_a_broken_metadata_file_costs_itself(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("a mug")
    (tmp_path / "metadata.jsonl").write_bytes(b"\x1f\x8b and more")
    dataset: Any = open_reader(f"folder:{tmp_path}")
    assert dataset[0].captions == ("a mug",)
    assert "table is compressed by gzip: unpack it first" in dataset.problems[0].message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "x"}', r"a row must name a picture: 'file_name' is missing; .*metadata\.jsonl, row 1\)"),
        ('{"file_name": null}', r"file_name must be text; got null .*row 1"),
        ('{"file_name": "b.png"}', r"rows 0 and 1 both describe 'b\.png'"),
        ('{"file_name": ', r"row is not valid JSON: .*metadata\.jsonl, row 1\)"),
        ('["a.png"]', r"a row must be a JSON object; got list \(.*metadata\.jsonl, row 1\)"),
        ('{"file_name": "a.png", "file_name": "b.png"}', r"key 'file_name' comes twice"),
    ],
)
def test_a_wrong_row_of_metadata_costs_itself(tmp_path: Path, line: str, message: str) -> None:
    pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "a cat"}\n' + line)
    dataset: Any = open_reader(f"folder:{tmp_path}")
    assert [sample.captions for sample in samples(dataset)] == [(), ("a cat",)]
    (problem,) = dataset.problems
    assert re.search(message, problem.message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("7", r"captions must be text .* got 7 \(.*metadata\.jsonl, row 0, column 'text'\)"),
        ('{"en": "x"}', r'captions must be text .* got \{"en": "x"\}'),
        ('["a", null, 3]', r"captions must be text .* got 3"),
        ('"nan"', r"caption 'nan' stands for a missing text"),
    ],
)
def test_a_caption_that_is_no_text_costs_itself(tmp_path: Path, text: str, message: str) -> None:
    pictures(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "licence": "cc0", "text": ' + text + "}")
    dataset = open_reader(f"folder:{tmp_path}")
    with pytest.raises(SampleError, match=message):
        dataset[0]
    sample, problems = read_usable(dataset, 0)
    assert sample is not None
    assert sample.metadata == {"licence": "cc0", "file_name": "a.png"}
    assert [problem.cause for problem in problems] == ["broken caption"]


def test_a_missing_number_of_pandas_is_no_caption(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": NaN}')
    assert open_reader(f"folder:{tmp_path}")[0].captions == ()


def test_wrong_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        open_reader(f"folder:{tmp_path / 'absent'}")
    with pytest.raises(ValueError, match=r"no pictures \(\.jpg, .*\) in folder"):
        open_reader(f"folder:{tmp_path}")
    (tmp_path / "phone.HEIC").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"no pictures .*; there are \.heic: 1$"):
        open_reader(str(tmp_path))
    pictures(tmp_path, "a.png")
    write_table(tmp_path / "metadata.jsonl", [{"file_name": "images/a.png"}])
    dataset: Any = open_reader(f"folder:{tmp_path}")
    assert "no row names a picture that is there" in dataset.problems[0].message


def test_a_name_that_is_no_text_still_makes_a_sample(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    name = b"\xff.png"
    try:
        Path(bytes(tmp_path).decode()).joinpath(name.decode(errors="surrogateescape")).write_bytes(encoded(1))
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    found = samples(open_reader(f"folder:{tmp_path}"))
    assert [sample.key for sample in found] == ["a", "_"]
    assert found[1].pixels().shape == (4, 6, 3)
    assert write_shards(found, tmp_path / "out") == 2


def test_a_link_to_itself_is_a_missing_picture(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    dataset = open_reader(f"folder:{tmp_path}")
    assert len(dataset) == 2
    with pytest.raises((FileNotFoundError, SampleError), match="loop"):
        dataset[1].pixels()


def test_boxes_in_metadata_are_told_with_their_reader(tmp_path: Path) -> None:
    row = {"file_name": "a.png", "text": "a mug", "objects": {"bbox": [[0, 0, 3, 2]], "category": ["mug"]}}
    write_table(tmp_path / "metadata.jsonl", [row])
    pictures(tmp_path, "a.png")
    dataset: Any = open_reader(f"folder:{tmp_path}")
    (told,) = (what for what in dataset.left_out if "objects" in what)
    assert told == "key 'objects' of metadata.jsonl; table:metadata.jsonl,box_format=... reads them"
    boxes = open_reader(f"table:{tmp_path / 'metadata.jsonl'},box_format=xywh")[0]
    assert [region.text for region in boxes.regions] == ["mug"]
