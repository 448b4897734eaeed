"""One data set by every route: what tools write of it is the same samples again."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import pytest

from open_cloc.data.readers import open_reader
from open_cloc.samples import RegionSample

COCO128 = Path(__file__).resolve().parents[4] / "shared/data/coco128"
PIXEL = 0.02  # VOC and YOLO are written to some digits


def document() -> tuple[dict[str, Any], dict[int, list[dict[str, Any]]], list[str]]:
    """The JSON, its annotations by image, and names of categories in order."""
    found = json.loads((COCO128 / "instances_train2017.json").read_text())
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in found["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    return found, by_image, [category["name"] for category in found["categories"]]


def copy_pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    for picture in (COCO128 / "images").rglob("*.jpg"):
        shutil.copyfile(picture, folder / picture.name)


def as_yolo(folder: Path) -> str:
    found, by_image, names = document()
    copy_pictures(folder / "images")
    (folder / "labels").mkdir()
    numbers = {category["id"]: number for number, category in enumerate(found["categories"])}
    for image in found["images"]:
        lines = []
        for annotation in by_image[image["id"]]:
            x, y, w, h = annotation["bbox"]
            shares = ((x + w / 2) / image["width"], (y + h / 2) / image["height"])
            shares += (w / image["width"], h / image["height"])
            lines.append(f"{numbers[annotation['category_id']]} " + " ".join(f"{s:.8f}" for s in shares))
        (folder / "labels" / Path(image["file_name"]).with_suffix(".txt").name).write_text("\n".join(lines))
    named = "".join(f"  {number}: {json.dumps(name)}\n" for number, name in enumerate(names))
    (folder / "data.yaml").write_text(f"path: {folder}\ntrain: images\nval: images\nnames:\n{named}")
    return f"yolo:{folder / 'data.yaml'},split=train"


def as_voc(folder: Path) -> str:
    found, by_image, _ = document()
    copy_pictures(folder / "JPEGImages")
    (folder / "Annotations").mkdir()
    names = {category["id"]: category["name"] for category in found["categories"]}
    for image in found["images"]:
        objects = []
        for annotation in by_image[image["id"]]:
            x, y, w, h = annotation["bbox"]
            ends = {"xmin": x, "ymin": y, "xmax": x + w, "ymax": y + h}
            box = "".join(f"<{name}>{value:.3f}</{name}>" for name, value in ends.items())
            name = escape(names[annotation["category_id"]])
            objects.append(f"<object><name>{name}</name><bndbox>{box}</bndbox></object>")
        size = (
            f"<size><width>{image['width']}</width><height>{image['height']}</height><depth>3</depth></size>"
        )
        name = Path(image["file_name"]).name
        text = f"<annotation><filename>{name}</filename>{size}{''.join(objects)}</annotation>"
        (folder / "Annotations" / Path(name).with_suffix(".xml")).write_text(text)
    return f"voc:{folder}"


def as_table(folder: Path) -> str:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    found, by_image, names = document()
    copy_pictures(folder / "images")
    numbers = {category["id"]: number for number, category in enumerate(found["categories"])}
    rows = [
        {
            "image": f"images/{Path(image['file_name']).name}",
            "objects": {
                "bbox": [list(map(float, a["bbox"])) for a in by_image[image["id"]]],
                "category": [numbers[a["category_id"]] for a in by_image[image["id"]]],
            },
        }
        for image in found["images"]
    ]
    label = {"names": names, "_type": "ClassLabel"}
    features = {"objects": {"feature": {"bbox": {}, "category": label}, "_type": "Sequence"}}
    table = arrow.Table.from_pylist(rows).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    parquet.write_table(table, folder / "train.parquet")
    return f"table:{folder / 'train.parquet'},box_format=xywh"


def by_picture(spec: str) -> dict[str, RegionSample]:
    dataset = open_reader(spec)
    samples = [dataset[index] for index in range(len(dataset))]
    return {Path(str(sample.image)).name: sample for sample in samples}


@pytest.mark.skipif(not COCO128.exists(), reason="../shared/data/coco128 is not here")
@pytest.mark.parametrize("write", [as_yolo, as_voc, as_table])
def test_coco128_is_the_same_by_every_route(tmp_path: Path, write: Callable[[Path], str]) -> None:
    expected = by_picture(f"coco:{COCO128}")
    found = by_picture(write(tmp_path / "route"))
    # A format of files that stand beside pictures has no entry for a picture without boxes.
    assert {name for name, sample in expected.items() if sample.regions} <= set(found) <= set(expected)
    assert sum(len(sample.regions) for sample in found.values()) == 929
    for name, sample in found.items():
        own = expected[name]
        assert [region.text for region in sample.regions] == [region.text for region in own.regions]
        height, width = own.pixels().shape[:2]
        boxes, same = (
            np.array([r.box for r in one.regions]).reshape(-1, 4) * [width, height, width, height]
            for one in (sample, own)
        )
        np.testing.assert_allclose(boxes, same, atol=PIXEL)
        np.testing.assert_array_equal(sample.pixels(), own.pixels())
