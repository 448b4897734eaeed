"""Data sets of the field in their genuine form: where a known box lands, and what odd entries cost."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from open_cloc.data.readers import guess_spec, open_reader
from open_cloc.errors import MissingFileError, SampleError, UserError
from tests.data.readers.made import (
    fg_ovd_document,
    fg_ovd_lines,
    finehard_rows,
    picture_of,
    samples,
    write_fg_ovd,
    write_finehard,
    write_flickr30k,
    write_genome,
    write_objects365,
    write_open_images,
    write_panoptic,
)

BOX = (0.1, 0.1, 0.3, 0.3)  # 10, 5 to 30, 15 of 100 x 50


@pytest.mark.parametrize("kind", ["regions", "objects"])
@pytest.mark.parametrize("sizes", [True, False])
def test_visual_genome(tmp_path: Path, kind: str, sizes: bool) -> None:
    path = write_genome(tmp_path, kind)
    if not sizes:
        (tmp_path / "image_data.json").unlink()
    dataset: Any = open_reader(f"visual_genome:{path}")
    first, second = samples(dataset)
    assert first.image == tmp_path / "VG_100K" / "1.jpg"
    assert second.image == tmp_path / "VG_100K_2" / "2.jpg"
    assert first.regions[0].box == pytest.approx(BOX)
    texts = {"regions": ("the clock is green in colour", "a red mug"), "objects": ("clock", "mug")}[kind]
    assert (first.regions[0].text, second.regions[0].text) == texts
    assert first.metadata["image_id"] == 1
    assert dataset.left_out == ({} if kind == "regions" else {"further names of objects": 1})
    assert guess_spec(str(tmp_path)) == f"visual_genome:{tmp_path}"


def test_visual_genome_of_both_files_asks_for_one(tmp_path: Path) -> None:
    write_genome(tmp_path)
    write_genome(tmp_path, "objects")
    with pytest.raises(
        UserError,
        match=r"one of region_descriptions\.json and objects\.json; it holds region_des",
    ):
        open_reader(f"visual_genome:{tmp_path}")


def test_sizes_that_are_none_are_counted_and_the_pictures_taken(tmp_path: Path) -> None:
    path = write_genome(tmp_path)
    odd = [{"image_id": 1, "width": "100", "height": 50}, None, {"image_id": 2, "width": 100, "height": 50}]
    (tmp_path / "image_data.json").write_text(json.dumps(odd))
    dataset: Any = open_reader(f"visual_genome:{path}")
    assert dataset.left_out == {"sizes in image_data.json that are none": 2}
    assert dataset[0].regions[0].box == pytest.approx(BOX)


@pytest.mark.parametrize("sizes", [True, False])
def test_boxes_that_leave_their_picture_are_clipped(tmp_path: Path, sizes: bool) -> None:
    path = write_genome(tmp_path)
    if not sizes:
        (tmp_path / "image_data.json").unlink()
    document = json.loads(path.read_text())
    own = document[1]["regions"]
    own[0] |= {"x": 95}
    own += [own[0] | {"x": -10, "y": 45, "region_id": 11}, own[0] | {"x": 10, "y": 5, "region_id": 12}]
    document[0]["regions"].append({"region_id": 7, "x": 1, "y": 2, "width": 3, "phrase": "no height"})
    path.write_text(json.dumps(document))
    dataset: Any = open_reader(f"visual_genome:{path}")
    assert [region.box for region in dataset[1].regions] == [
        pytest.approx(box) for box in ((0.95, 0.1, 1.0, 0.3), (0.0, 0.9, 0.1, 1.0), BOX)
    ]
    assert dataset.left_out == {"boxes that left the picture, clipped": 2}
    with pytest.raises(SampleError, match="region of image 1: 'height' is missing"):
        dataset[0]
    for odd in ({"x": 105}, {"x": 5, "width": float("inf")}):  # nothing of it is in the picture; no number
        own[0] |= odd
        path.write_text(json.dumps(document))
        with pytest.raises(SampleError, match=r"(outside|finite).*region 9"):
            open_reader(f"visual_genome:{path}")[1]


def test_flickr30k_entities(tmp_path: Path) -> None:
    dataset: Any = open_reader(f"flickr30k:{write_flickr30k(tmp_path)}")
    (sample,) = samples(dataset)
    assert sample.image == tmp_path / "flickr30k-images" / "1000092795.jpg"
    assert sample.captions == (
        "Two young guys with shaggy hair look at their hands .",
        "Two men stand in a yard near it .",
    )
    found = [(region.text, pytest.approx(region.box)) for region in sample.regions]
    whole = (0.5, 0.5, 1.0, 1.0)
    assert found == [
        ("Two young guys", BOX),
        ("Two young guys", whole),
        ("shaggy hair", whole),
        ("Two men", BOX),
        ("Two men", whole),
    ]
    assert dataset.left_out == {"phrases without a box": 2, "phrases of nothing that can be seen": 1}


def test_flickr30k_splits(tmp_path: Path) -> None:
    folder = write_flickr30k(tmp_path)
    for line in ("1000092795", "1000092795.jpg"):
        (tmp_path / "test.txt").write_text(f"{line}\n")
        assert len(open_reader(f"flickr30k:{folder},split={tmp_path / 'test.txt'}")) == 1
    (tmp_path / "test.txt").write_text("1000092795\n")
    assert len(open_reader(f"flickr30k:{folder},split={tmp_path / 'test.txt'}")) == 1
    (tmp_path / "test.txt").write_text("1000092795\n7\n")
    with pytest.raises(UserError, match=r"names 1 of 2 pictures without sentences: \['7'\]"):
        open_reader(f"flickr30k:{folder},split={tmp_path / 'test.txt'}")
    with pytest.raises(MissingFileError, match="no such file of picture ids"):
        open_reader(f"flickr30k:{folder},split={tmp_path / 'dev.txt'}")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("<annotation><object></annotation>", "is not XML"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><annotation>&a;</annotation>', "declares a document type"),
        (
            "<annotation><size><width>w</width><height>5</height></size></annotation>",
            "width must be a number",
        ),
        ("", "is not XML"),
    ],
)
def test_flickr30k_with_a_broken_picture(tmp_path: Path, content: str, told: str) -> None:
    folder = write_flickr30k(tmp_path)
    (folder / "Sentences" / "2.txt").write_text("[/EN#1/people A man] .\n")
    (folder / "Annotations" / "2.xml").write_text(content)
    picture_of(folder, "flickr30k-images/2.jpg")
    dataset: Any = open_reader(f"flickr30k:{folder}")
    assert len(dataset) == 1
    ((cause, message),) = dataset.problems
    assert cause == "broken entry"
    assert told in message
    assert "picture 2" in message


def test_fg_ovd(tmp_path: Path) -> None:
    dataset: Any = open_reader(f"fg_ovd:{write_fg_ovd(tmp_path)}")
    first, second = samples(dataset)
    assert first.image == tmp_path / "coco" / "val2017" / "000000056288.jpg"
    assert [region.text for region in first.regions] == [
        "A black plastic telephone 0",
        "A black plastic telephone 2",
    ]
    assert first.regions[0].box == pytest.approx(BOX)
    wrong = second.regions[0].texts
    assert [text.text for text in wrong] == fg_ovd_lines()[1]["neg_expression"]
    assert {text.role for text in wrong} == {"negative"}
    assert first.metadata == {"image_id": 56288, "test_type": "3_attributes"}


def test_fg_ovd_lines_that_cannot_be_used(tmp_path: Path) -> None:
    path = write_fg_ovd(tmp_path)
    lines = path.read_text().splitlines()
    odd = [
        "{",
        "[]",
        json.dumps(fg_ovd_lines()[0] | {"pos_expression": ["a", "b"]}),
        json.dumps(fg_ovd_lines()[0] | {"neg_expression": [None]}),
    ]
    path.write_text("\n".join([*lines, *odd]))
    dataset: Any = open_reader(f"fg_ovd:{path}")
    assert len(dataset) == 2
    assert [message.split(":")[0] for _, message in dataset.problems] == [f"line {n}" for n in (4, 5, 6, 7)]


def test_fg_ovd_lines_of_one_picture_agree(tmp_path: Path) -> None:
    path = write_fg_ovd(tmp_path)
    lines = [fg_ovd_lines()[0], fg_ovd_lines()[0] | {"width": 200}, fg_ovd_lines()[0] | {"image_id": 5}]
    path.write_text("\n".join(map(json.dumps, lines)))
    dataset: Any = open_reader(f"fg_ovd:{path}")
    assert len(dataset[0].regions) == 1
    assert [message.rpartition(" (")[0] for _, message in dataset.problems] == [
        "line 2: val2017/000000056288.jpg is of height and width (50, 200) here and (50, 100) before",
        "line 3: val2017/000000056288.jpg is of image_id 5 here and 56288 before",
    ]


@pytest.mark.parametrize("kind", ["visual_genome", "flickr30k", "fg_ovd"])
def test_pictures_that_are_nowhere(tmp_path: Path, kind: str) -> None:
    write = {"visual_genome": write_genome, "flickr30k": write_flickr30k, "fg_ovd": write_fg_ovd}[kind]
    path = write(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match="give their folder as images=FOLDER"):
        open_reader(f"{kind}:{path},images={tmp_path / 'empty'}")
    with pytest.raises(MissingFileError, match="no such folder of pictures"):
        open_reader(f"{kind}:{path},images={tmp_path / 'nowhere'}")
    for picture in tmp_path.rglob("*.jpg"):
        picture.unlink()
    with pytest.raises(MissingFileError, match="not found, such as"):
        open_reader(f"{kind}:{path}")


@pytest.mark.parametrize("crowds", [False, True])
def test_panoptic(tmp_path: Path, crowds: bool) -> None:
    path = write_panoptic(tmp_path)
    dataset: Any = open_reader(f"panoptic:{path},crowds={str(crowds).lower()}")
    first, second = samples(dataset)
    assert first.image == tmp_path / "val2017" / "000000000139.jpg"
    expected = [("person", pytest.approx(BOX)), ("banner", (0.5, 0.5, 1.0, 1.0)), ("person", (0, 0, 1, 1))]
    assert [(region.text, region.box) for region in first.regions] == expected[: 3 if crowds else 2]
    assert len(second.regions) == 1
    assert dataset.class_names == ("person", "banner")
    assert (dataset.crowds, dataset.num_crowds) == (crowds, 1)
    crowd_counts = {} if crowds else {"crowd segments": 1}
    assert dataset.left_out == {"masks; masks=FOLDER reads them": 4 if crowds else 3} | crowd_counts


def test_each_picture_of_a_panoptic_json_has_one_annotation(tmp_path: Path) -> None:
    path = write_panoptic(tmp_path)
    document = json.loads(path.read_text())
    picture = document["images"][0]
    document["images"] += [picture | {"id": 7, "file_name": "7.jpg"}, picture | {"id": 8}]
    first = document["annotations"][0]
    document["annotations"] += [first, first | {"image_id": 8}]
    path.write_text(json.dumps(document))
    dataset: Any = open_reader(f"panoptic:{path}")
    assert len(dataset) == 2
    assert dataset.left_out["crowd segments"] == 1
    assert [(cause, message.partition(" (")[0]) for cause, message in dataset.problems] == [
        ("repeated picture", "annotation 2: image 139, 000000000139.jpg, is annotated already"),
        ("repeated picture", "annotation 3: image 8, 000000000139.jpg, is annotated already, as image 139"),
        ("picture without an annotation", "image 7, 7.jpg, has none"),
    ]


def test_panoptic_with_odd_segments(tmp_path: Path) -> None:
    path = write_panoptic(tmp_path)
    document = json.loads(path.read_text())
    document["annotations"][0]["segments_info"][1]["category_id"] = 5
    document["annotations"].append({"image_id": 9, "segments_info": []})
    path.write_text(json.dumps(document))
    dataset: Any = open_reader(f"panoptic:{path}")
    assert [cause for cause, _ in dataset.problems] == ["unknown image_id"]
    with pytest.raises(SampleError, match="segment 1 of image 139: unknown category_id '5'"):
        dataset[0]
    document["categories"].append(document["categories"][0])
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match="category id '1' occurs twice"):
        open_reader(f"panoptic:{path}")


def test_open_images(tmp_path: Path) -> None:
    path = write_open_images(tmp_path)
    dataset: Any = open_reader(str(path))
    first, second = samples(dataset)
    assert first.image == tmp_path / "validation" / "0001eeaf4aed83f9.jpg"
    assert [region.text for region in first.regions] == ["Airplane", "Food"]
    assert first.regions[0].box == pytest.approx((0.022673031, 0.07103825, 0.9642005, 0.80054647))
    assert first.regions[1].box == pytest.approx((0.5, 0.25, 0.75, 0.5))
    assert [(region.text, region.box) for region in second.regions] == [
        ("Airplane", pytest.approx((0.1, 0.5, 0.3, 0.9)))
    ]
    assert dataset.left_out == {"boxes of groups": 1}
    assert (dataset.crowds, dataset.num_crowds, dataset.class_names) == (False, 1, ("Airplane", "Food"))
    assert second.metadata == {"image_id": "000595fe6fee6369"}
    groups: Any = open_reader(f"open_images:{path},crowds=true")
    assert [region.text for region in groups[1].regions] == ["Food", "Airplane"]
    assert groups.left_out == {}


def test_open_images_with_odd_rows(tmp_path: Path) -> None:
    path = write_open_images(tmp_path)
    lines = path.read_text().splitlines()
    lines.append("0001eeaf4aed83f9,xclick,/m/nothing,1,0,1,0,1,0,0,0,0,0")
    lines.append("0001eeaf4aed83f9,xclick,/m/02wbm,1,0,1,zero,1,0,0,0,0,0")
    path.write_text("\n".join(lines))
    dataset: Any = open_reader(f"open_images:{path}")
    assert [cause for cause, _ in dataset.problems] == ["unknown label", "broken box"]
    assert "line 7: YMin must be a number; got 'zero'" in dataset.problems[1].message
    (tmp_path / "class-descriptions-boxable.csv").rename(tmp_path / "c.csv")
    with pytest.raises(MissingFileError, match="give classes=FILE"):
        open_reader(f"open_images:{path}")
    assert len(samples(open_reader(f"open_images:{path},classes={tmp_path / 'c.csv'}"))) == 2
    path.write_text("ImageID,LabelName,XMin,XMax,YMin\n")
    with pytest.raises(UserError, match="need a column YMax"):
        open_reader(f"open_images:{path},classes={tmp_path / 'c.csv'}")


@pytest.mark.parametrize("layout", ["patches", "flat", "as written"])
def test_objects365(tmp_path: Path, layout: str) -> None:
    path = write_objects365(tmp_path)
    pictures = sorted((tmp_path / "val").rglob("*.jpg"))
    places = {
        "flat": [tmp_path / "images" / picture.name for picture in pictures],
        "as written": [
            tmp_path
            / "images"
            / ("v2" if "_v2_" in picture.name else "v1")
            / picture.relative_to(tmp_path / "val")
            for picture in pictures
        ],
        "patches": pictures,
    }[layout]
    for picture, place in zip(pictures, places):
        place.parent.mkdir(parents=True, exist_ok=True)
        picture.rename(place)
    dataset: Any = open_reader(str(path))
    first, second = samples(dataset)
    assert first.image in places
    assert first.regions[0].box == pytest.approx((0.105, 0.1, 0.305, 0.3))
    assert (first.regions[0].text, first.regions[0].source) == ("Cabinet/shelf", "objects365")
    assert second.regions == ()
    assert dataset.num_crowds == 1
    for place in places:
        place.unlink()
    with pytest.raises(MissingFileError, match="give their folder as images=FOLDER"):
        open_reader(f"objects365:{path}")


def test_fg_ovd_as_the_benchmark_has_it(tmp_path: Path) -> None:
    lines: Any = open_reader(f"fg_ovd:{write_fg_ovd(tmp_path)}")
    path = tmp_path / "1_attributes.json"
    path.write_text(json.dumps(fg_ovd_document()))
    assert guess_spec(str(path)) == f"fg_ovd:{path}"
    dataset: Any = open_reader(str(path))
    for one, other in zip(samples(dataset), samples(lines), strict=True):
        assert (one.image, one.metadata["image_id"]) == (other.image, other.metadata["image_id"])
        assert [(r.box, r.text, r.texts) for r in one.regions] == [
            (r.box, r.text, r.texts) for r in other.regions
        ]
    document = fg_ovd_document()
    document["annotations"][0]["neg_category_ids"] = [1, 999]
    document["annotations"][1]["image_id"] = 7
    document["annotations"][2].pop("neg_category_ids")
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match="no entry can be used; the first: annotation at position 0: neg_cat"):
        open_reader(f"fg_ovd:{path}")


def test_finehard(tmp_path: Path) -> None:
    path = write_finehard(tmp_path)
    dataset: Any = open_reader(str(path))
    first, _ = samples(dataset)
    assert first.captions == ("A long caption of 0.", "short 0")
    assert [(r.text, r.box) for r in first.regions] == [
        ("a red mug", (0.1, 0.1, 0.3, 0.3)),
        ("a table", (0.5, 0.5, 1.0, 1.0)),
    ]
    mug, table = ([(text.role, text.text) for text in r.texts] for r in first.regions)
    wrong = [("negative", "a blue mug"), ("negative", "a red bowl")]
    assert mug == [("long", "a red mug with a white handle"), *wrong]
    assert table == [("long", "a table")]
    known = open_reader(f"finehard:{path},negatives=true")
    assert [[r.text for r in known[row].regions] for row in range(2)] == [["a red mug"]] * 2
    assert known.left_out["regions without wrong expressions"] == 2  # type: ignore[attr-defined]
    lines = tmp_path / "part.jsonl"
    rows = finehard_rows()
    rows[0]["bbox_info"][0]["bbox"] = [0.1, 0.1, 0.3]
    rows[0]["bbox_info"][1]["short_expr_negs"] = "a chair"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"f_path": 3, "bbox_info": []}\n')
    again: Any = open_reader(str(lines))
    assert len(again) == 2
    assert ["f_path must be text" in problem.message for problem in again.problems] == [True]
    told = [problem.message for problem in again.raw(0).problems]
    assert "must begin with 4 numbers" in told[0]
    assert "short_expr_negs must be an object or a list" in told[1]


def test_the_benchmarks_pictures_stand_before_its_boxes(tmp_path: Path) -> None:
    """Megabytes of them, each with LVIS's own `neg_category_ids`: the file was taken for LVIS's."""
    document = fg_ovd_document()
    many = [document["images"][0] | {"id": 1000 + n, "neg_category_ids": [1, 2]} for n in range(3000)]
    turned = {
        "images": many + document["images"],
        **{key: document[key] for key in ("annotations", "categories")},
    }
    path = tmp_path / "1_attributes.json"
    for encoded in (json.dumps(turned), json.dumps(turned, indent=1)):
        path.write_text(encoded)
        assert encoded.index('"annotations"') > 2**17
        assert guess_spec(str(path)) == f"fg_ovd:{path}"
    of_lvis = [{key: row[key] for key in row if key != "neg_category_ids"} for row in turned["annotations"]]
    path.write_text(json.dumps(turned | {"annotations": of_lvis}))
    assert guess_spec(str(path)) == f"coco:{path}"
    path.write_text(json.dumps({"images": many}))
    with pytest.raises(UserError, match="holds nothing known"):
        guess_spec(str(path))


def test_boxes_of_open_images_that_are_no_text(tmp_path: Path) -> None:
    path = write_open_images(tmp_path)
    head = path.read_text().splitlines()[0]
    path.write_bytes(head.encode() + b"\n\xff\xfe,xclick\n")
    with pytest.raises(UserError, match="a CSV in UTF-8; this is none: 'utf-8' codec"):
        open_reader(f"open_images:{path}")
    path.write_text(f'{head}\nx,"' + "y" * 140_000)
    usual = csv.field_size_limit(1000)
    try:
        with pytest.raises(UserError, match="this is none: field larger than field limit"):
            open_reader(f"open_images:{path}")
    finally:
        csv.field_size_limit(usual)


def test_class_descriptions_of_version_7(tmp_path: Path) -> None:
    path = write_open_images(tmp_path)
    (classes,) = tmp_path.glob("*class-descriptions*.csv")
    classes.rename(tmp_path / "oidv7-class-descriptions-boxable.csv")
    assert samples(open_reader(f"open_images:{path}"))
