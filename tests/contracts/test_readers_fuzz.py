"""Odd values at random places of sound data: whatever stands in files, no reader fails but by a `UserError`.

`FUZZ_EXAMPLES=5000` tries more than the few that a usual run has time for.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import math
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from open_cloc.data.annotations import raw_sample
from open_cloc.data.bad_samples import read_usable
from open_cloc.data.check import check_dataset
from open_cloc.data.readers import open_reader
from open_cloc.errors import UserError
from tests.data.readers.made import (
    ENTITIES,
    SENTENCES,
    VOC,
    coco_document,
    encoded,
    fg_ovd_document,
    fg_ovd_lines,
    finehard_rows,
    flair_document,
    held_rows,
    karpathy_document,
    lvis_document,
    mdetr_document,
    objects365_document,
    odvg_lines,
    panoptic_document,
    picture_of,
    pictures,
    reclip_lines,
    refcoco_rows,
    sharegpt4v_document,
    write_coco,
    write_dci,
    write_fg_ovd,
    write_finehard,
    write_flair,
    write_genome,
    write_grefcoco,
    write_karpathy,
    write_lvis,
    write_mdetr,
    write_objects365,
    write_odvg,
    write_open_images,
    write_panoptic,
    write_reclip,
    write_refcoco_table,
    write_sharegpt4v,
)

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
DEEP = "a list in a list in a list"  # stands for what no encoder writes

ODD = st.one_of(
    st.sampled_from(
        [
            *(None, True, False, 0, -1, 1, 7.0, 0.5, 1e308, -1e308, math.nan, math.inf, 10**400, 2**63, DEEP),
            *("", " ", "7", "007", "7.0", "no", "nan", "\0", "\ud83d", "\x1b[2J", "&lt;b&gt;", "é" * 5000),
            *(
                "../../etc/passwd",
                "/dev/zero",
                "/",
                "..",
                "http://x/y.jpg",
                "data:image/png;base64,AA",
                "a\\b",
            ),
            *([], {}, [None], [[]], {"a": 1}, [1, 2, 3, 4], [1, 2, 3, 4, 5], ["x"] * 4, [math.nan] * 4),
            *(
                [1e300, 1, 1e300, 1],
                [-5, -5, 3, 3],
                {"bytes": 7, "path": 7},
                {"bytes": None, "path": "a.png"},
            ),
        ]
    ),
    st.text(max_size=8),
    st.integers(),
    st.floats(),
)


def places(document: Any, path: tuple = ()) -> Iterator[tuple]:
    """Paths to everything in a document but itself."""
    inside: Any = ()
    if isinstance(document, dict):
        inside = document.items()
    elif isinstance(document, list):
        inside = enumerate(document)
    for name, part in inside:
        yield (*path, name)
        yield from places(part, (*path, name))


@st.composite
def spoiled(draw: st.DrawFn, document: Any) -> Any:
    """A document with one to three odd values, absent keys, or repeated entries."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(document)) or [()]))
        if not path:
            break
        holder = document
        for name in path[:-1]:
            holder = holder[name]
        action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "repeat", "rename"]))
        if action == "remove":
            del holder[path[-1]]
        elif action == "repeat" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[path[-1]]))
        elif action == "rename" and isinstance(holder, dict):
            holder[draw(st.text(max_size=4))] = holder.pop(path[-1])
        else:
            holder[path[-1]] = copy.deepcopy(draw(ODD))
    return document


def as_json(document: Any) -> bytes:
    text = json.dumps(document)
    return text.replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000).encode()


def _coco(folder: Path, document: Any) -> str:
    (folder / "instances.json").write_bytes(as_json(document))
    return f"coco:{folder / 'instances.json'}"


def _captions(folder: Path, document: Any) -> str:
    (folder / "captions.json").write_bytes(as_json(document))
    return f"coco:{folder / 'instances_tiny.json'},captions={folder / 'captions.json'}"


