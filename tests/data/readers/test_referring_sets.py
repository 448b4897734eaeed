"""RefCOCO in the forms that people have it in: which box each expression means."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from open_cloc.cli.main import main
from open_cloc.data.bad_samples import read_usable
from open_cloc.data.readers import guess_spec, open_reader
from open_cloc.data.readers.referring import REFERRING
from open_cloc.errors import MissingFileError, SampleError, UserError
from open_cloc.evaluation.tasks.referring import expressions_of
from open_cloc.samples import RegionSample
from tests.data.readers.made import (
    held_rows,
    mdetr_document,
    picture_of,
    reclip_lines,
    refcoco_rows,
    samples,
    write_grefcoco,
    write_mdetr,
    write_reclip,
    write_refcoco,
    write_refcoco_table,
    write_table,
)

BOX, OTHER = (0.1, 0.1, 0.3, 0.3), (0.5, 0.5, 1.0, 1.0)


def meant(sample: RegionSample) -> dict[str, list[tuple[float, ...]]]:
    """The boxes of each expression."""
    found: dict[str, list[tuple[float, ...]]] = {}
    for region in sample.regions:
        for text in region.texts:
            assert text.role == REFERRING
            found.setdefault(text.text, []).append(tuple(round(side, 6) for side in region.box))
    return found


def test_reclip(tmp_path: Path) -> None:
    path = write_reclip(tmp_path)
    dataset: Any = open_reader(f"reclip:{path}")
    (sample,) = samples(dataset)
    assert sample.image == tmp_path / "train2014" / "COCO_train2014_000000581857.jpg"
    assert meant(sample) == {
        "the lady with the blue shirt": [BOX],
        "Lady": [BOX],
        "both": [BOX, OTHER],
    }
    assert sample.metadata["image_id"] == 581857
    assert guess_spec(str(path)) == f"reclip:{path}"


def test_a_picture_without_a_number_behind_its_name(tmp_path: Path) -> None:
    path = write_reclip(tmp_path)
    lines = [line | {"file_name": "COCO_train2014_000000581857.jpg"} for line in reclip_lines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert open_reader(f"reclip:{path}")[0].image == tmp_path / "train2014/COCO_train2014_000000581857.jpg"


def test_a_bare_pickle_is_pointed_to_conversion(tmp_path: Path) -> None:
    path = write_refcoco(tmp_path) / "refs(unc).p"
    told = (
        f"is a pickle: make shards of it by open-cloc data convert refcoco:{path} FOLDER, and look at these"
    )
    with pytest.raises(UserError, match=re.escape(told)):
        open_reader(str(path))
    with pytest.raises(UserError, match=r"RefCOCO's is read by open-cloc data convert refcoco:"):
        open_reader(str(path.rename(tmp_path / "other.p")))


def test_a_bare_folder_of_references_is_not_taken_for_its_boxes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "refcoco").mkdir()
    folder = write_refcoco(tmp_path / "refcoco")
    assert guess_spec(f"{folder},split=val") == f"refcoco:{folder},split=val"
    with pytest.raises(UserError, match="make shards of it by open-cloc data convert refcoco:"):
        open_reader(str(folder))
    assert main(["data", "convert", f"{folder},split=val", str(tmp_path / "shards")]) == 0
    assert "as refcoco" in capsys.readouterr().err
    assert meant(samples(open_reader(f"shards:{tmp_path / 'shards'}"))[0]) == {"the lady": [BOX, OTHER]}
    with pytest.raises(UserError, match=f"give one of refcoco:{folder}"):
        guess_spec(str(tmp_path))
    (tmp_path / "grefcoco").mkdir()
    path = write_grefcoco(tmp_path / "grefcoco")
    told = f"give one of grefcoco:{path}, or coco:{path.parent} for its boxes alone"
    with pytest.raises(UserError, match=re.escape(told)):
        guess_spec(str(path.parent))
    (tmp_path / "mdetr").mkdir()
    path = write_mdetr(tmp_path / "mdetr")
    with pytest.raises(UserError, match=f"give one of mdetr:{path}, or coco:"):
        guess_spec(str(path.parent))


def test_reclip_with_detections(tmp_path: Path) -> None:
    path = write_reclip(tmp_path)
    found = tmp_path / "refcoco_dets_dict.json"
    found.write_text(json.dumps({"581857": [[10, 5, 20, 10]], "7": []}))
    (sample,) = samples(open_reader(f"reclip:{path},detections={found}"))
    assert [region.source for region in sample.regions] == ["reclip", "reclip", "detection"]
    assert sample.regions[2].box == pytest.approx(BOX)
    found.write_text(json.dumps([{"image_id": 581857, "box": [10, 5, 20, 10]}] * 2))
    (sample,) = samples(open_reader(f"reclip:{path},detections={found}"))
    assert [region.source for region in sample.regions[2:]] == ["detection", "detection"]
    for odd in ('{"581857": [[1, 2, 3]]}', '{"581857": 7}', "[7]", '[{"image_id": 581857}]', "7"):
        found.write_text(odd)
        with pytest.raises(UserError, match="detections must be"):
            open_reader(f"reclip:{path},detections={found}")


def test_rows_of_detections_need_not_name_every_picture(tmp_path: Path) -> None:
    """A table does: of rows a picture without any has nothing to say."""
    path, found = write_reclip(tmp_path), tmp_path / "detections.json"
    line = reclip_lines()[0]
    other = line | {"image_id": 5, "file_name": "COCO_train2014_000000000005_0.jpg"}
    picture_of(tmp_path, "train2014/COCO_train2014_000000000005.jpg")
    path.write_text("\n".join(map(json.dumps, [line, other])))
    found.write_text(json.dumps([{"image_id": 581857, "box": [10, 5, 20, 10]}]))
    rows: Any = open_reader(f"reclip:{path},detections={found}")
    assert (len(rows), rows.problems) == (2, [])
    found.write_text(json.dumps({"581857": [[10, 5, 20, 10]]}))
    table: Any = open_reader(f"reclip:{path},detections={found}")
    assert [problem.cause for problem in table.problems] == ["picture without detections"]
    found.write_text("[]")
    with pytest.raises(UserError, match="has detections of 0 images, and of none of the 2 pictures"):
        open_reader(f"reclip:{path},detections={found}")


def test_lines_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    path = write_reclip(tmp_path)
    line = reclip_lines()[0]
    odd = [
        line | {"ann_id": 5},
        line | {"sentences": []},
        line | {"anns": [{"id": 1}]},
        line | {"sentences": [{"raw": " "}]},
        line | {"file_name": None},
        [],
    ]
    path.write_text("\n".join(map(json.dumps, [line, *odd])))
    dataset: Any = open_reader(f"reclip:{path}")
    assert len(dataset) == 1
    assert [message.split(":")[0] for _, message in dataset.problems] == [f"line {n}" for n in range(2, 8)]


def test_an_id_stands_for_one_picture_and_a_box(tmp_path: Path) -> None:
    """Of two files under one id, the second's boxes were put on the first."""
    path = write_reclip(tmp_path)
    line = reclip_lines()[0]
    odd = [
        line | {"file_name": "COCO_train2014_000000000009_3.jpg"},
        line | {"anns": [{"id": 1719310, "bbox": [11, 5, 20, 10]}]},
        line | {"anns": [*line["anns"], {"id": 3, "bbox": [0, 0, 50, 25]}]},
    ]
    path.write_text("\n".join(map(json.dumps, [line, *odd])))
    dataset: Any = open_reader(f"reclip:{path}")
    assert [problem.cause for problem in dataset.problems] == ["other picture", "other box"]
    assert (
        "line 2: image_id 581857 means 'COCO_train2014_000000000009.jpg' here" in dataset.problems[0].message
    )
    assert "annotation 1719310 has another box" in dataset.problems[1].message
    (sample,) = samples(dataset)
    assert [region.box for region in sample.regions] == [
        pytest.approx(box) for box in (BOX, OTHER, (0, 0, 0.5, 0.5))
    ]


