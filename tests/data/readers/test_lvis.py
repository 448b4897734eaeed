"""LVIS's annotations: where their pictures lie and what their categories are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from open_cloc.data.readers import guess_spec, open_reader
from tests.data.readers.made import lvis_document, write_lvis


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
    with pytest.raises(ValueError, match="image 7: has neither file_name nor coco_url"):
        open_reader(f"lvis:{path}")


def test_one_name_in_two_parts_is_two_pictures(tmp_path: Path) -> None:
    document = lvis_document()
    for image, part in zip(document["images"], ("val2017", "train2017")):
        image["coco_url"] = f"http://images.cocodataset.org/{part}/1.jpg"
        picture = tmp_path / "images" / part / "1.jpg"
        picture.parent.mkdir(parents=True)
        Image.new("RGB", (100, 50)).save(picture)
    Image.new("RGB", (100, 50)).save(tmp_path / "images/1.jpg")
    (tmp_path / "lvis_v1_val.json").write_text(json.dumps(document))
    dataset: Any = open_reader(f"lvis:{tmp_path}")
    assert [dataset[i].image.parent.name for i in range(2)] == ["val2017", "train2017"]


def test_a_bare_file_whose_pictures_come_first_is_lvis(tmp_path: Path) -> None:
    """Its pictures have lists `neg_category_ids`, which FG-OVD's boxes have, too."""
    path = write_lvis(tmp_path)
    document = lvis_document()
    for image in document["images"]:
        image |= {"neg_category_ids": [2], "not_exhaustive_category_ids": []}
    path.write_text(json.dumps(document))
    assert guess_spec(str(path)) == f"lvis:{path}"
    one = document["annotations"][0]
    one |= {"segmentation": {"counts": "a", "size": [50, 100]}, "neg_category_ids": [2]}
    path.write_text(json.dumps(document))
    assert guess_spec(str(path)) == f"fg_ovd:{path}"
