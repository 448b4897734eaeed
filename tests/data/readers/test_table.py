"""Tables that list pictures."""

from __future__ import annotations

import csv
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from open_cloc.data.bad_samples import read_usable
from open_cloc.data.readers import guess_spec, open_reader
from open_cloc.data.readers.rows import CsvRows, JsonRows
from open_cloc.errors import SampleError, UserError
from tests.data.readers.made import encoded, pictures, samples, write_table

TEXTS = ["a red mug", 'two "mugs", stacked', "zwei\nTassen", "", "猫 on a mat"]


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
        ([{"image": [1, 2]}], r"a picture must be a path or bytes; got \[1, 2\] \(.*row 0\)"),
        (
            [{"image": "x", "text": {"a": 1}}],
            r"captions must be text .* got \{\"a\": 1\} \(.*row 0, column 'text'\)",
        ),
        (
            [{"image": "x", "key": "k"}, {"image": "y", "key": "k"}],
            r"rows 0 and 1 share the key 'k' .*key= f",
        ),
        (
            [{"image": "x", "key": "k"}, {"image": "y"}],
            r"key in column 'key' must be a whole number or text; got null \(.*row 1",
        ),
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
        ("a.csv", b'image,caption\nx.png,"a\n', r"not a row of CSV: .*a\.csv, row 0"),
        ("a.csv", b"image,caption\nx.png,\xff\n", r"not a row of CSV: .*a\.csv, row 0"),
        ("a.csv", b"image,image\nx.png,a\n", r"a header must name every column once"),
        ("a.csv", b"image,caption\n", r"table has no rows"),
        ("a.csv", b"", r"table has no rows"),
        ("a.jsonl", b"\n \n", r"table has no rows"),
        ("a.jsonl", b'{"image": "x"}\n{"image"', r"row is not valid JSON: .*a\.jsonl, row 1"),
        ("a.parquet", b"PAR1 not really", r"not a Parquet file: .*a\.parquet"),
        (
            "a.txt",
            b"x",
            r"a table must end in \.parquet, \.jsonl, \.ndjson, \.jsonlines, \.json, \.csv, \.tsv; got",
        ),
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
    assert [list(row.values()) for row in rows.scan()] == expected  # type: ignore[union-attr]
    lines = tmp_path / "a.jsonl"
    lines.write_bytes('\ufeff{"a": "\\n"}\r\n\r\n{"a": "猫"}\n   \n{"b": 1}'.encode())
    found = JsonRows(lines)
    assert [dict(found[i]) for i in (2, 0, 1)] == [{"b": 1}, {"a": "\n"}, {"a": "猫"}]
    assert list(found.scan()) == [{"a": "\n"}, {"a": "猫"}, {"b": 1}]


def test_parts_of_a_table_are_one(tmp_path: Path) -> None:
    """As Hugging Face stores a split."""
    rows = [{"image": {"bytes": encoded(20 * i), "path": f"{i}.png"}, "caption": f"{i}"} for i in range(5)]
    (tmp_path / "data").mkdir()
    for part, own in enumerate((rows[:2], rows[2:3], rows[3:])):
        write_table(tmp_path / f"data/train-0000{part}-of-00003.parquet", own)
    write_table(tmp_path / "data/test-00000-of-00001.parquet", rows[:1])
    for folder in (tmp_path, tmp_path / "data"):
        with pytest.raises(
            UserError, match=r"holds .*; give one of .*/data/test-\*\.parquet, .*train-\*\.parq"
        ):
            guess_spec(str(folder))
    spec = f"{tmp_path}/data/train-*.parquet"
    assert guess_spec(spec) == f"table:{spec}"
    dataset = open_reader(spec)
    found = samples(dataset)
    assert [(s.key, s.captions, s.pixels()[0, 0, 0]) for s in found] == [
        (f"{i:09d}", (str(i),), 20 * i) for i in range(5)
    ]
    assert [dataset[i].captions for i in (4, 0, 2)] == [("4",), ("0",), ("2",)]
    write_table(tmp_path / "data/train-x.parquet", [{"image": b"x", "text": "a"}])
    with pytest.raises(
        UserError, match=r"parts of a table must have the same columns; got .*train-x\.parquet"
    ):
        open_reader(spec)
    with pytest.raises(UserError, match=r"no such table: .*none-\*\.parquet"):
        open_reader(f"table:{tmp_path}/none-*.parquet")
    (tmp_path / "a-1.csv").write_text("image,caption\n")
    with pytest.raises(UserError, match=r"tables of several files must be Parquet; got .*a-1\.csv"):
        open_reader(f"table:{tmp_path}/a-*.csv")


