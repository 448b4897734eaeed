"""Folders of pictures."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from open_cloc.data.readers import guess_spec, open_reader
from open_cloc.data.shards.read import ShardDataset
from open_cloc.data.shards.write import write_shards
from tests.data.readers.made import encoded, pictures, samples, write_table


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
    dataset = open_reader(f"folder:{tmp_path / 'data'}")
    found = samples(dataset)
    assert [sample.key for sample in found] == ["gone", "link/x", "sub/y"]
    with pytest.raises(FileNotFoundError, match="image of sample 'gone' not found"):
        found[0].pixels()


def test_metadata_of_image_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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
    with caplog.at_level(logging.WARNING):
        found = samples(open_reader(f"folder:{tmp_path}"))
    assert "1 of 3 rows name pictures that are not there, such as 'absent.png'" in caplog.text
    assert {sample.key: sample.captions for sample in found} == {
        "a": ("not this one",),  # its `caption` is null, and one column is the caption
        "b": ("from the text file",),
        "data/c": ("inner", "second"),
        "data/d": (),
    }
    assert found[0].metadata == {"file_name": "a.png", "text": "a mug", "licence": "cc0", "n": 3}
    assert found[2].metadata == {"file_name": "data/c.png"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "a.png", "text": 7}', r"captions must be text .* got int \(.*metadata\.jsonl, row 1"),
        ('{"text": "x"}', r"a row must name a picture as file_name \(.*metadata\.jsonl, row 1\)"),
        ('{"file_name": "b.png"}', r"rows 0 and 1 both describe 'b\.png'"),
        ('{"file_name": ', r"not a line of JSON: .*metadata\.jsonl, row 1\)"),
        ('["a.png"]', r"a row must be a JSON object; got list \(.*metadata\.jsonl, row 1\)"),
    ],
)
def test_wrong_metadata_are_named(tmp_path: Path, line: str, message: str) -> None:
    pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.png"}\n' + line)
    with pytest.raises(ValueError, match=message):
        samples(open_reader(f"folder:{tmp_path}"))


def test_wrong_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        open_reader(f"folder:{tmp_path / 'absent'}")
    with pytest.raises(ValueError, match=r"no pictures \(\.jpg, .*\) in folder"):
        open_reader(f"folder:{tmp_path}")
    pictures(tmp_path, "a.png")
    write_table(tmp_path / "metadata.jsonl", [{"file_name": "images/a.png"}])
    with pytest.raises(ValueError, match=r"no row names a picture that is there; .* 'images/a\.png'"):
        open_reader(f"folder:{tmp_path}")
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"caption is not UTF-8: .*a\.txt"):
        samples(open_reader(f"folder:{tmp_path}"))


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
