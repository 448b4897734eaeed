"""Small pictures, tables and annotation files, as the tests of readers need them."""

from __future__ import annotations

import csv
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
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


def picture_of(folder: Path, name: str, size: tuple[int, int] = (100, 50)) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (40, 80, 120)).save(path)


def write_genome(folder: Path, kind: str = "regions") -> Path:
    """Two pictures, one in each of Visual Genome's folders, as its two files have them."""
    picture_of(folder, "VG_100K/1.jpg")
    picture_of(folder, "VG_100K_2/2.jpg")
    if kind == "regions":
        region = {"region_id": 1382, "width": 20, "height": 10, "image_id": 1, "x": 10, "y": 5}
        document = [
            {"id": 1, "regions": [region | {"phrase": "the clock is green in colour"}]},
            {"id": 2, "regions": [region | {"region_id": 9, "image_id": 2, "phrase": "a red mug"}]},
        ]
        path = folder / "region_descriptions.json"
    else:
        thing = {"object_id": 5, "x": 10, "y": 5, "w": 20, "h": 10, "synsets": ["clock.n.01"]}
        document = [
            {"image_id": 1, "objects": [thing | {"names": ["clock"]}], "image_url": "https://x/1.jpg"},
            {"image_id": 2, "objects": [thing | {"names": ["mug", "cup"]}], "image_url": "https://x/2.jpg"},
        ]
        path = folder / "objects.json"
    path.write_text(json.dumps(document))
    sizes = [{"image_id": number, "width": 100, "height": 50} for number in (1, 2)]
    (folder / "image_data.json").write_text(json.dumps(sizes))
    return path


SENTENCES = """\
[/EN#1/people Two young guys] with [/EN#2/bodyparts shaggy hair] look at [/EN#3/bodyparts their hands] .
[/EN#1/people Two men] stand in [/EN#4/scene a yard] near [/EN#0/notvisual it] .
"""
ENTITIES = """<annotation><filename>1000092795.jpg</filename>
<size><width>100</width><height>50</height><depth>3</depth></size>
<object><name>1</name><bndbox><xmin>10</xmin><ymin>5</ymin><xmax>30</xmax><ymax>15</ymax></bndbox></object>
<object><name>1</name><name>2</name>
<bndbox><xmin>50</xmin><ymin>25</ymin><xmax>100</xmax><ymax>50</ymax></bndbox></object>
<object><name>4</name><scene>1</scene><nobndbox>0</nobndbox></object>
</annotation>"""


def write_flickr30k(folder: Path) -> Path:
    """One picture in the form of Flickr30k Entities."""
    for part, name, content in (
        ("Sentences", "1000092795.txt", SENTENCES),
        ("Annotations", "1000092795.xml", ENTITIES),
    ):
        (folder / part).mkdir()
        (folder / part / name).write_text(content)
    picture_of(folder, "flickr30k-images/1000092795.jpg")
    return folder


def fg_ovd_lines() -> list[dict[str, Any]]:
    """Two boxes of one picture and one of another, each with ten sentences that are wrong."""
    common = {"width": 100, "height": 50, "category_id": 11, "test_type": "3_attributes"}
    return [
        common
        | {
            "img_path": f"val2017/{name}.jpg",
            "bbox": [10.0, 5.0, 20.0, 10.0],
            "pos_expression": [f"A black plastic telephone {number}"],
            "neg_expression": [f"A white plastic telephone {number} {wrong}" for wrong in range(10)],
            "image_id": image,
        }
        for number, (name, image) in enumerate(
            (("000000056288", 56288), ("000000000009", 9), ("000000056288", 56288))
        )
    ]


def write_fg_ovd(folder: Path) -> Path:
    for name in ("000000056288", "000000000009"):
        picture_of(folder, f"coco/val2017/{name}.jpg")
    path = folder / "1_attributes.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in fg_ovd_lines()))
    return path


