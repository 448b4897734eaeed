"""COCO and LVIS readers, and how data is named on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from open_cloc.data.annotations import (
    EMPTY,
    INVERTED,
    NOT_FINITE,
    OK,
    OUTSIDE,
    RawRegion,
    RawSample,
    box_problems,
    finish,
)
from open_cloc.data.readers import guess_spec, open_reader
from open_cloc.samples import RegionSample

COCO128 = Path(__file__).resolve().parents[4] / "shared/data/coco128"


def document(**changes: Any) -> dict[str, Any]:
    """Two pictures of 100 x 50 pixels, three boxes."""
    base = {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 100, "height": 50},
            {"id": 3, "file_name": "sub/b.v2.jpg", "width": 100, "height": 50},
        ],
        "annotations": [
            {"id": 11, "image_id": 3, "category_id": 2, "bbox": [10, 5, 20, 10]},
            {"id": 12, "image_id": 7, "category_id": 1, "bbox": [0, 0, 100, 50], "iscrowd": 0},
            {"id": 13, "image_id": 3, "category_id": 1, "bbox": [50, 25, 50, 25]},
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "red_mug"}],
    }
    return base | changes


def write(folder: Path, contents: dict[str, Any], name: str = "instances_tiny.json") -> Path:
    for image in contents.get("images", []):
        picture = folder / "images" / image.get("file_name", "x.jpg")
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 50)).save(picture)
    path = folder / name
    path.write_text(json.dumps(contents))
    return path


def annotation(box: list[Any], **changes: Any) -> dict[str, Any]:
    return {"id": 912, "image_id": 7, "category_id": 1, "bbox": box} | changes


def test_coco_boxes_texts_and_order(tmp_path: Path) -> None:
    dataset = open_reader(f"coco:{write(tmp_path, document())}")
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
    path = write(tmp_path, document())
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


@pytest.mark.parametrize("layout", ["images", "images/val", "val", "."])
def test_pictures_are_found_beside_the_annotations(tmp_path: Path, layout: str) -> None:
    (tmp_path / "annotations").mkdir()
    path = write(tmp_path, document(), "instances_val.json")
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
    dataset: Any = open_reader(f"coco:{write(tmp_path, document(annotations=annotations))}")
    assert dataset.dropped == {"crowd": 1, "without area": 1}
    assert [r.box for r in dataset[0].regions] == [pytest.approx((0.01, 0.02, 0.03, 0.06))]
    assert len(dataset.raw(0).regions) == 2  # the check still sees it


def test_rounding_errors_are_clipped_and_wrong_boxes_named(tmp_path: Path) -> None:
    near = annotation([-0.9, 0, 101.5, 50.5])
    dataset = open_reader(f"coco:{write(tmp_path, document(annotations=[near]))}")
    assert dataset[0].regions[0].box == (0, 0, 1, 1)
    wrong = {
        (60, 10, 50, 20): "outside the picture: got [60, 10, 50, 20], expected xywh in pixels of a 100 x 50",
        (60, 10, -50, 20): "inverted: got [60, 10, -50, 20]",
        (float("nan"), 0, 1, 1): "not finite: got [nan, 0, 1, 1]",
    }
    for box, message in wrong.items():
        dataset = open_reader(f"coco:{write(tmp_path, document(annotations=[annotation(list(box))]))}")
        assert dataset[1].regions == ()
        with pytest.raises(ValueError) as caught:
            dataset[0]
        assert message in str(caught.value)
        assert "instances_tiny.json, annotation 912" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"annotations": [annotation([0, 0, 1, 1], category_id=77)]},
            r"unknown category_id 77; .*annotation 912",
        ),
        ({"annotations": [annotation([0, 0, 1, 1], image_id=5)]}, r"unknown image_id 5; .*annotation 912"),
        ({"annotations": [annotation([0, 0, 1])]}, r"bbox must be 4 numbers \[x, y, w, h\]; got \[0, 0, 1\]"),
        ({"annotations": [annotation([0, 0, 1, "x"])]}, "bbox must be 4 numbers"),
        ({"annotations": [{"image_id": 7, "category_id": 1}]}, "annotation at position 0 lacks 'bbox'"),
        ({"annotations": {"a": 1}}, "needs a list of objects 'annotations'; got dict"),
        ({"categories": None}, "needs a list of objects 'categories'; got nothing"),
        ({"images": []}, "names no images"),
        ({"images": [{"id": 7, "file_name": "a.jpg", "width": 100}]}, "image 7 lacks 'height'"),
        ({"images": [{"id": 7, "file_name": "a.jpg", "width": 0, "height": 5}]}, "height and width must be"),
        ({"images": document()["images"] * 2}, "image id 7 occurs 2 times"),
    ],
)
def test_wrong_coco_documents_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path, document(**changes))
    with pytest.raises(ValueError, match=message) as caught:
        open_reader(f"coco:{path}")
    assert str(path) in str(caught.value)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "instances_x.json"
    broken.write_text('{"images": [')
    with pytest.raises(ValueError, match=r"not valid JSON .*instances_x\.json"):
        open_reader(f"coco:{broken}")
    with pytest.raises(FileNotFoundError, match="no such annotation file or folder"):
        open_reader(f"coco:{tmp_path / 'absent.json'}")
    (tmp_path / "instances_y.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"exactly one instances\*\.json .*instances_x\.json, instances_y\.json"
    ):
        open_reader(f"coco:{tmp_path}")
    path = write(tmp_path, document())
    (tmp_path / "images" / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"image of sample 'a' not found: .*a\.jpg"):
        open_reader(f"coco:{path}")[0].pixels()


def lvis_document() -> dict[str, Any]:
    images = [
        {"id": 7, "coco_url": "http://images.cocodataset.org/val2017/000007.jpg", "width": 100, "height": 50},
        {
            "id": 8,
            "coco_url": "http://images.cocodataset.org/train2017/000008.jpg",
            "width": 100,
            "height": 50,
        },
    ]
    categories = [
        {"id": 1, "name": "bow_(weapon)", "frequency": "r"},
        {"id": 2, "name": "Christmas_tree", "frequency": "c"},
    ]
    annotations = [
        annotation([0, 0, 50, 25], id=1),
        annotation([0, 0, 50, 25], id=2, image_id=8, category_id=2),
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.mark.parametrize("split_folders", [False, True])
def test_lvis_names_files_and_categories(tmp_path: Path, split_folders: bool) -> None:
    (tmp_path / "lvis_v1_val.json").write_text(json.dumps(lvis_document()))
    for name in ("val2017/000007.jpg", "train2017/000008.jpg"):
        picture = tmp_path / "coco" / (name if split_folders else Path(name).name)
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 50)).save(picture)
    dataset: Any = open_reader(f"lvis:{tmp_path},images={tmp_path / 'coco'}")
    assert dataset.class_names == ("bow (weapon)", "Christmas tree")
    assert [category["frequency"] for category in dataset.categories] == ["r", "c"]
    assert [dataset[i].regions[0].text for i in range(2)] == ["bow (weapon)", "Christmas tree"]
    assert dataset[1].regions[0].source == "lvis"
    assert [dataset[i].pixels().shape for i in range(2)] == [(50, 100, 3)] * 2


def test_lvis_without_pictures_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lvis_v1_val.json"
    path.write_text(json.dumps(lvis_document()))
    with pytest.raises(FileNotFoundError, match=r"'000007\.jpg'; looked in"):
        open_reader(f"lvis:{path}")
    path.write_text(json.dumps(lvis_document() | {"images": [{"id": 7, "width": 1, "height": 1}]}))
    with pytest.raises(ValueError, match="image 7 has neither file_name nor coco_url"):
        open_reader(f"lvis:{path}")


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


def test_box_problems_by_hand() -> None:
    boxes = np.array(
        [
            [0.1, 0.1, 0.2, 0.2],
            [np.nan, 0, 1, 1],
            [0.5, 0.1, 0.4, 0.2],
            [0.5, 0.1, 1.2, 0.2],
            [-0.0009, 0, 1.0009, 1],
            [-0.009, 0, 1, 1],
            [0.3, 0.3, 0.3, 0.6],
            [1.0, 0.2, 1.0005, 0.4],
        ]
    )
    expected = [OK, NOT_FINITE, INVERTED, OUTSIDE, OK, OUTSIDE, EMPTY, EMPTY]
    assert box_problems(boxes).tolist() == expected
    assert box_problems(boxes, (100, 100)).tolist() == [*expected[:5], OK, *expected[6:]]  # within a pixel
    assert box_problems(np.empty((0, 4))).tolist() == []


@settings(deadline=None)
@given(
    st.tuples(*[st.floats(0, 90)] * 2, *[st.floats(1, 10)] * 2),
    st.sampled_from(["xyxy", "xywh", "cxcywh"]),
    st.booleans(),
)
def test_every_declared_format_gives_the_same_region(xywh: tuple, box_format: str, normalized: bool) -> None:
    x, y, w, h = xywh
    forms = {"xyxy": (x, y, x + w, y + h), "xywh": xywh, "cxcywh": (x + w / 2, y + h / 2, w, h)}
    box = np.array(forms[box_format]) / (100 if normalized else 1)
    region = RawRegion(tuple(box), "t", "row 0")
    raw = RawSample("k", b"", (100, 100), "f", (), (region,), box_format, normalized)
    expected = (x / 100, y / 100, (x + w) / 100, (y + h) / 100)
    assert finish(raw).regions[0].box == pytest.approx(expected, abs=1e-9)


class Outside:
    """A reader from outside the package."""

    def __init__(self, path: str, suffix: str = "") -> None:
        self.text = path + suffix

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> RegionSample:
        return RegionSample(self.text, b"")


def test_readers_from_outside_the_package() -> None:
    assert open_reader(f"{__name__}:Outside:some/path,suffix=!")[0].key == "some/path!"
    assert open_reader(f"{__name__}:Outside:a,b/c")[0].key == "a,b/c"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "yolo:data",
            "unknown data 'yolo:data'; expected FORMAT:PATH, FORMAT one of coco, lvis, shards, scenes",
        ),
        ("coco", "unknown data 'coco'"),
        ("coco:x,folder=y", "unknown option 'folder' of format 'coco'; expected one of images, captions"),
        ("shards:x,images=y", "unknown option 'images' of format 'shards'; expected one of cache, cache_gb"),
        ("no.such:Reader:x", "no reader at 'no.such:Reader': No module named 'no'"),
        ("open_cloc.boxes:Nope:x", "no reader at 'open_cloc.boxes:Nope'"),
    ],
)
def test_wrong_specs_are_named(spec: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        open_reader(spec)
    assert message in str(caught.value)


def test_bare_paths_are_recognised(tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/00000.tar").touch()
    path = write(tmp_path, document())
    assert guess_spec(str(tmp_path)) == f"coco:{tmp_path}"
    assert guess_spec(str(path)) == f"coco:{path}"
    assert guess_spec(str(tmp_path / "tars")) == f"shards:{tmp_path / 'tars'}"
    assert guess_spec("x/{00000..00003}.tar") == "shards:x/{00000..00003}.tar"
    assert guess_spec("scenes:val") == "scenes:val"
    assert guess_spec("my.module:Reader:x") == "my.module:Reader:x"
    with pytest.raises(FileNotFoundError, match="neither an existing path nor FORMAT:PATH"):
        guess_spec(str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds nothing known"):
        guess_spec(str(tmp_path / "empty"))
    (tmp_path / "00000.tar").touch()
    with pytest.raises(ValueError, match="looks like shards and like coco; give the format as FORMAT:"):
        guess_spec(str(tmp_path))
