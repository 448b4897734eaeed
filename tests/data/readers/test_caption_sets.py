"""Data sets of captions, and ODVG's of grounded ones, in their genuine form."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from open_cloc.cli.main import main
from open_cloc.data.bad_samples import read_usable
from open_cloc.data.readers import guess_spec, open_reader
from open_cloc.data.readers.flair import rejoined
from open_cloc.data.readers.packed import json_lines
from open_cloc.errors import MissingFileError, UserError
from open_cloc.evaluation.run import evaluate
from tests.data.readers.made import (
    picture_of,
    samples,
    write_dci,
    write_flair,
    write_karpathy,
    write_odvg,
    write_sharegpt4v,
    write_urban1k,
)

BOX, OTHER = (0.1, 0.1, 0.3, 0.3), (0.5, 0.5, 1.0, 1.0)


def test_odvg(tmp_path: Path) -> None:
    dataset: Any = open_reader(f"odvg:{write_odvg(tmp_path)}")
    grounded, detected = samples(dataset)
    assert grounded.captions == ("Two dogs on a mat",)
    assert [(region.text, pytest.approx(region.box)) for region in grounded.regions] == [
        ("Two dogs", BOX),
        ("Two dogs", OTHER),
        (
            "a mat on",
            (0.0, 0.0, 1.0, 1.0),
        ),  # parts of a phrase that stand apart, as their converter joins them
    ]
    assert [(region.text, pytest.approx(region.box)) for region in detected.regions] == [("motorcycle", BOX)]
    assert detected.captions == ()
    assert dataset.left_out == {}


def test_lines_are_read_one_by_one(tmp_path: Path) -> None:
    """A file of lines may be larger than memory."""
    path = tmp_path / "a.jsonl"
    path.write_bytes((json.dumps({"caption": "x" * 100_000}).encode() + b"\r\n\n") * 100)
    tracemalloc.start()
    try:
        numbers = [number for number, row in json_lines(path, []) if len(row["caption"]) == 100_000]
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert numbers == list(range(1, 200, 2))
    for odd, told in ((tmp_path / "absent", "no such file"), (tmp_path, "expected a file; got the folder")):
        with pytest.raises(UserError, match=told):
            list(json_lines(odd, []))


def test_karpathy(tmp_path: Path) -> None:
    path = write_karpathy(tmp_path)
    dataset: Any = open_reader(f"karpathy:{path}")
    assert [sample.captions for sample in samples(dataset)] == [("A dog 1.", "One 1"), ("A dog 3.", "One 3")]
    assert dataset[1].image == tmp_path / "val2014" / "COCO_val2014_000000000003.jpg"
    assert dataset.left_out == {"pictures of other splits": 1}
    assert len(open_reader(f"karpathy:{path},split=")) == 3
    with pytest.raises(UserError, match=r"no split 'dev' in .*; it has restval, test"):
        open_reader(f"karpathy:{path},split=dev")


def test_a_blank_sentence_costs_itself(tmp_path: Path) -> None:
    path = write_karpathy(tmp_path)
    document = json.loads(path.read_text())
    document["images"][0]["sentences"][1]["raw"] = " "
    path.write_text(json.dumps(document))
    sample, problems = read_usable(open_reader(f"karpathy:{path}"), 0)
    assert sample is not None
    assert sample.captions == ("A dog 1.",)
    ((_, message),) = problems
    assert "sentence 1 of COCO_val2014_000000000001.jpg: raw must not be blank" in message


@pytest.mark.parametrize("kind", ["karpathy", "flair", "odvg", "sharegpt4v"])
def test_a_folder_that_holds_their_file_is_not_read_for_its_pictures_alone(tmp_path: Path, kind: str) -> None:
    write = {
        "karpathy": write_karpathy,
        "flair": write_flair,
        "odvg": write_odvg,
        "sharegpt4v": write_sharegpt4v,
    }[kind]
    path = write(tmp_path)
    with pytest.raises(UserError, match=f"holds what describes its pictures; give one of {kind}:{path}"):
        guess_spec(str(tmp_path))


def test_flair(tmp_path: Path) -> None:
    dataset = open_reader(f"flair:{write_flair(tmp_path)}")
    assert [sample.captions for sample in samples(dataset)] == [("first", "second"), ("other",)]
    assert dataset[0].image == tmp_path / "images" / "docci" / "test_00731.jpg"


@pytest.mark.parametrize("below", ["", "sam/images/"])
def test_sharegpt4v(tmp_path: Path, below: str) -> None:
    path = write_sharegpt4v(tmp_path, below)
    dataset = open_reader(f"sharegpt4v:{path}")
    assert dataset[1].captions == ("A long caption of picture 2.",)
    assert dataset[1].image == tmp_path / "images" / below / "sa_2.jpg"
    assert len(open_reader(f"sharegpt4v:{path},first=2")) == 2
    with pytest.raises(UserError, match="first must be at least 0"):
        open_reader(f"sharegpt4v:{path},first=-1")


def test_urban1k(tmp_path: Path) -> None:
    folder = write_urban1k(tmp_path)
    picture_of(folder, "image/9.jpg")
    (folder / "caption" / "8.txt").write_text("x")
    dataset: Any = open_reader(f"urban1k:{folder}")
    assert [sample.captions for sample in samples(dataset)] == [
        ("A street, 1 of a thousand.",),
        ("A street, 2 of a thousand.",),
    ]
    assert dataset.left_out == {}
    assert [problem.cause for problem in dataset.problems] == [
        "picture without a text",
        "text without a picture",
    ]
    assert "no caption/9.txt of image/9.jpg" in dataset.problems[0].message
    assert "no picture image/8 of caption/8.txt" in dataset.problems[1].message


def test_urban1k_of_odd_names(tmp_path: Path) -> None:
    """What systems leave behind is no part of it; two pictures of one name are."""
    folder = write_urban1k(tmp_path)
    picture_of(folder, "image/1.png")
    for name in ("image/._1.jpg", "caption/._1.txt", "image/.DS_Store"):
        (folder / name).touch()
    dataset: Any = open_reader(f"urban1k:{folder}")
    assert [problem.message for problem in dataset.problems] == [
        f"1.jpg and 1.png share a name ({folder / 'image'})"
    ]
    assert dataset[0].image == folder / "image" / "1.jpg"


@pytest.mark.parametrize("part", ["image/2.jpg", "caption/2.txt"])
def test_an_evaluation_needs_every_pair(tmp_path: Path, part: str) -> None:
    folder = write_urban1k(tmp_path)
    (folder / part).unlink()
    with pytest.raises(UserError, match=r"1 entry is broken .*max_bad_fraction leaves them out"):
        evaluate(None, f"urban1k:{folder}", "zeroshot-retrieval", method="whole")
    assert main(["data", "convert", f"urban1k:{folder}", str(tmp_path / "out")]) == 2
    allowed = ["--max-bad-fraction", "0.5"]
    assert main(["data", "convert", f"urban1k:{folder}", str(tmp_path / "out"), *allowed]) == 0


def test_dci(tmp_path: Path) -> None:
    folder = write_dci(tmp_path)
    dataset = open_reader(f"dci:{folder}")
    assert [sample.captions for sample in samples(dataset)] == [
        ("A very long caption of 7.",),
        ("A very long caption of 8.",),
    ]
    (short,) = dataset[0].texts
    assert (short.text, short.role) == ("short 7", "short")
    assert [sample.key for sample in samples(open_reader(f"dci:{folder},split=test"))] == ["sa_7"]
    with pytest.raises(UserError, match="no split 'valid'"):
        open_reader(f"dci:{folder},split=valid")
    (folder / "splits.json").unlink()
    with pytest.raises(MissingFileError, match=r"no splits\.json"):
        open_reader(f"dci:{folder},split=test")


def test_captions_as_flairs_script_has_them(tmp_path: Path) -> None:
    """Both captions, cut at points and line ends; of every split, and of no other file."""
    folder = write_dci(tmp_path)
    extra = {"image": "sa_8.jpg", "short_caption": "None.", "extra_caption": "Of no split."}
    (folder / "annotations" / "9-data.json").write_text(json.dumps(extra))
    dataset = open_reader(f"dci:{folder},captions=flair")
    assert [sample.captions for sample in samples(dataset)] == [
        ("short 8. A very long caption of 8",),
        ("short 7. A very long caption of 7",),
    ]
    tested = open_reader(f"dci:{folder},captions=flair,split=test")
    assert [sample.key for sample in samples(tested)] == ["sa_7"]
    (folder / "splits.json").write_text('{"test": "7-data.json"}')
    with pytest.raises(UserError, match=r"a split that is no list of files in .*splits\.json"):
        open_reader(f"dci:{folder},captions=flair")
    assert rejoined(" One.  Two!\nThree</s> Four.5 ..") == "One. Two!. Three. Four. 5"
    shared = write_sharegpt4v(tmp_path)
    assert open_reader(f"sharegpt4v:{shared},captions=flair")[1].captions == ("A long caption of picture 2",)


def test_dci_reads_every_json_of_its_folder(tmp_path: Path) -> None:
    """As FG-CLIP's script does; what was called otherwise was not looked at."""
    folder = write_dci(tmp_path)
    (folder / "annotations" / "8-data.json").rename(folder / "annotations" / "zz.json")
    (folder / "splits.json").rename(folder / "annotations" / "splits.json")
    (folder / "annotations" / "._zz.json").touch()
    dataset: Any = open_reader(f"dci:{folder}")
    assert [sample.key for sample in samples(dataset)] == ["sa_7", "sa_8"]
    assert (dataset.problems, dataset.left_out) == ([], {})
    tested: Any = open_reader(f"dci:{folder},split=test")
    assert tested.left_out == {"annotations of other splits": 1}