def reclip_lines() -> list[dict[str, Any]]:
    """Two references of one picture, the second to both of its boxes, in ReCLIP's form."""
    anns = [{"id": 1719310, "bbox": [10, 5, 20, 10]}, {"id": 2, "bbox": [50, 25, 50, 25]}]
    common = {"image_id": 581857, "anns": anns}
    return [
        common
        | {
            "file_name": "COCO_train2014_000000581857_16.jpg",
            "ann_id": 1719310,
            "sentences": [{"raw": "the lady with the blue shirt"}, {"raw": "Lady"}],
        },
        common
        | {
            "file_name": "COCO_train2014_000000581857_17.jpg",
            "ann_id": ["1719310", 2],
            "sentences": [{"raw": "both"}],
        },
    ]


def write_reclip(folder: Path) -> Path:
    picture_of(folder, "train2014/COCO_train2014_000000581857.jpg")
    path = folder / "refcoco_val.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in reclip_lines()))
    return path


def write_refcoco(folder: Path, protocol: int = 2) -> Path:
    """Three references of two pictures as RefCOCO's pickle has them, with COCO's boxes beside it."""
    sentence = {"tokens": ["the", "lady"], "raw": "the lady", "sent_id": 0, "sent": "the lady"}
    common = {"sent_ids": [0], "category_id": 1, "sentences": [sentence]}
    references = [
        common | {"ann_id": 1719310, "ref_id": 0, "image_id": 581857, "split": "val"},
        common | {"ann_id": 2, "ref_id": 1, "image_id": 581857, "split": "val"},
        common | {"ann_id": 7, "ref_id": 2, "image_id": 9, "split": "testA"},
    ]
    for reference in references:
        reference["file_name"] = f"COCO_train2014_{reference['image_id']:012d}_{reference['ref_id']}.jpg"
    (folder / "refs(unc).p").write_bytes(pickle.dumps(references, protocol))
    images = [
        {"id": number, "file_name": f"COCO_train2014_{number:012d}.jpg", "width": 100, "height": 50}
        for number in (581857, 9, 10)
    ]
    annotations = [
        {"id": 1719310, "image_id": 581857, "category_id": 1, "bbox": [10, 5, 20, 10]},
        {"id": 2, "image_id": 581857, "category_id": 1, "bbox": [50, 25, 50, 25]},
        {"id": 3, "image_id": 581857, "category_id": 2, "bbox": [0, 0, 50, 25]},
        {"id": 7, "image_id": 9, "category_id": 1, "bbox": [0, 0, 50, 25]},
    ]
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(document))
    for image in images:
        picture_of(folder, f"train2014/{image['file_name']}")
    return folder


def odvg_lines() -> list[dict[str, Any]]:
    """A grounded caption, one phrase of which has two boxes, and a picture of detections."""
    grounding = {
        "caption": "Two dogs on a mat",
        "regions": [
            {"bbox": [[10, 5, 30, 15], [50, 25, 100, 50]], "phrase": "Two dogs"},
            {"bbox": [0, 0, 100, 50], "phrase": ["a mat", "on"], "tokens_positive": [[12, 17], [9, 11]]},
        ],
    }
    instances = [{"bbox": [10, 5, 30, 15], "label": 3, "category": "motorcycle"}]
    return [
        {"filename": "a.jpg", "height": 50, "width": 100, "grounding": grounding},
        {"filename": "b.jpg", "height": 50, "width": 100, "detection": {"instances": instances}},
    ]


def write_odvg(folder: Path) -> Path:
    for name in ("a.jpg", "b.jpg"):
        picture_of(folder, f"images/{name}")
    path = folder / "flickr_train_vg.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in odvg_lines()))
    return path


def karpathy_document() -> dict[str, Any]:
    """Three pictures of two splits, two captions each, as `dataset_coco.json` has them."""
    images = [
        {
            "filepath": "val2014",
            "filename": f"COCO_val2014_{number:012d}.jpg",
            "sentids": [1, 2],
            "imgid": number,
            "cocoid": number,
            "split": split,
            "sentences": [
                {"tokens": ["a", "dog"], "raw": f"A dog {number}.", "imgid": number, "sentid": 1},
                {"tokens": ["one"], "raw": f" One {number}", "imgid": number, "sentid": 2},
            ],
        }
        for number, split in ((1, "test"), (2, "restval"), (3, "test"))
    ]
    return {"dataset": "coco", "images": images}