def _lvis(folder: Path, document: Any) -> str:
    (folder / "lvis_v1_val.json").write_bytes(as_json(document))
    return f"lvis:{folder / 'lvis_v1_val.json'}"


def _yolo(folder: Path, document: Any) -> str:
    lines = document.get("lines") if isinstance(document, dict) else None
    rows = (
        [words if isinstance(words, list) else [words] for words in lines] if isinstance(lines, list) else ()
    )
    text = "\n".join(" ".join(repr(word).strip("'") for word in words) for words in rows)
    (folder / "labels").mkdir(exist_ok=True)
    (folder / "labels/a.txt").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        config = yaml.safe_dump(document)
    except (yaml.YAMLError, ValueError):  # numbers of 400 digits, half characters
        config = json.dumps(document)
    (folder / "data.yaml").write_bytes(config.encode("utf-8", "surrogatepass"))
    return f"yolo:{folder}"


def _json_lines(folder: Path, document: Any) -> str:
    rows = document if isinstance(document, list) else [document]
    (folder / "a.jsonl").write_bytes(b"\n".join(map(as_json, rows)))
    return f"table:{folder / 'a.jsonl'}"


def _json_list(folder: Path, document: Any) -> str:
    (folder / "a.json").write_bytes(as_json(document))
    return f"table:{folder / 'a.json'}"


def _csv(folder: Path, document: Any) -> str:
    rows = [row for row in document if isinstance(row, dict)]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    (folder / "a.csv").write_bytes(stream.getvalue().encode("utf-8", "surrogatepass"))
    return f"table:{folder / 'a.csv'}"


def _parquet(folder: Path, document: Any) -> str:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [row for row in document if isinstance(row, dict)]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = {}
    for name in columns:
        values = [row.get(name) for row in rows]
        try:
            table[name] = arrow.array(values)
            # Parquet takes less than Arrow does: no object without a field.
            parquet.write_table(arrow.table({name: table[name]}), arrow.BufferOutputStream())
        except (arrow.ArrowException, OverflowError, ValueError, TypeError):
            table[name] = arrow.array([json.dumps(value, default=repr) for value in values])
    parquet.write_table(arrow.table(table), folder / "a.parquet")
    return f"table:{folder / 'a.parquet'}"


def _folder(folder: Path, document: Any) -> str:
    parts = document if isinstance(document, dict) else {}
    (folder / "a.json").write_bytes(as_json(parts.get("a")))
    rows = parts.get("rows")
    (folder / "metadata.jsonl").write_bytes(b"\n".join(map(as_json, rows if isinstance(rows, list) else ())))
    return f"folder:{folder}"


def _class_folders(folder: Path, document: Any) -> str:
    pictures(folder / "val", "n01440764/a.JPEG", "n01443537/b.JPEG")
    lines = document if isinstance(document, list) else [document]
    text = "\n".join(line if isinstance(line, str) else repr(line)[:1000] for line in lines)
    (folder / "names.txt").write_bytes(text.encode("utf-8", "surrogatepass"))
    return f"class_folders:{folder / 'val'},names={folder / 'names.txt'}"


def _shards(folder: Path, document: Any) -> str:
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for name, content in (("a.png", encoded(0)), ("a.json", as_json(document)), ("b.png", encoded(1))):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return f"shards:{folder}"


def _genome(folder: Path, document: Any, name: str) -> str:
    (folder / name).write_bytes(as_json(document))
    return f"visual_genome:{folder / name}"


def _flickr30k(folder: Path, document: Any) -> str:
    """Each picture's two files; what is no text is written as it prints."""
    for part in ("Sentences", "Annotations"):
        shutil.rmtree(folder / part, ignore_errors=True)
        (folder / part).mkdir()
    for name, files in document.items() if isinstance(document, dict) else ():
        if name in ("1", "2") and isinstance(files, list):
            for part, suffix, content in zip(("Sentences", "Annotations"), ("txt", "xml"), files):
                text = content if isinstance(content, str) else repr(content)[:1000]
                (folder / part / f"{name}.{suffix}").write_bytes(text.encode("utf-8", "surrogatepass"))
    return f"flickr30k:{folder}"