def test_parquet_without_its_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"pip install 'open-cloc\[label\]'"):
        open_reader(f"table:{tmp_path / 'a.parquet'}")


@pytest.mark.parametrize(
    ("content", "captions"),
    [
        ("image;caption\na.png;ein Becher, rot\n", ["ein Becher, rot"]),
        ('sep=;\r\n"image";"caption, long"\r\n"a.png";"a, b"\r\n', None),
        ("\ufeffsep=;\r\nimage;caption;;\r\na.png;eins;;\r\n;;;\r\n", ["eins"]),
        ('"sep=|"\nimage|caption\na.png|one; two\n', ["one; two"]),
        ('"image";"caption";"a,b,c,d"\n"a.png";"one";"x"\n', ["one"]),
        ("image_name| comment_number| caption\na.png| 0| two dogs\n", ["two dogs"]),
        (",image,caption\n0,a.png,a mug\n", ["a mug"]),  # pandas' index
        ("image,caption\na.png,\n", [""]),
        ("image,caption\r\n\r\na.png,one\r\n   ,  \r\n", ["one"]),
    ],
)
def test_csv_of_spreadsheets(tmp_path: Path, content: str, captions: list[str] | None) -> None:
    pictures(tmp_path, "a.png")
    (tmp_path / "a.csv").write_bytes(content.encode())
    options = ""
    if captions is None:
        captions, options = ["a, b"], ",caption=caption, long"
    found = samples(open_reader(f"table:{tmp_path / 'a.csv'}{options}"))
    assert [" ".join(sample.captions) for sample in found] == captions
    assert found[0].pixels().shape == (4, 6, 3)


def test_a_broken_row_of_csv_costs_itself(tmp_path: Path) -> None:
    """What is wrong costs one row; the rows before and behind stay."""
    pictures(tmp_path, "a.png")
    rows = [
        b"image,caption",
        b"a.png,one",
        b"a.png,caf\xe9",
        b"a.png,two",
        b'a.png,"never closed',
        b"a.png,three",
        b'a.png,"closed"too late',
        b"a.png",
        b"a.png,four",
        b'a.png,"five\nlines"',
    ]
    (tmp_path / "a.csv").write_bytes(b"\n".join(rows))
    dataset: Any = open_reader(f"table:{tmp_path / 'a.csv'}")
    read = [read_usable(dataset, index) for index in range(len(dataset))]
    assert [sample and sample.captions[0] for sample, _ in read] == [
        "one",
        None,
        "two",
        None,
        "three",
        None,
        None,
        "four",
        "five\nlines",
    ]
    assert {problem.cause for _, problems in read for problem in problems} == {"broken row"}


def test_json_of_lists_lines_and_odd_rows(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    rows = [{"image": "a.png", "text": "one"}, 7, {"text": "two"}, {"image": "a.png", "text": "three"}]
    (tmp_path / "list.json").write_text("\ufeff" + json.dumps(rows, indent=1))
    (tmp_path / "lines.jsonl").write_bytes(
        b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(row).encode() for row in rows)
    )
    for name in ("list.json", "lines.jsonl"):
        assert guess_spec(str(tmp_path / name)) == f"table:{tmp_path / name}"
        dataset = open_reader(str(tmp_path / name))
        read = [read_usable(dataset, index) for index in range(4)]
        assert [sample and sample.captions for sample, _ in read] == [("one",), None, None, ("three",)]
        assert [problems[0].cause for _, problems in read if problems] == ["broken row", "no picture"]
        assert f"{name}, row 1" in str(read[1][1])
    (tmp_path / "not.json").write_text('{"image": ["a.png"]}')
    with pytest.raises(UserError, match="a table in JSON must be a list of objects; got dict"):
        open_reader(f"table:{tmp_path / 'not.json'}")