def test_an_id_stands_for_one_picture_in_other_forms_too(tmp_path: Path) -> None:
    (tmp_path / "refcoco").mkdir()
    folder = write_refcoco(tmp_path / "refcoco")
    references = pickle.loads((folder / "refs(unc).p").read_bytes())
    references[1]["file_name"] = "COCO_train2014_000000000009_1.jpg"
    (folder / "refs(unc).p").write_bytes(pickle.dumps(references, 2))
    path = write_refcoco_table(tmp_path)
    rows = refcoco_rows()
    rows[1]["file_name"] = references[1]["file_name"]
    write_table(path, rows)
    for dataset in (open_reader(f"refcoco:{folder}", converting=True), open_reader(f"refcoco_table:{path}")):
        assert [cause for cause, _ in dataset.problems] == ["other picture"]  # type: ignore[attr-defined]
        assert len(dataset) == 2


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_refcoco_is_read_to_be_converted(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "refcoco").mkdir()
    folder = write_refcoco(tmp_path / "refcoco", protocol)
    spec = f"refcoco:{folder},split=val"
    with pytest.raises(UserError, match="is a pickle: make shards of it by open-cloc data convert"):
        open_reader(spec)
    assert main(["data", "convert", spec, str(tmp_path / "shards")]) == 0
    (sample,) = samples(open_reader(f"shards:{tmp_path / 'shards'}"))
    assert [region.text for region in sample.regions] == ["person", "person", "dog"]
    assert meant(sample) == {"the lady": [BOX, OTHER]}  # of two references, which stay apart:
    assert [e.regions for e in expressions_of(sample, _AnyMethod(), _config())] == [[0], [1]]