def write_karpathy(folder: Path) -> Path:
    for number in (1, 2, 3):
        picture_of(folder, f"val2014/COCO_val2014_{number:012d}.jpg")
    path = folder / "dataset_coco.json"
    path.write_text(json.dumps(karpathy_document()))
    return path


def flair_document() -> dict[str, Any]:
    rows = [
        ("docci/test_00731.jpg", "first"),
        ("docci/test_2.jpg", "other"),
        ("docci/test_00731.jpg", "second"),
    ]
    return {
        "annotations": [
            {"image_id": number % 2, "image": name, "caption": text, "caption_id": number}
            for number, (name, text) in enumerate(rows)
        ]
    }


def write_flair(folder: Path) -> Path:
    for name in ("test_00731.jpg", "test_2.jpg"):
        picture_of(folder, f"images/docci/{name}")
    path = folder / "docci_retrieval.json"
    path.write_text(json.dumps(flair_document()))
    return path


def sharegpt4v_document() -> list[dict[str, Any]]:
    return [
        {
            "id": f"sa_{number}",
            "image": f"sam/images/sa_{number}.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat do you see?"},
                {"from": "gpt", "value": f"A long caption of picture {number}."},
            ],
        }
        for number in (1, 2, 3)
    ]


def write_sharegpt4v(folder: Path, below: str = "") -> Path:
    for number in (1, 2, 3):
        picture_of(folder, f"images/{below}sa_{number}.jpg")
    path = folder / "share-captioner.json"
    path.write_text(json.dumps(sharegpt4v_document()))
    return path


def write_urban1k(folder: Path) -> Path:
    (folder / "caption").mkdir()
    for number in (1, 2):
        picture_of(folder, f"image/{number}.jpg")
        (folder / "caption" / f"{number}.txt").write_text(f"A street, {number} of a thousand.\n")
    return folder


def write_dci(folder: Path) -> Path:
    (folder / "annotations").mkdir()
    for number in (7, 8):
        picture_of(folder, f"photos/sa_{number}.jpg")
        document = {
            "image": f"sa_{number}.jpg",
            "short_caption": f"short {number}",
            "extra_caption": f"A very long caption of {number}.",
            "mask_data": {"0": {"mask": "x" * 100}},
        }
        (folder / "annotations" / f"{number}-data.json").write_text(json.dumps(document))
    splits = {"train": ["8-data.json"], "test": ["7-data.json"]}
    (folder / "splits.json").write_text(json.dumps(splits))
    return folder


VOC = """<annotation><folder>VOC2012</folder><filename>2008_000008.jpg</filename>
<size><width>100</width><height>50</height><depth>3</depth></size><segmented>0</segmented>
<object><name>horse</name><pose>Left</pose><truncated>0</truncated><difficult>0</difficult>
<bndbox><xmin>10</xmin><ymin>5</ymin><xmax>30</xmax><ymax>15</ymax></bndbox></object>
<object><name>person</name><part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax>
<ymax>2</ymax></bndbox></part>
<bndbox><xmax>100</xmax><xmin>50</xmin><ymax>50</ymax><ymin>25</ymin></bndbox></object>
</annotation>"""


def write_voc(folder: Path) -> Path:
    """One picture in Pascal VOC's layout."""
    (folder / "Annotations").mkdir(parents=True)
    (folder / "Annotations" / "2008_000008.xml").write_text(VOC)
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "val.txt").write_text("2008_000008\n")
    picture_of(folder, "JPEGImages/2008_000008.jpg")
    return folder