ODD: dict[str, tuple[Any, str]] = {
    "karpathy": ({"images": [{"split": "test", "sentences": 7, "filename": "a"}]}, "sentences must be"),
    "flair": ({"annotations": [{"image": 7, "caption": "x"}]}, "image must be text"),
    "sharegpt4v": ([{"image": "a.jpg", "conversations": [{}]}], "a question and an answer"),
    "odvg": ({"filename": "a.jpg"}, "needs a table grounding or detection"),
}


@pytest.mark.parametrize("kind", ODD)
def test_entries_that_cannot_be_used(tmp_path: Path, kind: str) -> None:
    document, told = ODD[kind]
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=f"no entry can be used; the first: .*{told}"):
        open_reader(f"{kind}:{tmp_path / 'a.json'}")


@pytest.mark.parametrize("kind", ["karpathy", "flair", "sharegpt4v"])
@pytest.mark.parametrize("content", ["7", "{}", '{"images": 7, "annotations": {}}'])
def test_what_is_no_such_file(tmp_path: Path, kind: str, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match="JSON is a list"):
        open_reader(f"{kind}:{tmp_path / 'a.json'}")


def test_their_forms_are_told_apart(tmp_path: Path) -> None:
    writers = {"karpathy": write_karpathy, "flair": write_flair, "odvg": write_odvg, "dci": write_dci}
    for kind, write in writers.items():
        (tmp_path / kind).mkdir()
        path = write(tmp_path / kind)
        assert guess_spec(str(path)) == f"{kind}:{path}"
