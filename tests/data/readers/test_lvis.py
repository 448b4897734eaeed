"""LVIS's annotations: where their pictures lie and what their categories are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from open_cloc.data.readers import open_reader
from tests.data.readers.made import annotation


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
