"""Folders of pictures and tables that list pictures."""

from __future__ import annotations

import csv
import io
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from open_cloc.data.readers import SampleDataset, guess_spec, open_reader
from open_cloc.data.readers.table import CsvRows, JsonRows
from open_cloc.data.shards.read import ShardDataset
from open_cloc.data.shards.write import write_shards

TEXTS = ["a red mug", 'two "mugs", stacked', "zwei\nTassen", "", "猫 on a mat"]


def encoded(colour: int, picture_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (colour, 10, 20)).save(buffer, picture_format)
    return buffer.getvalue()


def pictures(folder: Path, *names: str) -> None:
    formats = {"jpg": "JPEG", "jpeg": "JPEG", "tif": "TIFF"}
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        suffix = path.suffix[1:].lower()
        path.write_bytes(encoded(number * 20, formats.get(suffix, suffix.upper())))


def samples(dataset: SampleDataset) -> list[Any]:
    return [dataset[index] for index in range(len(dataset))]


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The same rows in the form that the suffix names."""
    if path.suffix == ".parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist(rows), path, row_group_size=2)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n")
    else:
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


# --- folders --------------------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match=r"'b\.c\.jpg' and 'b_c\.jpg' would share the key 'b_c_jpg'; rename"):
        open_reader(f"folder:{tmp_path}")
    (tmp_path / "b_c.jpg").unlink()
    found = samples(open_reader(f"folder:{tmp_path}"))
    assert [sample.key for sample in found] == ["a_jpg", "a_png", "b_c", "d"]
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
    assert [sample.key for sample in found] == ["a", "\ufffd"]
    assert found[1].pixels().shape == (4, 6, 3)
    assert write_shards(found, tmp_path / "out") == 2


# --- tables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv", ".tsv"])
def test_tables_of_paths(tmp_path: Path, suffix: str) -> None:
    pictures(tmp_path / "images", *(f"{i}.png" for i in range(5)))
    rows = [
        {"File_Name": f"images/{i}.png", "Caption": text, "source": f"web {i}"}
        for i, text in enumerate(TEXTS)
    ]
    path = write_table(tmp_path / f"list{suffix}", rows)
    assert guess_spec(str(path)) == f"table:{path}"
    dataset = open_reader(f"table:{path}")
    found = samples(dataset)
    assert [sample.captions for sample in found] == [(text,) if text else () for text in TEXTS]
    assert [sample.key for sample in found] == [f"{i:09d}" for i in range(5)]
    assert found[3].metadata == {"file_name": "images/3.png", "source": "web 3"}
    assert [sample.pixels()[0, 0, 0] for sample in found] == [0, 20, 40, 60, 80]
    assert dataset[2].captions == found[2].captions  # once more, out of order
    assert samples(pickle.loads(pickle.dumps(dataset)))[4].captions == ("猫 on a mat",)
    with pytest.raises(IndexError):
        dataset[5]


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_columns_and_root_may_be_named(tmp_path: Path, suffix: str) -> None:
    pictures(tmp_path / "elsewhere", "x.png", "y.png")
    rows = [
        {"image": 1, "where": "x.png", "says": "one", "caption": "not this", "name": "n.1"},
        {"image": 2, "where": "y.png", "says": "two", "caption": "nor this", "name": "n.2"},
    ]
    path = write_table(tmp_path / f"list{suffix}", rows)
    options = f"image=where,caption=says,key=name,root={tmp_path / 'elsewhere'}"
    found = samples(open_reader(f"table:{path},{options}"))
    assert [sample.key for sample in found] == ["n_1", "n_2"]
    assert [sample.captions for sample in found] == [("one",), ("two",)]
    number = "1" if suffix == ".csv" else 1
    assert found[0].metadata == {"file_name": "x.png", "image": number}  # `caption` is the shard's own word
    assert found[1].pixels()[0, 0, 0] == 20
    with pytest.raises(
        ValueError, match=r"no column 'title' for caption; the columns are image, where, says"
    ):
        open_reader(f"table:{path},caption=title")
    with pytest.raises(FileNotFoundError, match=r"no such folder of pictures: root=.*absent"):
        open_reader(f"table:{path},image=where,root={tmp_path / 'absent'}")


def test_parquet_of_bytes_and_of_hugging_face_structs(tmp_path: Path) -> None:
    rows = [
        {"jpg": encoded(i, "JPEG"), "text": ["one", "two"], "id": i, "width": 6, "score": float("nan")}
        for i in range(5)
    ]
    found = samples(open_reader(f"table:{write_table(tmp_path / 'bytes.parquet', rows)}"))
    assert [sample.key for sample in found] == ["0", "1", "2", "3", "4"]
    assert found[0].captions == ("one", "two")
    assert found[0].image == rows[0]["jpg"]
    assert found[0].metadata == {}  # the width is the picture's own, and NaN is no JSON
    pictures(tmp_path, "b.png")
    structs = [
        {"image": {"bytes": encoded(7), "path": "a.png"}, "label": 3},
        {"image": {"bytes": None, "path": "b.png"}, "label": 4},
        {"image": {"bytes": None, "path": None}, "label": 5},
    ]
    dataset = open_reader(f"table:{write_table(tmp_path / 'structs.parquet', structs)}")
    assert dataset[0].image == encoded(7)
    assert dataset[0].metadata == {"file_name": "a.png", "label": 3}
    assert dataset[1].image == tmp_path / "b.png"
    with pytest.raises(ValueError, match=r"no picture in column 'image' \(.*structs\.parquet, row 2\)"):
        dataset[2]


def test_only_one_row_group_is_in_memory(tmp_path: Path) -> None:
    rows = [{"image": encoded(i)} for i in range(7)]
    dataset: Any = open_reader(f"table:{write_table(tmp_path / 'a.parquet', rows)}")
    order = np.random.default_rng(0).permutation(7)
    assert [dataset[int(i)].image for i in order] == [rows[i]["image"] for i in order]
    assert dataset._rows._group[1].num_rows <= 2
    assert pickle.loads(pickle.dumps(dataset))._rows._group is None


def test_urls_are_refused_with_a_way_out(tmp_path: Path) -> None:
    with_column = write_table(tmp_path / "a.csv", [{"URL": "http://x/y.jpg", "caption": "c"}])
    with pytest.raises(ValueError, match=r"pictures are URLs.*img2dataset.*a\.csv\)"):
        open_reader(f"table:{with_column}")
    rows = [{"image": "a.png"}, {"image": "HTTPS://x/y.jpg"}]
    dataset = open_reader(f"table:{write_table(tmp_path / 'b.jsonl', rows)}")
    assert dataset[0].image == tmp_path / "a.png"
    with pytest.raises(ValueError, match=r"pictures are URLs.*img2dataset.*b\.jsonl, row 1\)"):
        dataset[1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"image": ""}], r"no picture in column 'image' \(.*a\.jsonl, row 0\)"),
        ([{"image": [1, 2]}], r"a picture must be a path or bytes; got list \(.*row 0\)"),
        ([{"image": "x", "text": {"a": 1}}], r"captions must be text .* got dict \(.*row 0, column 'text'\)"),
        (
            [{"image": "x", "key": "k"}, {"image": "y", "key": "k"}],
            r"rows 0 and 1 share the key 'k' .*key= f",
        ),
        ([{"image": "x", "key": "k"}, {"image": "y"}], r"row 1 has no key in column 'key'"),
        ([{"picture": "x"}], r"no column of pictures; give it as image=COLUMN, one of picture"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    path = write_table(tmp_path / "a.jsonl", rows)
    with pytest.raises(ValueError, match=message):
        samples(open_reader(f"table:{path}"))


def test_row_numbers_serve_where_keys_repeat(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv", [{"image": "x", "id": "7"}, {"image": "y", "id": "7"}])
    found = samples(open_reader(f"table:{path},key="))
    assert [sample.key for sample in found] == ["000000000", "000000001"]
    assert found[0].metadata == {"file_name": "x", "id": "7"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            b"image,caption\nx.png,a\ny.png\n",
            r"must have 2 fields, .* got 1 \(.*a\.csv, row 1",
        ),
        ("a.csv", b"image,caption\nx.png,a\ny.png,b,c\n", r"must have 2 fields, .* got 3 \(.*a\.csv, row 1"),
        ("a.csv", b'image,caption\nx.png,"a\n', r"not a row of CSV: .*a\.csv, byte 14"),
        ("a.csv", b"image,caption\nx.png,\xff\n", r"not a row of CSV: .*a\.csv, byte 14"),
        ("a.csv", b"image,image\nx.png,a\n", r"a header must name every column once"),
        ("a.csv", b"image,caption\n", r"table has no rows"),
        ("a.csv", b"", r"table has no rows"),
        ("a.jsonl", b"\n \n", r"table has no rows"),
        ("a.jsonl", b'{"image": "x"}\n{"image"', r"not a line of JSON: .*a\.jsonl, row 1"),
        ("a.parquet", b"PAR1 not really", r"not a Parquet file: .*a\.parquet"),
        ("a.txt", b"x", r"a table must end in \.parquet, \.jsonl, \.csv, \.tsv; got"),
    ],
)
def test_wrong_tables_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    if path.suffix == ".parquet":
        pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match=message):
        samples(open_reader(f"table:{path}"))
    with pytest.raises(FileNotFoundError, match="no such table"):
        open_reader(f"table:{tmp_path / 'absent.csv'}")


def test_rows_are_found_by_their_place(tmp_path: Path) -> None:
    """As when all is read at once; with blank lines, breaks inside quotes, CRLF and a byte order mark."""
    table = tmp_path / "a.csv"
    text = '\ufeffimage,text\r\n"a","x\r\ny, ""z"""\r\n\r\nb,猫\r\n"c",""\r\nd,\ufeffw'
    table.write_bytes(text.encode())
    with table.open(newline="", encoding="utf-8-sig") as stream:
        expected = [row for row in csv.reader(stream) if row][1:]
    rows = CsvRows(table)
    assert rows.columns == ("image", "text")
    assert [list(rows[i].values()) for i in (3, 0, 2, 1)] == [expected[i] for i in (3, 0, 2, 1)]
    assert list(rows.column("text")) == [row[1] for row in expected]
    lines = tmp_path / "a.jsonl"
    lines.write_bytes('\ufeff{"a": "\\n"}\r\n\r\n{"a": "猫"}\n   \n{"b": 1}'.encode())
    found = JsonRows(lines)
    assert [dict(found[i]) for i in (2, 0, 1)] == [{"b": 1}, {"a": "\n"}, {"a": "猫"}]
    assert list(found.column("a")) == ["\n", "猫", None]


def test_parquet_without_its_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"pip install 'open-cloc\[label\]'"):
        open_reader(f"table:{tmp_path / 'a.parquet'}")
