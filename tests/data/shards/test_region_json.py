"""The JSON of a sample: ours, img2dataset's, GRIT's and FineHARD's, and what is not the schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from open_cloc.data.shards.read import ShardDataset
from open_cloc.data.shards.region_json import _surely_valid, _validator, parse_sample, schema_problems
from open_cloc.data.shards.write import write_shards
from open_cloc.samples import Region, RegionSample, Text
from tests.data.shards.tars import encoded, shard_of, tar_of


def test_plain_img2dataset_shards(tmp_path: Path) -> None:
    document = {
        "url": "http://x/a.jpg",
        "caption": "a red mug on a table",
        "key": "000000000",
        "status": "success",
        "error_message": None,
        "width": 20,
        "height": 10,
        "original_width": 640,
        "original_height": 480,
        "exif": "{}",
        "sha256": "00",
    }
    sample = shard_of(tmp_path / "00000.tar", document)[0]
    assert (sample.captions, sample.regions) == (("a red mug on a table",), ())
    assert sample.metadata["url"] == "http://x/a.jpg"
    assert sample.metadata["original_width"] == 640
    bare = ShardDataset(str(tar_of(tmp_path / "b.tar", [("a.JPG", encoded("JPEG")), ("a.txt", b"hi")])))
    assert (bare[0].captions, bare[0].metadata) == (("hi",), {})


def test_grit_and_finehard_regions(tmp_path: Path) -> None:
    grit = {
        "caption": "a red mug on a table",
        "noun_chunks": [[0, 9, 0.1, 0.2, 0.3, 0.4, 0.9], [13.0, 20.0, 0.0, 0.5, 1.0, 1.0, 0.8]],
        "ref_exps": [[0, 20, 0.1, 0.2, 0.3, 0.4, 0.7]],
    }
    dataset = shard_of(tmp_path / "grit.tar", grit)
    assert dataset[0].regions == (
        Region((0.1, 0.2, 0.3, 0.4), "a red mug", 0.9, "grit noun_chunks"),
        Region((0.0, 0.5, 1.0, 1.0), "a table", 0.8, "grit noun_chunks"),
        Region((0.1, 0.2, 0.3, 0.4), "a red mug on a table", 0.7, "grit ref_exps"),
    )
    write_shards([dataset[0]], tmp_path / "again")  # written with "regions", which then count alone
    again = ShardDataset(str(tmp_path / "again"))[0]
    assert again.regions == dataset[0].regions
    assert again.metadata == dataset[0].metadata
    finehard = {"bbox_info": [{"bbox": [0.1, 0.2, 0.3, 0.4, 9, 9], "short_expr": "mug", "long_expr": "..."}]}
    assert shard_of(tmp_path / "fine.tar", finehard)[0].regions == (
        Region((0.1, 0.2, 0.3, 0.4), "mug", 1.0, "finehard"),
    )
    with pytest.raises(ValueError, match=r"noun_chunks\[0\]: no text from 50 to 60 of the caption"):
        shard_of(tmp_path / "bad.tar", {"noun_chunks": [[50, 60, 0, 0, 1, 1, 1]]})[0]


REGIONS = {"regions": [{"box": [0, 0, 0.5, 1], "text": "x"}], "box_format": "xyxy_norm"}


def test_captions_by_name(tmp_path: Path) -> None:
    document = REGIONS | {"captions": {"orig": "one", "recap": "two"}}
    assert shard_of(tmp_path / "a.tar", document)[0].captions == ("one", "two")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([1], r"at \$: \[1\] is not of type 'object'"),
        ({"regions": []}, "'box_format' is a dependency of 'regions'"),
        (REGIONS | {"box_format": "xywh"}, r"at \$\.box_format: 'xyxy_norm' was expected"),
        (REGIONS | {"regions": [{"box": [0, 0, 1], "text": "x"}]}, r"at \$\.regions\[0\]\.box: .*too short"),
        (
            REGIONS | {"regions": [{"box": [0, 0, 1, "1"], "text": "x"}]},
            r"box\[3\]: '1' is not of type 'number'",
        ),
        (
            REGIONS | {"regions": [{"box": [0, 0, 1, 1]}]},
            r"at \$\.regions\[0\]: 'text' is a required property",
        ),
        (
            REGIONS | {"regions": [{"box": [0, 0, 1, 1], "text": "x", "score": 3}]},
            r"score: 3 is greater than",
        ),
        (REGIONS | {"captions": "one"}, r"at \$\.captions"),
        (REGIONS | {"width": 0}, r"at \$\.width: 0 is less than"),
        ({"noun_chunks": [[0, 1, 2]]}, r"at \$\.noun_chunks\[0\]: .*too short"),
        (
            REGIONS | {"regions": [{"box": [3, 4, 50, 60], "text": "x"}]},
            r"box is outside the picture: got \[3, 4,",
        ),
        (REGIONS | {"regions": [{"box": [0.5, 0, 0.2, 1], "text": "x"}]}, r"box is inverted: .*regions\[0\]"),
    ],
)
def test_json_that_is_not_the_schema(tmp_path: Path, document: Any, message: str) -> None:
    dataset = shard_of(tmp_path / "00000.tar", document)
    with pytest.raises(ValueError, match=message) as caught:
        dataset[0]
    assert "00000.tar, key 'a'" in str(caught.value)


def test_json_and_captions_that_do_not_parse(tmp_path: Path) -> None:
    for name, content in (("a.json", b'{"key": '), ("a.txt", b"\xff\xfe\xff")):
        tar = tar_of(tmp_path / "00000.tar", [("a.jpg", encoded("JPEG")), (name, content)])
        with pytest.raises(ValueError, match=r"not valid (JSON|UTF-8): .*00000\.tar, key 'a'"):
            ShardDataset(str(tar))[0]


@pytest.mark.parametrize(
    ("size", "original", "fits"),
    [
        ((256, 192), (640, 480), True),
        ((256, 171), (640, 427), True),  # rounded
        ((1, 20), (30, 600), True),
        ((256, 256), (640, 480), False),  # img2dataset's default: padded to a square
        ((224, 224), (640, 427), False),
    ],
)
def test_boxes_of_a_reshaped_picture_are_refused(
    tmp_path: Path, size: Any, original: Any, fits: bool
) -> None:
    sizes = dict(zip(("width", "height", "original_width", "original_height"), (*size, *original)))
    dataset = shard_of(tmp_path / "a.tar", REGIONS | sizes)
    if fits:
        assert len(dataset[0].regions) == 1
    else:
        with pytest.raises(ValueError, match="its aspect ratio changed"):
            dataset[0]
    assert shard_of(tmp_path / "b.tar", sizes)[0].regions == ()  # without boxes it does no harm


FULL = {
    "key": "k",
    "status": "success",
    "caption": "one",
    "captions": ["one"],
    "width": 4,
    "height": 3,
    "original_width": 8,
    "original_height": 6,
    "regions": [{"box": [0, 0.1, 0.5, 1], "text": "x", "score": 0.5, "source": "s"}],
    "box_format": "xyxy_norm",
}


VALUES = (None, True, 0, 1, -1, 1.5, float("nan"), "x", [], {}, ["x"], [0.5], [0.5] * 4, [0.5] * 5, ["x"] * 4)


@pytest.mark.parametrize("value", VALUES, ids=repr)
@pytest.mark.parametrize(
    "name", [*FULL, "noun_chunks", "bbox_info", "regions.box", "regions.text", "regions.score"]
)
def test_the_fast_check_never_passes_what_the_schema_refuses(name: str, value: Any) -> None:
    outer, _, inner = name.partition(".")
    changed = [FULL["regions"][0] | {inner: value}] if inner else value  # type: ignore[index]
    document = FULL | {outer: changed}
    ranges = ("minimum", "maximum")  # of boxes: left to the box check
    errors = [
        e for e in _validator().iter_errors(document) if "box" not in e.path or e.validator not in ranges
    ]
    if errors:  # those of one entry cost that entry
        problem, wrong = schema_problems(document)
        assert problem or wrong
        assert not _surely_valid(document)
    assert _surely_valid(FULL)


def test_texts_with_roles_come_back(tmp_path: Path) -> None:
    hard = (Text("not a dog", "negative", "rules", 0.5), Text("a cat", "negative"))
    regions = (Region((0.1, 0.1, 0.5, 0.5), "a dog", texts=hard), Region((0.2, 0.2, 0.9, 0.9), "a mat"))
    texts = (Text("a long caption", "long"),)
    pixels = np.zeros((8, 8, 3), np.uint8)
    sample = RegionSample("a", pixels, ("a dog",), regions, {"texts": ["of somebody else"]}, texts)
    write_shards([sample], tmp_path / "out")
    (read,) = [ShardDataset(str(tmp_path / "out"))[0]]
    assert (read.texts, read.regions) == (texts, regions)
    assert read.metadata["texts"] == ["of somebody else"]
    raw = parse_sample("a", b"", None, b'{"role_texts": [{"text": "x"}, {"text": "y", "role": "long"}]}', "here")
    assert raw.texts == (Text("y", "long"),)
    (problem,) = raw.problems
    assert problem.cause == "broken text"
    assert "role_texts[0]: 'role' is a required property" in problem.message