def _voc(folder: Path, document: Any) -> str:
    shutil.rmtree(folder / "Annotations", ignore_errors=True)
    (folder / "Annotations").mkdir()
    for name, content in document.items() if isinstance(document, dict) else ():
        if name in ("1", "2"):
            text = content if isinstance(content, str) else repr(content)[:1000]
            (folder / "Annotations" / f"{name}.xml").write_bytes(text.encode("utf-8", "surrogatepass"))
    return f"voc:{folder}"


def _lines(folder: Path, document: Any, kind: str) -> str:
    rows = document if isinstance(document, list) else [document]
    (folder / "odd.jsonl").write_bytes(b"\n".join(map(as_json, rows)))
    return f"{kind}:{folder / 'odd.jsonl'}"


def _whole(folder: Path, document: Any, kind: str) -> str:
    (folder / "odd.json").write_bytes(as_json(document))
    return f"{kind}:{folder / 'odd.json'}"


def _dci(folder: Path, document: Any) -> str:
    for file in (folder / "annotations").iterdir():
        file.unlink()
    for name, part in document.items() if isinstance(document, dict) else ():
        if name in ("7", "8"):
            (folder / "annotations" / f"{name}-data.json").write_bytes(as_json(part))
    return f"dci:{folder}"


def _open_images(folder: Path, document: Any) -> str:
    rows = [row for row in document if isinstance(row, dict)]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    (folder / "odd.csv").write_bytes(stream.getvalue().encode("utf-8", "surrogatepass"))
    return f"open_images:{folder / 'odd.csv'}"


def _refcoco_table(folder: Path, document: Any) -> str:
    return _parquet(folder, document).replace("table:", "refcoco_table:", 1)


def _references(folder: Path, document: Any) -> str:
    (folder / "grefs(odd).json").write_bytes(as_json(document))
    return f"grefcoco:{folder / 'grefs(odd).json'}"


def _objects(folder: Path, document: Any) -> str:
    return f"{_json_lines(folder, document)},box_format=xywh"