def panoptic_document() -> dict[str, Any]:
    """Two pictures, three segments and a crowd."""
    segments = [
        {"id": 3226956, "category_id": 1, "iscrowd": 0, "bbox": [10, 5, 20, 10], "area": 150},
        {"id": 7, "category_id": 92, "iscrowd": 0, "bbox": [50, 25, 50, 25], "area": 900},
        {"id": 8, "category_id": 1, "iscrowd": 1, "bbox": [0, 0, 100, 50], "area": 900},
    ]
    names = {139: "000000000139", 285: "000000000285"}
    return {
        "images": [
            {"id": number, "file_name": f"{name}.jpg", "height": 50, "width": 100}
            for number, name in names.items()
        ],
        "annotations": [
            {"image_id": 139, "file_name": f"{names[139]}.png", "segments_info": segments},
            {"image_id": 285, "file_name": f"{names[285]}.png", "segments_info": segments[:1]},
        ],
        "categories": [
            {"id": 1, "name": "person", "isthing": 1, "supercategory": "person"},
            {"id": 92, "name": "banner", "isthing": 0, "supercategory": "textile"},
        ],
    }


def write_panoptic(folder: Path) -> Path:
    for name in ("000000000139", "000000000285"):
        picture_of(folder, f"val2017/{name}.jpg")
    path = folder / "panoptic_val2017.json"
    path.write_text(json.dumps(panoptic_document()))
    return path


def write_map(file: Path, numbers: Any, palette: bool = False) -> None:
    """A label map, in colours of a palette or not; numbers (H, W) or segments' ids of panoptic PNGs."""
    file.parent.mkdir(parents=True, exist_ok=True)
    values = np.asarray(numbers)
    if values.max() > 255:
        colours = np.stack([values % 256, values // 256 % 256, values // 65536], -1).astype(np.uint8)
        Image.fromarray(colours).save(file)
        return
    picture = Image.fromarray(values.astype(np.uint8))
    if palette:
        picture = picture.convert("P")
        picture.putpalette([(7 * n) % 256 for n in range(768)])
        picture.putdata(values.astype(np.uint8).ravel().tolist())
    picture.save(file)


def write_masks(folder: Path) -> str:
    """Two pictures of ADE20k's layout with two classes; returns the spec behind `masks:`."""
    for name in ("ADE_val_00000001", "ADE_val_00000002"):
        picture_of(folder, f"images/validation/{name}.jpg")
        numbers = np.zeros((50, 100), np.uint8)
        numbers[:25], numbers[25:, :50] = 1, 2
        write_map(folder / f"annotations/validation/{name}.png", numbers)
    (folder / "classes.txt").write_text("wall\nbuilding, edifice\n")
    labels = f"labels={folder / 'annotations/validation'},classes={folder / 'classes.txt'}"
    return f"{folder / 'images/validation'},{labels},first=1"


def write_open_images(folder: Path) -> Path:
    """Rows as the data set has them: shares, XMax before YMin, a group, a label in two rows."""
    head = (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,"
        "IsInside\n"
    )
    rows = [
        "0001eeaf4aed83f9,xclick,/m/0cmf2,1,0.022673031,0.9642005,0.07103825,0.80054647,0,0,0,0,0",
        "000595fe6fee6369,xclick,/m/02wbm,1,0,1,0,1,0,0,1,0,0",
        "000595fe6fee6369,xclick,/m/0cmf2,1,0.1,0.3,0.5,0.9,0,0,0,0,0",
        "0001eeaf4aed83f9,xclick,/m/02wbm,1,0.5,0.75,0.25,0.5,0,0,0,0,0",
    ]
    path = folder / "validation-annotations-bbox.csv"
    path.write_text(head + "\n".join(rows) + "\n")
    (folder / "class-descriptions-boxable.csv").write_text("/m/0cmf2,Airplane\n/m/02wbm,Food\n")
    for name in ("0001eeaf4aed83f9", "000595fe6fee6369"):
        picture_of(folder, f"validation/{name}.jpg")
    return path


OBJECTS365 = ("images/v2/patch16/objects365_v2_00908726.jpg", "images/v1/patch8/objects365_v1_00420917.jpg")


def objects365_document() -> dict[str, Any]:
    """COCO's form with the data set's own file names."""
    return {
        "images": [
            {"id": n, "file_name": name, "height": 50, "width": 100, "url": "", "license": 5}
            for n, name in enumerate(OBJECTS365)
        ],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 7, "bbox": [10.5, 5, 20, 10], "area": 200, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 93, "bbox": [0, 0, 100, 50], "area": 5000, "iscrowd": 1},
        ],
        "categories": [{"id": 7, "name": "Cabinet/shelf"}, {"id": 93, "name": "Knife"}],
    }


