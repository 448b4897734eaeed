"""COCO's annotations: boxes, texts, captions, pictures, and what is wrong with a file."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

from open_cloc.data.annotations import finish
from open_cloc.data.bad_samples import read_usable
from open_cloc.data.check import check_dataset
from open_cloc.data.readers import guess_spec, open_reader
from open_cloc.data.shards.region_json import parse_sample
from open_cloc.data.shards.write import Storage, encode_sample
from open_cloc.errors import SampleError, UserError
from open_cloc.masks import Mask
from tests.data.readers.made import annotation, coco_document, write_coco, write_panoptic, write_yolo

COCO128 = Path(__file__).resolve().parents[4] / "shared/data/coco128"


def test_coco_boxes_texts_and_order(tmp_path: Path) -> None:
    dataset = open_reader(f"coco:{write_coco(tmp_path, coco_document())}")
    assert len(dataset) == 2
    first, second = dataset[0], dataset[1]
    assert (first.key, second.key) == ("a", "sub/b_v2")
    assert [(r.text, r.box, r.score, r.source) for r in first.regions] == [
        ("person", (0, 0, 1, 1), 1, "coco")
    ]
    assert [r.text for r in second.regions] == ["red_mug", "person"]
    np.testing.assert_allclose([r.box for r in second.regions], [[0.1, 0.1, 0.3, 0.3], [0.5, 0.5, 1, 1]])
    assert first.pixels().shape == (50, 100, 3)
    assert first.metadata == {"image_id": 7, "file_name": "a.jpg"}
    assert first.captions == ()
    with pytest.raises(IndexError):
        dataset[2]


def test_coco_captions_and_explicit_image_folder(tmp_path: Path) -> None:
    path = write_coco(tmp_path, coco_document())
    (tmp_path / "images").rename(tmp_path / "pictures")
    captions = tmp_path / "captions.json"
    rows = [{"image_id": 3, "caption": "one"}, {"image_id": 3, "caption": "two"}]
    captions.write_text(json.dumps({"annotations": rows}))
    with pytest.raises(FileNotFoundError, match=r"'a\.jpg'; looked in .*give their folder as images=FOLDER"):
        open_reader(f"coco:{path}")
    dataset = open_reader(f"coco:{path},images={tmp_path / 'pictures'},captions={captions}")
    assert [dataset[i].captions for i in range(2)] == [(), ("one", "two")]
    captions.write_text(json.dumps({"annotations": [{"image_id": 99, "caption": "x"}]}))
    with pytest.raises(ValueError, match="captions name none of the images"):
        open_reader(f"coco:{path},images={tmp_path / 'pictures'},captions={captions}")


@pytest.mark.parametrize("layout", ["images", "images/val", "val", ".", "data", "JPEGImages"])
def test_pictures_are_found_beside_the_annotations(tmp_path: Path, layout: str) -> None:
    (tmp_path / "annotations").mkdir()
    path = write_coco(tmp_path, coco_document(), "instances_val.json")
    path.rename(tmp_path / "annotations" / path.name)
    target = tmp_path / layout
    target.mkdir(parents=True, exist_ok=True)
    for picture in ("a.jpg", "sub"):
        (tmp_path / "images" / picture).rename(target / picture)
    assert open_reader(f"coco:{tmp_path}")[0].pixels().shape == (50, 100, 3)


def test_crowds_and_boxes_without_area_are_dropped_and_counted(tmp_path: Path) -> None:
    annotations = [
        annotation([0, 0, 10, 10], iscrowd=1, id=1),
        annotation([5, 5, 0, 10], id=2),
        annotation([1, 1, 2, 2], id=3),
    ]
    dataset: Any = open_reader(f"coco:{write_coco(tmp_path, coco_document(annotations=annotations))}")
    assert dataset.left_out == {"crowd annotations": 1, "boxes without area": 1}
    assert [r.box for r in dataset[0].regions] == [pytest.approx((0.01, 0.02, 0.03, 0.06))]
    assert len(dataset.raw(0).regions) == 2  # the check still sees it


def test_boxes_of_pictures_without_a_size_are_not_called_empty(tmp_path: Path) -> None:
    document = coco_document(annotations=[annotation([5, 5, 0, 10], id=2), annotation([1, 1, 2, 2], id=3)])
    for image in document["images"]:
        del image["width"], image["height"]
    dataset: Any = open_reader(f"coco:{write_coco(tmp_path, document)}")
    assert dataset.left_out == {"boxes without area": 1}
    assert len(dataset[0].regions) == 1


def test_crowds_can_be_kept(tmp_path: Path) -> None:
    annotations = [annotation([0, 0, 10, 10], iscrowd=1, id=1), annotation([1, 1, 2, 2], id=3)]
    path = write_coco(tmp_path, coco_document(annotations=annotations))
    dataset: Any = open_reader(f"coco:{path},crowds=true")
    assert (dataset.crowds, dataset.num_crowds, dataset.left_out) == (True, 1, {})
    assert len(dataset[0].regions) == 2


def test_rounding_errors_are_clipped_and_wrong_boxes_named(tmp_path: Path) -> None:
    near = annotation([-0.9, 0, 101.5, 50.5])
    dataset = open_reader(f"coco:{write_coco(tmp_path, coco_document(annotations=[near]))}")
    assert dataset[0].regions[0].box == (0, 0, 1, 1)
    wrong = {
        (60, 10, 50, 20): "outside the picture: got [60, 10, 50, 20], expected xywh in pixels of a 100 x 50",
        (60, 10, -50, 20): "inverted: got [60, 10, -50, 20]",
        (float("nan"), 0, 1, 1): "not finite: got [nan, 0, 1, 1]",
    }
    for box, message in wrong.items():
        dataset = open_reader(
            f"coco:{write_coco(tmp_path, coco_document(annotations=[annotation(list(box))]))}"
        )
        assert dataset[1].regions == ()
        with pytest.raises(ValueError) as caught:
            dataset[0]
        assert message in str(caught.value)
        assert "instances_tiny.json, annotation 912" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": {"a": 1}}, "needs a list of objects 'annotations'; got dict"),
        ({"categories": None}, "needs a list of objects 'categories'; got nothing"),
        ({"images": []}, "names no images"),
        (
            {"images": [{"file_name": "a.jpg"}]},
            "no image can be used; the first: .*position 0: 'id' is missing",
        ),
        ({"images": coco_document()["images"] * 2}, "image id '7' occurs 2 times"),
        ({"categories": coco_document()["categories"] * 2}, "category id '1' occurs 2 times"),
    ],
)
def test_wrong_coco_documents_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_coco(tmp_path, coco_document(**changes))
    with pytest.raises(ValueError, match=message) as caught:
        open_reader(f"coco:{path}")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "cause", "message"),
    [
        (
            annotation([0, 0, 1, 1], category_id=77),
            "unknown category_id",
            "unknown category_id 77; expected one of",
        ),
        (annotation([0, 0, 1]), "broken annotation", r"bbox .* must be 4 numbers; got \[0, 0, 1\]"),
        (annotation([0, 0, 1, "x"]), "broken annotation", r"bbox .* must be 4 numbers"),
        (annotation([0, 0, 1, 10**400]), "broken annotation", r"bbox .* must be 4 numbers"),
        (annotation(None), "broken annotation", r"bbox .* must be 4 numbers; got null"),
        (
            {"image_id": 7, "category_id": 1, "id": 912},
            "broken annotation",
            "'bbox' is missing; got .*'image_id'",
        ),
        (
            annotation([0, 0, 1, 1], iscrowd="0"),
            "broken annotation",
            "iscrowd must be 0, 1, true or false; got '0'",
        ),
        (annotation([0, 0, 1, 1], score=7), "broken annotation", r"score must be in \[0, 1\]; got 7"),
        (annotation([60, 10, -50, 20]), "box inverted", "inverted"),
    ],
)
def test_a_broken_annotation_costs_its_region_alone(
    tmp_path: Path, wrong: dict[str, Any], cause: str, message: str
) -> None:
    good = [annotation([1, 1, 2, 2], id=1), annotation([1, 1, 2, 2], image_id=3, id=2)]
    dataset: Any = open_reader(f"coco:{write_coco(tmp_path, coco_document(annotations=[*good, wrong]))}")
    assert dataset.problems == []
    assert len(dataset[1].regions) == 1
    with pytest.raises(SampleError, match=message) as caught:
        dataset[0]
    assert "annotation 912" in str(caught.value)
    assert "instances_tiny.json" in str(caught.value)
    sample, problems = read_usable(dataset, 0)
    assert sample is not None
    assert len(sample.regions) == 1
    assert [problem.cause for problem in problems] == [cause]


@pytest.mark.parametrize(
    ("changes", "cause", "message"),
    [
        ({"annotations": [annotation([0, 0, 1, 1], image_id=5)]}, "unknown image_id", "annotation 912: .* 5"),
        ({"annotations": [7]}, "broken annotation", "at position 0: must be an object; got int"),
        (
            {"categories": [{"id": 1, "name": None}]},
            "broken category",
            "category 1: name must be text; got null",
        ),
        ({"categories": [{"id": 1, "name": ["a", "b"]}]}, "broken category", "name must be text; got"),
        ({"categories": [{"id": 1, "name": " "}]}, "broken category", "name must not be blank"),
        (
            {"images": [*coco_document()["images"], {"id": 9}]},
            "broken image",
            "image 9: 'file_name' is missing",
        ),
    ],
)
def test_entries_of_no_sample_are_kept_as_problems(
    tmp_path: Path, changes: dict[str, Any], cause: str, message: str
) -> None:
    dataset: Any = open_reader(f"coco:{write_coco(tmp_path, coco_document(**changes))}")
    assert len(dataset) == 2
    assert dataset.problems[0].cause == cause
    assert re.search(message, dataset.problems[0].message)


@pytest.mark.parametrize(
    ("own", "named"),
    [("7", 7), (7, "7"), ("frame_7", "frame_7"), ("007", "007"), (7.0, 7), (10**22 + 7, str(10**22 + 7))],
)
def test_ids_are_numbers_or_text_of_any_length(tmp_path: Path, own: Any, named: Any) -> None:
    images = [{"id": own, "file_name": "a.jpg", "width": 100, "height": 50}]
    rows = [annotation([0, 0, 100, 50], image_id=named, id="5f0c-77aa")]
    dataset = open_reader(f"coco:{write_coco(tmp_path, coco_document(images=images, annotations=rows))}")
    assert len(dataset[0].regions) == 1
    assert dataset[0].metadata["image_id"] == own


def test_a_text_that_is_not_the_number_is_another_id(tmp_path: Path) -> None:
    images = [{"id": 7, "file_name": "a.jpg"}]
    rows = [annotation([0, 0, 1, 1], image_id="007")]
    dataset: Any = open_reader(f"coco:{write_coco(tmp_path, coco_document(images=images, annotations=rows))}")
    assert [problem.cause for problem in dataset.problems] == ["unknown image_id"]


@pytest.mark.parametrize("size", [{}, {"width": None, "height": None}, {"width": 100.0, "height": 50.0}])
def test_sizes_may_be_lacking_or_floats(tmp_path: Path, size: dict[str, Any]) -> None:
    images = [{"id": 7, "file_name": "a.jpg"} | size]
    document = coco_document(images=images, annotations=[annotation([10, 5, 20, 10])])
    sample = open_reader(f"coco:{write_coco(tmp_path, document)}")[0]
    assert sample.regions[0].box == pytest.approx((0.1, 0.1, 0.3, 0.3))
    assert sample.size_hw == (50, 100)


def test_a_picture_of_another_size_is_refused_wherever_it_is_decoded(tmp_path: Path) -> None:
    images = [{"id": 7, "file_name": "a.jpg", "width": 200, "height": 100}]
    path = write_coco(tmp_path, coco_document(images=images, annotations=[annotation([0, 0, 9, 9])]))
    sample = open_reader(f"coco:{path}")[0]
    for use in (sample.pixels, lambda: encode_sample(sample, Storage())):
        with pytest.raises(SampleError, match="boxes were measured on 200 x 100, the picture is 100 x 50"):
            use()


@pytest.mark.parametrize("name", ["images\\day\\a.jpg", "./images/day/a.jpg", "images//day/a.jpg"])
def test_names_from_other_systems_are_found(tmp_path: Path, name: str) -> None:
    (tmp_path / "images" / "day").mkdir(parents=True)
    Image.new("RGB", (100, 50)).save(tmp_path / "images" / "day" / "a.jpg")
    images = [{"id": 7, "file_name": name, "width": 100, "height": 50}]
    path = tmp_path / "export.json"
    path.write_text(json.dumps(coco_document(images=images, annotations=[annotation([0, 0, 9, 9])])))
    sample = open_reader(f"coco:{path}")[0]
    assert sample.pixels().shape == (50, 100, 3)
    assert sample.key == "images/day/a"


def test_pictures_outside_of_the_data_set_need_an_option(tmp_path: Path) -> None:
    inside = tmp_path / "set"
    inside.mkdir()
    Image.new("RGB", (100, 50)).save(tmp_path / "private.jpg")
    (inside / "link.jpg").symlink_to(tmp_path / "private.jpg")
    for name in ("../private.jpg", str(tmp_path / "private.jpg"), "link.jpg"):
        images = [{"id": 7, "file_name": name, "width": 100, "height": 50}]
        path = inside / "export.json"
        path.write_text(json.dumps(coco_document(images=images, annotations=[])))
        with pytest.raises(SampleError, match=r"leads out of the data set .* outside=true"):
            open_reader(f"coco:{path}")[0]
        sample = open_reader(f"coco:{path},outside=true")[0]
        assert sample.pixels().shape == (50, 100, 3)
        assert ".." not in sample.key
        assert not sample.key.startswith("/")


def test_a_folder_with_a_json_of_any_name_is_recognised(tmp_path: Path) -> None:
    path = write_coco(tmp_path, coco_document(), "_annotations.coco.json")
    assert guess_spec(str(tmp_path)) == f"coco:{tmp_path}"
    assert len(open_reader(f"coco:{tmp_path}")) == 2
    (tmp_path / "other.json").write_text('{"images": 3}')
    assert guess_spec(str(tmp_path)) == f"coco:{tmp_path}"
    path.rename(tmp_path / "LVIS_export.JSON")
    assert guess_spec(str(tmp_path / "LVIS_export.JSON")).startswith("coco:")


def test_unused_keys_and_repeated_ids_are_counted(tmp_path: Path) -> None:
    rows = [annotation([0, 0, 9, 9], keypoints=[1, 2, 3]), annotation([0, 0, 9, 9], segmentation=[[1, 2]])]
    dataset: Any = open_reader(f"coco:{write_coco(tmp_path, coco_document(annotations=rows))}")
    assert dataset.left_out == {
        "annotations' key 'keypoints'": 1,
        "annotation ids that come more than once": 1,
    }
    images = [{"id": 7, "file_name": "a.jpg", "caption": "a mug", "license": 3}]
    dataset = open_reader(f"coco:{write_coco(tmp_path, coco_document(images=images, annotations=[]))}")
    assert dataset.left_out == {"images' key 'caption'": 1}


def test_captions_alone_are_a_data_set_too(tmp_path: Path) -> None:
    document = coco_document(annotations=[])
    del document["categories"]
    document["annotations"] = [{"id": 1, "image_id": 3, "caption": "one"}, {"id": 2, "image_id": 3}]
    path = write_coco(tmp_path, document, "captions_val2017.json")
    for spec in (str(path), str(tmp_path), f"coco:{path}"):
        dataset: Any = open_reader(guess_spec(spec))
        assert [(sample.captions, sample.regions) for sample in map(dataset.__getitem__, range(2))] == [
            ((), ()),
            (("one",), ()),
        ]
        (problem,) = dataset.problems
        assert "caption 2: 'caption' is missing" in problem.message
        assert dataset.left_out == {}


def test_captions_beside_boxes_are_not_left_out_in_silence(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_document(), "instances_val.json")
    captions = tmp_path / "captions_val.json"
    rows = [{"id": 1, "image_id": 3, "caption": "one"}]
    captions.write_text(json.dumps({"images": [], "annotations": rows}))
    dataset: Any = open_reader(guess_spec(str(tmp_path)))
    assert dataset.left_out == {f"{captions} of COCO's form; give captions={captions}": 1}
    dataset = open_reader(f"{guess_spec(str(tmp_path))},captions={captions}")
    assert dataset[1].captions == ("one",)
    assert dataset.left_out == {}


def test_pictures_that_no_image_names_are_counted(tmp_path: Path) -> None:
    path = write_coco(tmp_path, coco_document())
    for name in (
        "images/other.JPG",
        "images/sub/a.jpg",  # another than images/a.jpg
        "images/sub/notes.txt",
        "images/else/far.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    dataset: Any = open_reader(f"coco:{path}")
    assert dataset.left_out == {
        f"pictures in {tmp_path / 'images'} that no image names": 1,
        f"pictures in {tmp_path / 'images/sub'} that no image names": 1,
    }


def test_names_that_lead_out_list_no_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "other.png").write_bytes(b"")
    images = [*coco_document()["images"], {"id": 9, "file_name": "../../secret/x.png"}]
    images.append({"id": 10, "file_name": f"{tmp_path}/secret/y.png"})
    dataset: Any = open_reader(f"coco:{write_coco(tmp_path / 'set', coco_document(images=images))}")
    assert not [text for text in dataset.left_out if "secret" in text]


def test_captions_of_boxes_are_no_captions_alone(tmp_path: Path) -> None:
    """Else the boxes would be left out in silence."""
    document = coco_document(annotations=[annotation([0, 0, 9, 9], caption="a mug")])
    del document["categories"]
    path = write_coco(tmp_path, document)
    with pytest.raises(UserError, match="needs a list of objects 'categories'; got nothing"):
        open_reader(f"coco:{path}")


@pytest.mark.parametrize(("rotation", "count"), [(30.5, 1), (-90, 1), (0, 0), (360, 0), (None, 0), ("x", 0)])
def test_boxes_that_are_turned_are_counted(tmp_path: Path, rotation: Any, count: int) -> None:
    rows = [annotation([0, 0, 9, 9], attributes={"occluded": False, "rotation": rotation})]
    dataset: Any = open_reader(f"coco:{write_coco(tmp_path, coco_document(annotations=rows))}")
    assert dataset.left_out["boxes turned by attributes' 'rotation', which is not applied"] == count


def test_utf_16_is_recognised_and_named(tmp_path: Path) -> None:
    path = write_coco(tmp_path, coco_document())
    path.write_text(path.read_text(), encoding="utf-16")
    assert guess_spec(str(tmp_path)) == f"coco:{tmp_path}"
    with pytest.raises(UserError, match="is not valid JSON: text in UTF-16: save it as UTF-8"):
        open_reader(str(path))


def test_a_key_that_comes_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.json"
    path.write_text('{"images": [], "images": [], "annotations": [], "categories": []}')
    with pytest.raises(ValueError, match=r"twice\.json is not valid JSON: key 'images' comes twice"):
        open_reader(f"coco:{path}")


def test_wrong_files_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "instances_x.json"
    broken.write_text('{"images": [')
    with pytest.raises(ValueError, match=r"instances_x\.json is not valid JSON"):
        open_reader(f"coco:{broken}")
    with pytest.raises(FileNotFoundError, match="no such annotation file or folder"):
        open_reader(f"coco:{tmp_path / 'absent.json'}")
    with pytest.raises(ValueError, match=r"expected one JSON of COCO's form in .*; got none"):
        open_reader(f"coco:{tmp_path}")
    for name in ("x.json", "y.json"):
        (tmp_path / name).write_text(json.dumps(coco_document()))
    with pytest.raises(
        ValueError, match=r"expected one JSON of COCO's form .*; got x\.json, y\.json; name the"
    ):
        open_reader(f"coco:{tmp_path}")
    path = write_coco(tmp_path, coco_document())
    (tmp_path / "images" / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"image of sample 'a' not found: .*a\.jpg"):
        open_reader(f"coco:{path}")[0].pixels()


@pytest.mark.skipif(not COCO128.exists(), reason="../shared/data/coco128 is not here")
def test_coco128() -> None:
    dataset: Any = open_reader(guess_spec(str(COCO128)))
    samples = [dataset[i] for i in range(len(dataset))]
    assert len(samples) == 128
    assert sum(len(sample.regions) for sample in samples) == 929
    assert len(dataset.class_names) == 80
    raw = json.loads((COCO128 / "instances_train2017.json").read_text())
    by_id = {image["id"]: image for image in raw["images"]}
    expected = []
    for row in raw["annotations"]:  # the slow way
        image, (x, y, w, h) = by_id[row["image_id"]], row["bbox"]
        width, height = image["width"], image["height"]
        expected.append([x / width, y / height, (x + w) / width, (y + h) / height])
    boxes = [region.box for sample in samples for region in sample.regions]
    np.testing.assert_allclose(sorted(boxes), sorted(np.clip(expected, 0, 1).tolist()), atol=1e-12)


TRIANGLE = [[10, 5, 40, 5, 10, 45]]


def outlines(*given: Any) -> dict[str, Any]:
    """A document whose first picture, of 100 x 50, has a region for each outline."""
    rows = [annotation([5, 5, 40, 40], id=i, segmentation=own) for i, own in enumerate(given)]
    return coco_document(annotations=rows)


def test_outlines_of_all_forms(tmp_path: Path) -> None:
    """Polygons, run lengths and compressed ones of one thing are one mask."""
    runs = coco_masks.merge(coco_masks.frPyObjects(TRIANGLE, 50, 100))
    pixels = coco_masks.decode(runs).astype(bool)
    flat = np.concatenate([[0], pixels.T.reshape(-1), [2]])
    lengths = np.diff(np.concatenate([[0], np.flatnonzero(np.diff(flat[:-1])), [5000]])).tolist()
    compressed = {"size": [50, 100], "counts": runs["counts"].decode()}
    document = outlines(TRIANGLE, compressed, {"size": [50, 100], "counts": lengths}, [])
    path = write_coco(tmp_path, document)
    plain = open_reader(f"coco:{path}")[0]
    assert [region.mask for region in plain.regions] == [None] * 4
    dataset = open_reader(f"coco:{path},masks=true")
    first, second, third, none = dataset[0].regions
    assert first.mask == second.mask == third.mask == Mask.of(pixels)
    assert none.mask is None
    assert dataset.left_out["annotations without an outline"] == 1
    stored = parse_sample("a", b"", None, encode_sample(dataset[0], Storage())["json"], "x.tar")
    assert [region.mask for region in finish(stored).regions] == [Mask.of(pixels)] * 3 + [None]


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        ([[1, 2, 3, 4]], "three corners"),
        ([[1, 2, 3, 4, 5, 600]], r"corner \(5, 600\) lies outside of 100 x 50"),
        ([[1, 2, 3, 4, 5, None]], "must be a number; got null"),
        ([[1, 2, 3, 4, 5, 10**400]], "must be of coordinates"),
        ({"size": [50, 100], "counts": "\ud800"}, "hold what is no number"),
        ([1, 2, 3, 4, 5, 6], "must be polygons or run lengths"),
        ("oops", "must be polygons or run lengths"),
        ({"size": [50, 100]}, "'counts' is missing"),
        ({"size": [100, 50], "counts": "0"}, r"of a picture of \[100, 50\], not of \[50, 100\]"),
        ({"size": [50, 100], "counts": "1"}, "do not fill 100 x 50 pixels"),
        ({"size": [50, 100], "counts": [2.5, 3]}, "whole number"),
        ({"size": [50, 100], "counts": [5001]}, "do not fill"),
    ],
)
def test_a_broken_outline_costs_its_region_alone(tmp_path: Path, outline: Any, message: str) -> None:
    path = write_coco(tmp_path, outlines(outline, TRIANGLE))
    dataset = open_reader(f"coco:{path},masks=true")
    with pytest.raises(SampleError, match=f"annotation 0: .*{message}"):
        dataset[0]
    (region,) = read_usable(dataset, 0)[0].regions
    assert region.mask is not None
    assert len(open_reader(f"coco:{path}")[0].regions) == 2


def test_outlines_without_a_declared_size_are_of_the_picture(tmp_path: Path) -> None:
    document = outlines(TRIANGLE)
    path = write_coco(tmp_path, document)
    declared = open_reader(f"coco:{path},masks=true")[0].regions
    for image in document["images"]:
        del image["width"], image["height"]
    path.write_text(json.dumps(document))
    assert open_reader(f"coco:{path},masks=true")[0].regions == declared
    (tmp_path / "images/a.jpg").write_bytes(b"none")
    with pytest.raises(SampleError, match="segmentation needs the picture's size"):
        open_reader(f"coco:{path},masks=true")[0]


def test_outlines_without_a_pixel_are_counted(tmp_path: Path) -> None:
    thin = [[20, 20, 20, 20, 20, 20]]
    path = write_coco(tmp_path, outlines(thin, {"size": [50, 100], "counts": [5000]}, [[]], TRIANGLE))
    dataset: Any = open_reader(f"coco:{path},masks=true")
    assert [region.mask is None for region in dataset[0].regions] == [True, True, True, False]
    assert dataset.left_out["outlines that cover no pixel"] == 2
    assert dataset.left_out["annotations without an outline"] == 1


def test_outlines_are_compared_with_their_boxes(tmp_path: Path) -> None:
    elsewhere = [[60, 5, 90, 5, 90, 45]]
    path = write_coco(tmp_path, outlines(TRIANGLE, elsewhere))
    report = check_dataset(open_reader(f"coco:{path},masks=true"))
    assert report.counts["outlines"] == 2
    assert report.warnings["outline elsewhere than its box"].count == 1
    (sample,) = (open_reader(f"coco:{path},masks=true")[0],)
    turned = [replace(r, mask=Mask.of(r.mask.pixels().T)) for r in sample.regions[:1]]  # type: ignore[union-attr]
    odd = check_dataset([replace(sample, regions=tuple(turned))])  # type: ignore[arg-type]
    assert odd.warnings["outline of another aspect ratio"].count == 1


def test_a_broken_caption_costs_itself(tmp_path: Path) -> None:
    entries = [{"image_id": 7, "caption": "a mug"}, {"image_id": 7, "caption": None}, {"caption": "x"}, 3]
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({"annotations": entries}))
    dataset: Any = open_reader(f"coco:{write_coco(tmp_path, coco_document())},captions={captions}")
    assert [sample.captions for sample in (dataset[0], dataset[1])] == [("a mug",), ()]
    assert [problem.cause for problem in dataset.problems] == ["broken caption"] * 3
    assert "captions.json" in dataset.problems[0].message
    captions.write_text(json.dumps({"annotations": entries[1:]}))
    with pytest.raises(ValueError, match=r"no caption can be used; the first: .*must be text; got null"):
        open_reader(f"coco:{tmp_path / 'instances_tiny.json'},captions={captions}")


def test_categories_of_one_name_are_one_class_which_is_said(tmp_path: Path) -> None:
    """Roboflow writes a category 0 that may bear the name of a class; LVIS's lose their underscores."""
    names = ("red_mug", "person", "red_mug")
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    dataset: Any = open_reader(f"coco:{write_coco(tmp_path, coco_document(categories=categories))}")
    assert dataset.left_out == {"categories with the name of another, read as one": 1}
    assert dataset.class_names == names
    (tmp_path / "yolo").mkdir()
    config = write_yolo(tmp_path / "yolo", {"a": ["0 .5 .5 1 1"]})
    config.write_text("train: images/train\nnames: [mug, cat, mug, cat]\n")
    yolo: Any = open_reader(f"yolo:{config}")
    assert yolo.left_out == {"categories with the name of another, read as one": 2}
    path = write_panoptic(tmp_path)
    document = json.loads(path.read_text())
    document["categories"].append({"id": 3, "name": "banner", "isthing": 0})
    path.write_text(json.dumps(document))
    panoptic: Any = open_reader(f"panoptic:{path}")
    assert panoptic.left_out["categories with the name of another, read as one"] == 1