def test_captions_that_only_later_rows_have_are_read(tmp_path: Path) -> None:
    rows = [{"image": f"{i}.png"} for i in range(150)] + [{"image": "x.png", "caption": "late"}]
    dataset: Any = open_reader(f"table:{write_table(tmp_path / 'a.jsonl', rows)}")
    assert dataset[150].captions == ("late",)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_columns_that_are_not_used_are_named(tmp_path: Path, suffix: str) -> None:
    row = {"image": "a.png", "xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4, "class": "mug"}
    dataset: Any = open_reader(f"table:{write_table(tmp_path / f'boxes{suffix}', [row, row])}")
    assert dataset.left_out == {
        "boxes in the columns xmin, ymin, xmax, ymax; box_format=... reads them": 2,
        "rows without a column of captions; give it as caption=COLUMN": 2,
    }
    if suffix == ".csv":
        return
    row = {"image": "a.png", "text": "a", "caption": "b", "tags": ["x"], "bbox": [1, 2, 3, 4], "width": 6}
    dataset = open_reader(f"table:{write_table(tmp_path / f'more{suffix}', [row])},caption=text")
    assert dataset.left_out == {"boxes in the columns bbox": 1, "column 'caption'": 1, "column 'tags'": 1}
    assert dataset[0].captions == ("a",)
    row = {"image": "a.png", "says": "a", "objects": None}
    dataset = open_reader(f"table:{write_table(tmp_path / f'none{suffix}', [row])},caption=")
    assert dataset[0].captions == ()


def test_paths_may_not_lead_out_of_the_data_set(tmp_path: Path) -> None:
    pictures(tmp_path, "set/a.png", "private.png", "root/b.png")
    (tmp_path / "set/link.png").symlink_to(tmp_path / "private.png")
    names = ["a.png", ".\\a.png", "../private.png", str(tmp_path / "private.png"), "link.png"]
    path = write_table(tmp_path / "set/a.jsonl", [{"image": name, "text": "x"} for name in names])
    dataset: Any = open_reader(f"table:{path}")
    read = [read_usable(dataset, index) for index in range(5)]
    assert [sample is not None for sample, _ in read] == [True, True, False, False, False]
    assert "leads out of the data set" in read[2][1][0].message
    assert "a.jsonl, row 2" in read[2][1][0].message
    assert [sample.pixels().shape for sample in samples(open_reader(f"table:{path},outside=true"))] == [
        (4, 6, 3)
    ] * 5
    given = write_table(tmp_path / "set/b.jsonl", [{"image": "b.png"}])
    assert open_reader(f"table:{given},root={tmp_path / 'root'}")[0].pixels().shape == (4, 6, 3)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_keys_are_ids_and_one_key_maker_makes_them(tmp_path: Path, suffix: str) -> None:
    ids = ["a/b.jpg", "a/b.png", "x.y", "x_y", "../up", None]
    rows = [{"image": "a.png", "key": value} for value in ids]
    dataset: Any = open_reader(f"table:{write_table(tmp_path / f'a{suffix}', rows)}")
    assert [dataset[i].key for i in range(5)] == ["a/b_jpg", "a/b_png", "x_y", "x_y-2", "up"]
    with pytest.raises(SampleError, match=r"must be a whole number or text; got null .*row 5"):
        dataset[5]
    rows = [{"image": "a.png", "key": 7}, {"image": "a.png", "key": 20240116120544123456}]
    dataset = open_reader(f"table:{write_table(tmp_path / 'numbers.jsonl', rows)}")
    assert [dataset[i].key for i in range(2)] == ["7", "20240116120544123456"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("data:image/png;base64,iVBORw0KGgo=", "got a text of base64"),
        ("A" * 5000, "got a text of base64"),
        ("s3://bucket/a.png", "pictures are URLs"),
        (True, "must be a path or bytes; got true"),
        ({"bytes": "AAAA", "path": None}, "no picture"),
        ("  ", "must not be blank"),
        ([], r"must be a path or bytes; got \[\]"),
    ],
)
def test_a_picture_that_is_none_costs_its_row(tmp_path: Path, value: Any, message: str) -> None:
    pictures(tmp_path, "a.png")
    path = write_table(tmp_path / "a.jsonl", [{"image": value}, {"image": ["a.png"]}])
    dataset = open_reader(f"table:{path}")
    with pytest.raises(SampleError, match=message) as caught:
        dataset[0]
    assert len(str(caught.value)) < 300
    assert dataset[1].pixels().shape == (4, 6, 3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv.gz", b"\x1f\x8b", r"compressed by gzip: unpack it first \(.*a\.csv\.gz\)"),
        ("a.csv", b"\x1f\x8b", "compressed by gzip"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd", "compressed by zstd"),
        ("a.xlsx", b"PK\x03\x04", "Excel workbook: unpack it, or save it as CSV in UTF-8"),
        ("a.csv", "image".encode("utf-16"), "text in UTF-16: save it as UTF-8"),
        ("a.feather", b"ARROW1", "an Arrow file: write it as Parquet"),
        ("a.ods", b"anything", "must end in .parquet"),
    ],
)
def test_tables_in_disguise_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_reader(str(tmp_path / name))