def write_objects365(folder: Path) -> Path:
    """Pictures in patches, as the archives unpack."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    path = folder / "annotations" / "zhiyuan_objv2_val.json"
    path.write_text(json.dumps(objects365_document()))
    for name in OBJECTS365:
        picture_of(folder, f"val/{name.removeprefix('images/v2/').removeprefix('images/v1/')}")
    return path


def write_grefcoco(folder: Path) -> Path:
    """References as gRefCOCO's JSON has them: one box, two boxes, and none."""
    write_refcoco(folder)
    (folder / "refs(unc).p").unlink()

    def sentence(raw: str, number: int) -> dict[str, Any]:
        return {"tokens": raw.split(), "raw": raw, "sent_id": number, "sent": raw, "exist": True}

    common = {"split": "val", "category_id": [1], "no_target": False}
    references = [
        common
        | {"ref_id": 0, "image_id": 581857, "ann_id": [1719310, 2], "sentences": [sentence("both", 0)]},
        common | {"ref_id": 1, "image_id": 581857, "ann_id": [3], "sentences": [sentence("a dog", 1)]},
        common
        | {
            "ref_id": 2,
            "image_id": 581857,
            "ann_id": [-1],
            "no_target": True,
            "sentences": [sentence("cow", 2)],
        },
        common
        | {"ref_id": 3, "image_id": 9, "ann_id": [7], "split": "testA", "sentences": [sentence("he", 3)]},
    ]
    path = folder / "grefs(unc).json"
    path.write_text(json.dumps(references))
    return path


def mdetr_document() -> dict[str, Any]:
    """Two expressions of one picture, as MDETR's files repeat it."""
    name = "COCO_train2014_000000581857.jpg"
    return {
        "images": [
            {
                "file_name": name,
                "height": 50,
                "width": 100,
                "id": number,
                "original_id": 581857,
                "caption": caption,
                "dataset_name": "refcoco",
                "tokens_negative": [[0, len(caption)]],
            }
            for number, caption in enumerate(["the lady with the blue shirt", "dog"])
        ],
        "annotations": [
            {
                "area": 200,
                "iscrowd": 0,
                "image_id": n,
                "category_id": 1,
                "id": n,
                "bbox": box,
                "original_id": n + 5,
            }
            for n, box in enumerate([[10, 5, 20, 10], [50, 25, 50, 25]])
        ],
        "categories": [{"supercategory": "person", "id": 1, "name": "person"}],
        "info": [],
    }


def write_mdetr(folder: Path) -> Path:
    path = folder / "finetune_refcoco_val.json"
    path.write_text(json.dumps(mdetr_document()))
    picture_of(folder, "train2014/COCO_train2014_000000581857.jpg")
    return path


def refcoco_rows() -> list[dict[str, Any]]:
    """References as `jxu124/refcoco` has them: two of one picture, one of another."""
    rows = []
    for number, (image, corners, split) in enumerate(
        [(581857, [10, 5, 30, 15], "val"), (581857, [50, 25, 100, 50], "val"), (9, [0, 0, 50, 25], "testA")]
    ):
        sides = [corners[0], corners[1], corners[2] - corners[0], corners[3] - corners[1]]
        sentences = [f"the lady {number}", f"woman {number}"]
        rows.append(
            {
                "sent_ids": [2 * number, 2 * number + 1],
                "file_name": f"COCO_train2014_{image:012d}_{number}.jpg",
                "ann_id": number + 40,
                "ref_id": number,
                "image_id": image,
                "split": split,
                "sentences": [
                    {"raw": text, "sent": text, "sent_id": number, "tokens": text.split()}
                    for text in sentences
                ],
                "category_id": 1,
                "raw_anns": json.dumps({"id": number + 40, "image_id": image, "bbox": sides}),
                "image_path": f"coco/train2014/COCO_train2014_{image:012d}.jpg",
                "bbox": [float(side) for side in corners],
            }
        )
    return rows


