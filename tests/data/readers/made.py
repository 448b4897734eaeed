"""Small pictures, tables and annotation files, as the tests of readers need them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from open_cloc.data.readers import SampleDataset


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


def coco_document(**changes: Any) -> dict[str, Any]:
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


def write_coco(folder: Path, contents: dict[str, Any], name: str = "instances_tiny.json") -> Path:
    for image in contents.get("images", []):
        picture = folder / "images" / image.get("file_name", "x.jpg")
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 50)).save(picture)
    path = folder / name
    path.write_text(json.dumps(contents))
    return path


def annotation(box: list[Any], **changes: Any) -> dict[str, Any]:
    return {"id": 912, "image_id": 7, "category_id": 1, "bbox": box} | changes


def write_yolo(folder: Path, lines: dict[str, list[str] | None], extra: str = "") -> Path:
    """Pictures by name with the lines of their text files, None for a picture without one."""
    pictures(folder / "images/train", *(f"{name}.png" for name in lines))
    for name, own in lines.items():
        if own is not None:
            label = folder / "labels/train" / f"{name}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("\n".join(own))
    config = folder / "data.yaml"
    config.write_text(f"train: images/train\nval: images/train\nnames:\n  0: red mug\n  1: cat\n{extra}\n")
    return config


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


def write_lvis(folder: Path) -> Path:
    """`lvis_document` with its pictures in a folder for each of COCO's parts."""
    for name in ("val2017/000007.jpg", "train2017/000008.jpg"):
        picture = folder / "images" / name
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 50)).save(picture)
    path = folder / "lvis_v1_val.json"
    path.write_text(json.dumps(lvis_document()))
    return path