class _AnyMethod:
    """Texts as they are."""


def _config() -> Any:
    from open_cloc.evaluation.options import EvaluationConfig

    return EvaluationConfig()


def test_what_only_convert_opens_is_not_sent_to_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_refcoco(tmp_path)
    references = pickle.loads((folder / "refs(unc).p").read_bytes())
    references[0]["ann_id"] = 99
    (folder / "refs(unc).p").write_bytes(pickle.dumps(references, 2))
    assert main(["data", "convert", f"refcoco:{folder}", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "no annotation 99" in told
    assert "--max-bad-fraction leaves them out" in told
    assert "data check" not in told


def test_refcoco_splits_and_files(tmp_path: Path) -> None:
    folder = write_refcoco(tmp_path)
    whole: Any = open_reader(f"refcoco:{folder}", converting=True)
    assert len(whole) == 2
    assert whole.left_out == {"pictures without a reference of the split": 1}
    with pytest.raises(UserError, match=r"no split 'dev' in .*; it has testA, val"):
        open_reader(f"refcoco:{folder},split=dev", converting=True)
    (folder / "refs(google).p").write_bytes(b"")
    with pytest.raises(UserError, match=r"must hold one refs\(\.\.\.\)\.p; it holds"):
        open_reader(f"refcoco:{folder}", converting=True)
    (folder / "instances.json").unlink()
    with pytest.raises(MissingFileError, match=r"no instances\.json beside"):
        open_reader(f"refcoco:{folder / 'refs(unc).p'}", converting=True)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch touched_by_a_pickle",)


def test_refcoco_of_a_stranger_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder = write_refcoco(tmp_path)
    (folder / "refs(unc).p").write_bytes(pickle.dumps([Harmful()]))
    monkeypatch.chdir(tmp_path)
    assert main(["data", "convert", f"refcoco:{folder}", str(tmp_path / "out")]) == 2
    assert "pickle would run code: instruction" in capsys.readouterr().err
    assert not list(tmp_path.rglob("touched*"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"split": 7}, "split must be text"),
        ({"ann_id": 99}, "no annotation 99"),
        ({"image_id": 99}, "references name image 99"),
        ({"sentences": [{"raw": 1}]}, "raw must be text"),
    ],
)
def test_odd_references_are_problems(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    folder = write_refcoco(tmp_path)
    references = pickle.loads((folder / "refs(unc).p").read_bytes())
    references[0] |= change
    (folder / "refs(unc).p").write_bytes(pickle.dumps(references))
    dataset: Any = open_reader(f"refcoco:{folder}", converting=True)
    assert any(told in message for _, message in dataset.problems)


def test_grefcoco_means_several_boxes_or_none(tmp_path: Path) -> None:
    path = write_grefcoco(tmp_path)
    dataset: Any = open_reader(f"grefcoco:{path},split=val")
    (only,) = samples(dataset)
    assert [[text.text for text in region.texts] for region in only.regions] == [
        ["both"],
        ["both"],
        ["a dog"],
    ]
    assert only.regions[0].box == pytest.approx((0.1, 0.1, 0.3, 0.3))
    assert len({text.source for region in only.regions[:2] for text in region.texts}) == 1
    assert dataset.left_out["expressions that mean nothing in their picture"] == 1
    assert guess_spec(str(path)) == f"grefcoco:{path}"
    with pytest.raises(UserError, match=r"no split 'testB'.*testA, val"):
        open_reader(f"grefcoco:{path},split=testB")
    (tmp_path / "instances.json").unlink()
    with pytest.raises(MissingFileError, match=r"no instances\.json beside"):
        open_reader(f"grefcoco:{path}")


def test_mdetr_has_a_picture_for_each_expression(tmp_path: Path) -> None:
    path = write_mdetr(tmp_path)
    dataset: Any = open_reader(str(path))
    first, second = samples(dataset)
    assert first.image == second.image == tmp_path / "train2014" / "COCO_train2014_000000581857.jpg"
    assert [(r.text, r.box) for r in first.regions] == [
        ("the lady with the blue shirt", pytest.approx((0.1, 0.1, 0.3, 0.3)))
    ]
    assert [(r.text, r.box) for r in second.regions] == [("dog", (0.5, 0.5, 1.0, 1.0))]
    assert first.metadata == {"image_id": 581857}
    document = json.loads(path.read_text())
    document["annotations"].append({"id": 9, "image_id": 77, "bbox": [0, 0, 1, 1]})
    document["images"].append({"id": 3, "file_name": "x.jpg", "original_id": 3})
    path.write_text(json.dumps(document))
    again: Any = open_reader(f"mdetr:{path}")
    assert [problem.message.partition(":")[0] for problem in again.problems] == [
        "image at position 2",
        "boxes name image 77, which is not there (" + str(path) + ")",
    ]


@pytest.mark.parametrize("kind", ["mixed", "flickr"])
def test_mdetrs_captions_give_each_box_its_own_words(tmp_path: Path, kind: str) -> None:
    """Of its pre-training files a caption is of many boxes: all had the whole of it as text."""
    path, document = write_mdetr(tmp_path), mdetr_document()
    caption = "a dog on the left. two red cups on a table."
    document["images"] = [document["images"][0] | {"caption": caption, "dataset_name": kind}]
    if kind == "flickr":
        document["images"][0]["original_img_id"] = document["images"][0].pop("original_id")
    parts = [[[0, 5]], [[19, 31]], [[19, 22], [27, 31]], [[40, 90]], [], [[3]], None]
    document["annotations"] = [
        {"id": n, "image_id": 0, "bbox": [10, 5, 20, 10], "tokens_positive": own}
        for n, own in enumerate(parts)
    ]
    path.write_text(json.dumps(document))
    dataset: Any = open_reader(str(path))
    sample, problems = read_usable(dataset, 0)
    assert sample is not None
    assert sample.captions == (caption,)
    assert [region.text for region in sample.regions] == ["a dog", "two red cups", "two cups"]
    assert [problem.message.partition(":")[0] for problem in problems] == [
        f"annotation {n}" for n in (3, 4, 5, 6)
    ]


def test_parquet_has_an_expression_at_its_box(tmp_path: Path) -> None:
    path = write_refcoco_table(tmp_path)
    dataset: Any = open_reader(f"{path},split=val")
    (only,) = samples(dataset)
    assert only.image == tmp_path / "train2014" / "COCO_train2014_000000581857.jpg"
    assert [(region.text, region.box) for region in only.regions] == [
        ("the lady 0", pytest.approx(BOX)),
        ("woman 0", pytest.approx(BOX)),
        ("the lady 1", OTHER),
        ("woman 1", OTHER),
    ]
    assert only.metadata == {"image_id": 581857}
    assert len(open_reader(f"refcoco_table:{tmp_path}/valid*.parquet")) == 2
    with pytest.raises(UserError, match=r"no split 'train'.*testA, val"):
        open_reader(f"refcoco_table:{path},split=train")


def test_parquet_whose_boxes_disagree_says_so(tmp_path: Path) -> None:
    path = write_refcoco_table(tmp_path)
    rows = refcoco_rows()
    rows[0]["bbox"] = [10.0, 15.0, 20.0, 10.0]
    rows[1]["raw_anns"] = "[]"
    write_table(path, rows)
    dataset: Any = open_reader(f"refcoco_table:{path}")
    first, second = (problem.message for problem in dataset.problems)
    assert "bbox [10.0, 15.0, 20.0, 10.0] and raw_anns' [10.0, 5.0, 20.0, 10.0] are different boxes" in first
    assert "raw_anns must be an object" in second
    rows[2]["bbox"] = rows[0]["bbox"]
    write_table(path, rows)
    with pytest.raises(UserError, match=r"no entry can be used; the first: row 0"):
        open_reader(f"refcoco_table:{path}")


def test_parquet_with_sides_in_place_of_corners(tmp_path: Path) -> None:
    """Copies of the data set have COCO's `xywh`, which its own annotation says."""
    path = write_refcoco_table(tmp_path)
    rows = [row | {"bbox": list(map(float, json.loads(row["raw_anns"])["bbox"]))} for row in refcoco_rows()]
    write_table(path, rows)
    dataset: Any = open_reader(f"refcoco_table:{path},split=val")
    assert dataset.problems == []
    assert [region.box for region in dataset[0].regions[1:3]] == [pytest.approx(BOX), OTHER]


def test_parquet_with_its_pictures(tmp_path: Path) -> None:
    path = write_table(tmp_path / "testA.parquet", held_rows())
    dataset: Any = open_reader(str(path))
    first, second = samples(dataset)
    box = pytest.approx((1 / 6, 1 / 4, 4 / 6, 3 / 4))
    assert [(r.text, r.box) for r in second.regions] == [("the lady", box), ("woman 1", box)]
    assert first.pixels().shape == (4, 6, 3)
    assert first.metadata == {"file_name": "COCO_train2014_000000000000_0.jpg"}
    with pytest.raises(UserError, match="is one split"):
        open_reader(f"refcoco_table:{path},split=val")
    write_table(path, [held_rows()[0] | {"answer": []}])
    broken: Any = open_reader(str(path))
    with pytest.raises(SampleError, match="answer must be a list of expressions"):
        broken[0]
    write_table(path, [{"image": "a", "text": "b"}])
    with pytest.raises(UserError, match="needs the columns image_id"):
        open_reader(f"refcoco_table:{path}")