REGION = {"box": [0.1, 0.1, 0.5, 0.5], "text": "mug", "score": 0.5, "source": "me", "span": [0, 5]}
SAMPLE = {
    "caption": "a red mug",
    "captions": ["a red mug", "b"],
    "key": "a",
    "status": "success",
    "width": 6,
    "height": 4,
    "original_width": 6,
    "original_height": 4,
    "similarity": 0.3,
    "box_format": "xyxy_norm",
    "regions": [REGION, REGION | {"role_texts": [{"text": "no", "role": "negative"}]}],
}
ROWS = [
    {
        "image": f"{name}.png",
        "text": f"a {name}",
        "id": number,
        "score": 0.5,
        "tags": ["x"],
        "bbox": [0, 0, 1, 1],
    }
    for number, name in enumerate("ab")
]
CAPTIONS = {"annotations": [{"image_id": 7, "caption": "a mug", "id": 1}, {"image_id": 3, "caption": "b"}]}
YOLO = {
    "path": ".",
    "train": "images",
    "val": ["images"],
    "names": ["mug", "cat"],
    "nc": 2,
    "lines": [[0, 0.5, 0.5, 0.2, 0.2], [1, 0.5, 0.5, 1, 1, 0.5], [0, 0.1, 0.1, 0.5, 0.1, 0.5, 0.5]],
}
DCI = {"image": "sa_7.jpg", "short_caption": "a", "extra_caption": "b", "mask_data": {"0": [1]}}
KARPATHY = {"images": [image for image in karpathy_document()["images"] if image["split"] == "test"]}
RECLIP = [line | {"image_id": number} for number, line in enumerate(reclip_lines())]
_REGION = {"region_id": 1382, "width": 20, "height": 10, "image_id": 1, "x": 10, "y": 5, "phrase": "a mug"}
GENOME = [{"id": 1, "regions": [_REGION]}, {"id": 2, "regions": [_REGION | {"image_id": 2}]}]
_ROW = {"ImageID": "0001eeaf4aed83f9", "LabelName": "/m/0cmf2", "IsGroupOf": 0}
_ROW |= {"XMin": 0.1, "XMax": 0.5, "YMin": 0.2, "YMax": 0.9}
OPEN_IMAGES = [_ROW, _ROW | {"ImageID": "000595fe6fee6369", "LabelName": "/m/02wbm"}]
OBJECTS365 = objects365_document()
_SENTENCE = {"tokens": ["a"], "raw": "a dog", "sent_id": 1, "sent": "a dog"}
REFERENCES = [
    {"ref_id": 1, "image_id": 581857, "ann_id": [3, 2], "split": "val", "sentences": [_SENTENCE]},
    {"ref_id": 2, "image_id": 9, "ann_id": 7, "split": "val", "sentences": [_SENTENCE]},
]
OBJECTS = [
    {"image": "a.png", "objects": {"bbox": [[1, 1, 2, 2]], "category": ["mug"]}},
    {"image": "b.png", "objects": [{"bbox": [0, 0, 6, 4], "label": "cat"}]},
]
_OBJECT = {"object_id": 5, "x": 10, "y": 5, "w": 20, "h": 10, "names": ["clock", "watch"]}
GENOME_OBJECTS = [{"image_id": number, "objects": [_OBJECT]} for number in (1, 2)]
SOUND: dict[str, tuple[Any, Callable[[Path, Any], str]]] = {
    "coco": (coco_document(), _coco),
    "captions": (CAPTIONS, _captions),
    "lvis": (lvis_document(), _lvis),
    "yolo": (YOLO, _yolo),
    "json_lines": (ROWS, _json_lines),
    "json_list": (ROWS, _json_list),
    "csv": (ROWS, _csv),
    "parquet": (ROWS, _parquet),
    "folder": ({"a": SAMPLE, "rows": [{"file_name": "b.png", "text": ["b"], "n": 3}]}, _folder),
    "class_folders": (["n01440764 tench, Tinca tinca", "n01443537\tgoldfish"], _class_folders),
    "shards": (SAMPLE, _shards),
    "genome_regions": (GENOME, partial(_genome, name="region_descriptions.json")),
    "genome_objects": (GENOME_OBJECTS, partial(_genome, name="objects.json")),
    "flickr30k": ({"1": [SENTENCES, ENTITIES], "2": [SENTENCES, ENTITIES]}, _flickr30k),
    "panoptic": (panoptic_document(), partial(_whole, kind="panoptic")),
    "voc": ({"1": VOC, "2": VOC}, _voc),
    "fg_ovd": (fg_ovd_lines(), partial(_lines, kind="fg_ovd")),
    "fg_ovd_coco": (fg_ovd_document(), partial(_whole, kind="fg_ovd")),
    "finehard": (finehard_rows(), partial(_whole, kind="finehard")),
    "reclip": (RECLIP, partial(_lines, kind="reclip")),
    "odvg": (odvg_lines(), partial(_lines, kind="odvg")),
    "karpathy": (KARPATHY, partial(_whole, kind="karpathy")),
    "flair": (flair_document(), partial(_whole, kind="flair")),
    "sharegpt4v": (sharegpt4v_document()[:2], partial(_whole, kind="sharegpt4v")),
    "open_images": (OPEN_IMAGES, _open_images),
    "objects365": (OBJECTS365, partial(_whole, kind="objects365")),
    "grefcoco": (REFERENCES, _references),
    "refcoco_table": (refcoco_rows(), _refcoco_table),
    "held_references": (held_rows(), _refcoco_table),
    "mdetr": (mdetr_document(), partial(_whole, kind="mdetr")),
    "objects": (OBJECTS, _objects),
    "dci": ({"7": DCI, "8": DCI | {"image": "sa_8.jpg"}}, _dci),
}


