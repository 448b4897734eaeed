"""COCO's annotations: boxes, texts, captions, pictures, and what is wrong with a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from open_cloc.data.readers import guess_spec, open_reader
from tests.data.readers.made import annotation, coco_document, write_coco

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


@pytest.mark.parametrize("layout", ["images", "images/val", "val", "."])
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
    assert dataset.dropped == {"crowd": 1, "without area": 1}
    assert [r.box for r in dataset[0].regions] == [pytest.approx((0.01, 0.02, 0.03, 0.06))]
    assert len(dataset.raw(0).regions) == 2  # the check still sees it


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
        ({"images": coco_document()["images"] * 2}, "image id 7 occurs 2 times"),
    ],
)
def test_wrong_coco_documents_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_coco(tmp_path, coco_document(**changes))
    with pytest.raises(ValueError, match=message) as caught:
        open_reader(f"coco:{path}")
    assert str(path) in str(caught.value)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "instances_x.json"
    broken.write_text('{"images": [')
    with pytest.raises(ValueError, match=r"instances_x\.json is not valid JSON"):
        open_reader(f"coco:{broken}")
    with pytest.raises(FileNotFoundError, match="no such annotation file or folder"):
        open_reader(f"coco:{tmp_path / 'absent.json'}")
    (tmp_path / "instances_y.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"exactly one instances\*\.json .*instances_x\.json, instances_y\.json"
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