def test_a_damaged_row_group_costs_its_rows(tmp_path: Path) -> None:
    rows = [{"image": encoded(i), "text": f"number {i}", "key": f"k{i}"} for i in range(6)]
    path = write_table(tmp_path / "a.parquet", rows)
    column = pytest.importorskip("pyarrow.parquet").ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset : column.data_page_offset + 8] = b"\xff" * 8
    path.write_bytes(content)
    dataset = open_reader(f"table:{path}")
    read = [read_usable(dataset, index) for index in range(6)]
    assert [sample is not None for sample, _ in read] == [True, True, False, False, True, True]
    assert read[2][1][0].cause == "broken row"


def objects_of(form: str, categories: list[Any]) -> Any:
    """Two boxes as people store them."""
    boxes = [[1.0, 0.5, 3.0, 2.0], [0, 0, 6, 4]]
    if form == "lists":
        return {"id": [1, 2], "area": [6, 24], "bbox": boxes, "category": categories}
    return [{"bbox": box, "label": category} for box, category in zip(boxes, categories)]


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize("form", ["lists", "objects"])
def test_boxes_of_the_hubs_tables(tmp_path: Path, suffix: str, form: str) -> None:
    rows = [
        {"image": f"{i}.png", "objects": objects_of(form, ["red mug", "mat"]), "width": 6, "height": 4}
        for i in range(2)
    ]
    pictures(tmp_path, "0.png", "1.png")
    path = write_table(tmp_path / f"t{suffix}", rows)
    bare: Any = open_reader(f"table:{path}")
    assert "boxes in the columns objects; box_format=... reads them" in bare.left_out
    found = samples(open_reader(f"table:{path},box_format=xywh"))
    assert [region.text for region in found[1].regions] == ["red mug", "mat"]
    assert found[0].regions[0].box == pytest.approx((1 / 6, 0.125, 4 / 6, 0.625))
    corners = samples(open_reader(f"table:{path},box_format=xyxy"))
    assert corners[0].regions[0].box == pytest.approx((1 / 6, 0.125, 0.5, 0.5))


def test_numbers_of_categories_have_names_in_parquet(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pictures(tmp_path, "0.png")
    table = arrow.Table.from_pylist([{"image": "0.png", "objects": objects_of("lists", [1, 0])}])
    label = {"names": ["mat", "mug"], "_type": "ClassLabel"}
    features = {
        "image": {"_type": "Image"},
        "objects": {"feature": {"bbox": {"_type": "Sequence"}, "category": label}, "_type": "Sequence"},
    }
    named = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(named, tmp_path / "t.parquet")
    dataset: Any = open_reader(f"table:{tmp_path / 't.parquet'},box_format=xywh")
    assert [region.text for region in dataset[0].regions] == ["mug", "mat"]
    assert dataset.class_names == ("mat", "mug")
    parquet.write_table(table, tmp_path / "bare.parquet")
    with pytest.raises(SampleError, match="category 1 is a number: give names=FILE"):
        open_reader(f"table:{tmp_path / 'bare.parquet'},box_format=xywh")[0]
    (tmp_path / "names.txt").write_text("rug\ncup\n")
    spec = f"table:{tmp_path / 't.parquet'},box_format=xywh,names={tmp_path / 'names.txt'}"
    assert [region.text for region in open_reader(spec)[0].regions] == ["cup", "rug"]


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ({"bbox": [[0, 0, 1, 1]], "category": []}, "there are 1 boxes and 0 names"),
        ({"bbox": [[0, 0, 1]], "category": ["x"]}, "object 0: bbox"),
        ({"bbox": [[0, 0, 1, 1]], "kind": ["x"]}, "holds none of category"),
        ({"bbox": 3, "category": ["x"]}, "bbox must be a list"),
        ([3], "must be a list of objects"),
        ("boxes", "must be an object or a list of objects"),
        ([{"bbox": [0, 0, 1, 1], "category": None}], "object 0: category"),
        ([{"bbox": [0, 0, 1, 1], "category": 5}], "none of the 1 names"),
    ],
)
def test_broken_objects_cost_their_box(tmp_path: Path, objects: Any, message: str) -> None:
    pictures(tmp_path, "0.png")
    (tmp_path / "names.txt").write_text("mug\n")
    path = write_table(tmp_path / "t.jsonl", [{"image": "0.png", "objects": objects}])
    dataset = open_reader(f"table:{path},box_format=xywh,names={tmp_path / 'names.txt'}")
    with pytest.raises(SampleError, match=message):
        dataset[0]