WRITTEN: dict[str, Callable[[Path], Path]] = {
    "reclip": write_reclip,
    "odvg": write_odvg,
    "karpathy": write_karpathy,
    "flair": write_flair,
    "sharegpt4v": write_sharegpt4v,
    "dci": write_dci,
    "panoptic": write_panoptic,
    "open_images": write_open_images,
    "objects365": write_objects365,
    "grefcoco": write_grefcoco,
    "mdetr": write_mdetr,
    "finehard": write_finehard,
    "refcoco_table": write_refcoco_table,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with pictures for each form."""
    made = {form: tmp_path_factory.mktemp(form) for form in SOUND}
    for form, folder in made.items():
        if form in ("coco", "captions"):
            write_coco(folder, coco_document())
        elif form == "lvis":
            write_lvis(folder)
        elif form.startswith("genome"):
            write_genome(folder)
        elif form in ("flickr30k", "voc"):
            for name in ("1", "2"):
                picture_of(
                    folder, f"{'flickr30k-images' if form == 'flickr30k' else 'JPEGImages'}/{name}.jpg"
                )
        elif form.startswith("fg_ovd"):
            write_fg_ovd(folder)
        elif form in WRITTEN:
            WRITTEN[form](folder)
        elif form not in ("shards", "class_folders"):
            pictures(folder / "images" if form == "yolo" else folder, "a.png", "b.png")
    return made


def attempt(step: Callable[[], Any]) -> Any:
    """What a step gives; None where the data are at fault and said to be, anything else passes through."""
    try:
        return step()
    except UserError:
        return None


def read_all(spec: str) -> None:
    """Everything that verbs do with a data set."""
    dataset = attempt(lambda: open_reader(spec))
    if dataset is None:
        return
    for index in range(len(dataset)):
        attempt(lambda: raw_sample(dataset, index))  # noqa: B023
        attempt(lambda: dataset[index].pixels())  # noqa: B023
        sample, problems = read_usable(dataset, index)
        assert sample is not None or problems
        assert all(problem.message and "Error: " not in problem.message for problem in problems)
    check_dataset(dataset)


@pytest.mark.parametrize("form", SOUND)
def test_sound_data_is_read(form: str, folders: dict[str, Path]) -> None:
    document, write = SOUND[form]
    dataset: Any = open_reader(write(folders[form], document))
    assert dataset.problems == []
    assert len(dataset) == 2
    for index in range(2):
        sample, problems = read_usable(dataset, index)
        assert problems == []
        assert sample is not None
        sample.pixels()


@pytest.mark.parametrize("form", SOUND)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_odd_values_are_the_datas_fault(form: str, folders: dict[str, Path], data: st.DataObject) -> None:
    sound, write = SOUND[form]
    read_all(write(folders[form], data.draw(spoiled(sound))))


@pytest.mark.parametrize("form", [form for form in SOUND if form != "parquet"])
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    cuts=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 9), st.binary(max_size=6)), min_size=1, max_size=4
    )
)
def test_odd_bytes_are_the_datas_fault(form: str, folders: dict[str, Path], cuts: list[Any]) -> None:
    sound, write = SOUND[form]
    spec = write(folders[form], sound)
    for file in folders[form].rglob("*"):
        if file.is_file() and file.suffix not in (".jpg", ".png", ".JPEG"):
            content = bytearray(file.read_bytes())
            for place, length, odd in cuts:
                start = int(place * len(content))
                content[start : start + length] = odd
            file.write_bytes(content)
    read_all(spec)