def write_refcoco_table(folder: Path) -> Path:
    for number in (581857, 9):
        picture_of(folder, f"train2014/COCO_train2014_{number:012d}.jpg")
    return write_table(folder / "validation.parquet", refcoco_rows())


def held_rows() -> list[dict[str, Any]]:
    """References as `lmms-lab/RefCOCO` has them, each with its picture of 6 by 4 pixels."""
    return [
        {
            "question_id": f"{number}",
            "image": {"bytes": encoded(number), "path": None},
            "question": "Please give a phrase for the box",
            "answer": ["the lady", f"woman {number}"],
            "segmentation": [0.0, 0.0, 1.0, 1.0],
            "bbox": [1.0, 1.0, 3.0, 2.0],
            "iscrowd": 0,
            "file_name": f"COCO_train2014_{number:012d}_0.jpg",
        }
        for number in range(2)
    ]


def fg_ovd_document() -> dict[str, Any]:
    """The same sentences as `fg_ovd_lines` has, as the benchmark's own JSON has them: names of categories."""
    lines = fg_ovd_lines()
    sentences = [text for line in lines for text in (*line["pos_expression"], *line["neg_expression"])]
    numbers = {text: number + 1 for number, text in enumerate(sentences)}
    return {
        "images": [
            {"id": own, "file_name": name, "width": 100, "height": 50}
            for own, name in {line["image_id"]: line["img_path"] for line in lines}.items()
        ],
        "annotations": [
            {
                "id": number,
                "image_id": line["image_id"],
                "bbox": line["bbox"],
                "category_id": numbers[line["pos_expression"][0]],
                "neg_category_ids": [numbers[text] for text in line["neg_expression"]],
            }
            for number, line in enumerate(lines)
        ],
        "categories": [{"id": number, "name": text} for text, number in numbers.items()],
    }


def finehard_rows() -> list[dict[str, Any]]:
    """Two pictures as FineHARD has them; behind the box stands a score."""
    return [
        {
            "f_path": f"part/{number}.jpg",
            "caption": f"A long caption of {number}.",
            "short_caption": f"short {number}",
            "bbox_info": [
                {
                    "bbox": [0.1, 0.1, 0.3, 0.3, 0.71],
                    "short_expr": "a red mug",
                    "long_expr": "a red mug with a white handle",
                    "flag_short_neg": 1,
                    "short_expr_negs": {"0": "a blue mug", "1": "a red bowl"},
                },
                {
                    "bbox": [0.5, 0.5, 1.0, 1.0, 0.4],
                    "short_expr": "a table",
                    "long_expr": "a table",
                    "flag_short_neg": 0,
                    "short_expr_negs": {"0": "a chair"},
                },
            ],
        }
        for number in range(2)
    ]


def write_finehard(folder: Path) -> Path:
    for row in finehard_rows():
        picture_of(folder, row["f_path"])
    path = folder / "url2key_jsons.json"
    path.write_text(json.dumps(finehard_rows()))
    return path


SYNSETS = """n01440764 tench, Tinca tinca
n01443537 goldfish, Carassius auratus
n01484850 great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias
n01491361 tiger shark, Galeocerdo cuvieri
"""


def write_class_folders(folder: Path) -> Path:
    """ImageNet's `val` in folders, with Kaggle's list of words above it; one folder is empty."""
    (folder / "LOC_synset_mapping.txt").write_text(SYNSETS)
    names = ("n01440764/ILSVRC2012_val_00000293.JPEG", "n01440764/ILSVRC2012_val_00002138.JPEG")
    pictures(folder / "val", *names, "n01443537/ILSVRC2012_val_00000236.JPEG")
    (folder / "val/n01484850").mkdir()
    return folder / "val"