def test_boxes_need_their_format(tmp_path: Path) -> None:
    pictures(tmp_path, "0.png")
    path = write_table(tmp_path / "t.jsonl", [{"image": "0.png", "things": objects_of("lists", ["a", "b"])}])
    with pytest.raises(UserError, match=r"objects=things needs box_format=xyxy\|xywh\|cxcywh"):
        open_reader(f"table:{path},objects=things")
    with pytest.raises(UserError, match="box_format must be one of xyxy, xywh, cxcywh; got 'coco'"):
        open_reader(f"table:{path},objects=things,box_format=coco")
    with pytest.raises(UserError, match="no column of boxes; give it as objects=COLUMN"):
        open_reader(f"table:{path},box_format=xywh")
    assert len(open_reader(f"table:{path},objects=things,box_format=xywh")[0].regions) == 2


def test_names_are_those_of_the_field_that_is_read(tmp_path: Path) -> None:
    """Not of another list of names that stands before it, such as colours or poses."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pictures(tmp_path, "0.png")
    colour, kind = ({"names": names, "_type": "ClassLabel"} for names in (["red", "green"], ["car", "bus"]))
    boxes = {"bbox": [[0, 0, 1, 1], [1, 1, 2, 2]], "color": [1, 0], "category": [0, 1]}
    apart = {"image": "0.png", "boxes": boxes["bbox"], "color": 1, "labels": [0, 1]}
    fields = {"color": colour, "bbox": {"_type": "Sequence"}, "category": kind}
    as_list = {name: {"feature": feature, "_type": "List"} for name, feature in fields.items()}
    for row, features in (
        ({"image": "0.png", "objects": boxes}, {"objects": {"feature": fields, "_type": "Sequence"}}),
        ({"image": "0.png", "objects": boxes}, {"objects": as_list}),
        ({"image": "0.png", "objects": boxes}, {"objects": [fields]}),
        (
            apart,
            {"color": colour, "boxes": {"_type": "Sequence"}, "labels": {"feature": kind, "_type": "List"}},
        ),
    ):
        said = {"huggingface": json.dumps({"info": {"features": features}})}
        parquet.write_table(
            arrow.Table.from_pylist([row]).replace_schema_metadata(said), tmp_path / "t.parquet"
        )
        dataset: Any = open_reader(f"table:{tmp_path / 't.parquet'},box_format=xywh")
        assert [region.text for region in dataset[0].regions] == ["car", "bus"]
        assert dataset.class_names == ("car", "bus")


def test_boxes_may_have_their_names_beside_them(tmp_path: Path) -> None:
    pictures(tmp_path, "0.png", "1.png", "2.png", "3.png")
    rows = [
        {
            "image": "0.png",
            "caption": "a picture",
            "boxes": [[0, 0, 3, 2], [3, 2, 6, 4]],
            "labels": ["mug", "mat"],
        },
        {"image": "1.png", "caption": "another", "boxes": [0, 0, 6, 4], "labels": "mat"},
        {"image": "2.png", "caption": "a third", "boxes": [], "labels": None},
        {"image": "3.png", "caption": "a fourth", "boxes": [[0, 0, 3, 2]], "labels": []},
    ]
    path = write_table(tmp_path / "t.jsonl", rows)
    bare: Any = open_reader(f"table:{path}")
    assert "boxes in the columns boxes; box_format=... reads them" in bare.left_out
    dataset: Any = open_reader(f"table:{path},box_format=xyxy")
    assert dataset.left_out == {}
    texts = [[region.text for region in dataset[index].regions] for index in range(3)]
    assert texts == [["mug", "mat"], ["mat"], []]
    assert dataset[0].captions == ("a picture",)
    assert dataset[0].regions[1].box == (0.5, 0.5, 1.0, 1.0)
    with pytest.raises(SampleError, match="there are 1 boxes and 0 names"):
        dataset[3]


def test_marks_of_boxes_that_are_not_used_are_named(tmp_path: Path) -> None:
    pictures(tmp_path, "0.png")
    boxes = objects_of("lists", ["a", "b"]) | {"iscrowd": [0, 1], "difficult": [0, 0]}
    lists: Any = open_reader(
        f"table:{write_table(tmp_path / 't.jsonl', [{'image': '0.png', 'objects': boxes}])},box_format=xywh"
    )
    assert lists.left_out == {"boxes' key 'iscrowd'": 1}
    each = [box | {"difficult": 1} for box in objects_of("objects", ["a", "b"])]
    objects: Any = open_reader(
        f"table:{write_table(tmp_path / 'u.jsonl', [{'image': '0.png', 'objects': each}])},box_format=xywh"
    )
    assert objects.left_out == {"boxes' key 'difficult'": 1}


def test_a_table_may_have_a_row_for_each_box(tmp_path: Path) -> None:
    """As TensorFlow's tools and others write CSV: the rows of a picture are one sample."""
    pictures(tmp_path, "0.png", "1.png")
    path = tmp_path / "boxes.csv"
    path.write_text(
        "filename,width,height,class,xmin,ymin,xmax,ymax,pose\n"
        "0.png,6,4,mug,0,0,3,2,\n1.png,6,4,mat,0,0,6,4,left\n0.png,6,4,red mug,3,2,6,4,\n"
        "0.png,6,4,mat,x,2,6,4,\n0.png,6,5,mat,1,2,6,4,\n1.png,6,4,,1,2,6,4,\n"
    )
    bare: Any = open_reader(f"table:{path}")
    assert "boxes in the columns xmin, ymin, xmax, ymax; box_format=... reads them" in bare.left_out
    dataset: Any = open_reader(f"table:{path},box_format=xyxy")
    found = samples(dataset)
    assert [[region.text for region in sample.regions] for sample in found] == [["mug", "red mug"], ["mat"]]
    assert found[0].regions[1].box == (0.5, 0.5, 1.0, 1.0)
    assert [sample.key for sample in found] == ["0", "1"]
    assert dataset.left_out == {"column 'pose'": 6}
    assert [problem.message.partition(":")[0] for problem in dataset.problems] == ["row 3", "row 4", "row 5"]
    with pytest.raises(
        UserError, match="columns xmin, ymin, xmax, ymax hold boxes of xyxy; got box_format=xywh"
    ):
        open_reader(f"table:{path},box_format=xywh")
    for option in ("caption=class", "key=class"):
        with pytest.raises(UserError, match="caption= and key= are of tables with a row a picture"):
            open_reader(f"table:{path},box_format=xyxy,{option}")
    with pytest.raises(UserError, match="no column of pictures; give it as image=COLUMN"):
        open_reader(f"table:{path},box_format=xyxy,image=y")
    path.write_text("img,x,y,w,h,label\n0.png,0,0,0.5,0.5,1\n0.png,0.5,0.5,0.5,0.5,0\n")
    (tmp_path / "names.txt").write_text("mat\nmug\n")
    path.write_text(path.read_text() + "1.png,,,,,\n0.png,0.5,,,,\n")
    shares: Any = open_reader(f"table:{path},box_format=xywh,normalized=true,names={tmp_path / 'names.txt'}")
    assert [(region.text, region.box) for region in shares[0].regions] == [
        ("mug", (0.0, 0.0, 0.5, 0.5)),
        ("mat", (0.5, 0.5, 1.0, 1.0)),
    ]
    assert shares.class_names == ("mat", "mug")
    assert shares[1].regions == ()
    assert [problem.message.partition(":")[0] for problem in shares.problems] == ["row 3"]
