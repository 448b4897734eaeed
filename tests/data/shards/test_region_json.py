"""The JSON of a sample: ours, img2dataset's, GRIT's and FineHARD's, and what is not the schema."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_cloc.data.annotations import clean_sample, sound_part
from open_cloc.data.bad_samples import read_usable
from open_cloc.data.shards.read import ShardDataset
from open_cloc.data.shards.region_json import (
    _names_each_once,
    _surely_valid,
    _validator,
    _writes_as_many,
    encode_json,
    parse_sample,
    schema_problems,
)
from open_cloc.data.shards.write import write_shards
from open_cloc.data.wants import draw_texts
from open_cloc.errors import SampleError
from open_cloc.masks import Mask
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
        # One that could not be enlarged is its noun chunk once more.
        "ref_exps": [[0, 20, 0.1, 0.2, 0.3, 0.4, 0.7], [13, 20, 0.0, 0.5, 1.0, 1.0, 0.6]],
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
        ({"regions": []}, "'regions' need 'box_format', which must be 'xyxy_norm'"),
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


GOOD = {"box": [0.1, 0.2, 0.3, 0.4], "text": "a mug"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (7, "7 is not of type 'object'"),
        (None, "None is not of type 'object'"),
        (GOOD | {"box": None}, "None is not of type 'array'"),
        (GOOD | {"box": [0, 0, 1, "1"]}, "'1' is not of type 'number'"),
        (GOOD | {"box": [0, 0, 1, True]}, "True is not of type 'number'"),
        (GOOD | {"box": [0, 0, 10**400, 1]}, "numbers must be finite and below 1e\\+09"),
        (GOOD | {"box": [float("nan"), 0, 1, 1]}, "box is not finite"),
        (GOOD | {"box": [0, 0, float("inf"), 1]}, "box is not finite"),
        (GOOD | {"text": None}, "None is not of type 'string'"),
        (GOOD | {"text": 7}, "7 is not of type 'string'"),
        (GOOD | {"score": float("nan")}, "numbers must be finite"),
        (GOOD | {"score": None}, "None is not of type 'number'"),
        (GOOD | {"cycle": float("nan")}, "numbers must be finite"),
        (GOOD | {"span": [5, 2]}, r"span \[5, 2\] is not in the first caption, of 20 characters"),
        (GOOD | {"span": [0, 21]}, r"span \[0, 21\] is not in the first caption"),
        (GOOD | {"span": [0, 1.5]}, "1.5 is not of type 'integer'"),
        (GOOD | {"role_texts": [{"text": "x", "role": "r", "weight": float("inf")}]}, "must be finite"),
        (GOOD | {"role_texts": [{"text": None, "role": "r"}]}, "None is not of type 'string'"),
        (GOOD | {"mask": None}, "None is not of type 'object'"),
        (GOOD | {"mask": {"size": [4, 4]}}, "'counts' is a required property"),
        (GOOD | {"mask": {"size": [4, 0], "counts": "0"}}, "0 is less than the minimum of 1"),
        (GOOD | {"mask": {"size": [4, 4], "counts": "1"}}, "run lengths do not fill 4 x 4"),
        (GOOD | {"mask": {"size": [4, 4], "counts": "é"}}, "run lengths hold what is no number"),
    ],
)
def test_a_wrong_region_costs_the_region(tmp_path: Path, wrong: Any, message: str) -> None:
    caption = "a red mug on a table"
    document = {"captions": [caption], "regions": [GOOD, wrong, GOOD | {"text": "a table"}]}
    dataset = shard_of(tmp_path / "a.tar", document | {"box_format": "xyxy_norm"}, caption)
    sample, (problem,) = read_usable(dataset, 0)
    assert sample is not None
    assert [region.text for region in sample.regions] == ["a mug", "a table"]
    assert re.search(message, problem.message)
    assert "regions[1]" in problem.message
    assert "a.tar, key 'a'" in problem.message
    encode_json(sample, (10, 20))  # what is left can be written
    with pytest.raises(SampleError, match=message):
        dataset[0]


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("noun_chunks", [0, 9, 0.1, 0.2, 0.3, 0.4], "is too short"),
        ("noun_chunks", [-5, 9, 0.1, 0.2, 0.3, 0.4, 1], "at least 0; got -5"),
        ("noun_chunks", [0, 90, 0.1, 0.2, 0.3, 0.4, 1], "no text from 0 to 90"),
        ("noun_chunks", [9, 0, 0.1, 0.2, 0.3, 0.4, 1], "no text from 9 to 0"),
        ("noun_chunks", [0.5, 9, 0.1, 0.2, 0.3, 0.4, 1], "whole number"),
        ("ref_exps", [float("nan"), 9, 0.1, 0.2, 0.3, 0.4, 1], "must be finite"),
        ("ref_exps", [0, 9, 0.1, 0.2, 0.3, 0.4, 7], r"score must be in \[0, 1\]; got 7"),
        ("ref_exps", [0, 9, 0.1, 0.2, 10**400, 0.4, 1], "must be finite and below"),
        ("ref_exps", "x", "'x' is not of type 'array'"),
        ("bbox_info", {"bbox": [0.1, 0.2, 0.3, 0.4]}, "'short_expr' is a required property"),
        ("bbox_info", {"bbox": "0.1 0.2", "short_expr": "x"}, "is not of type 'array'"),
        ("bbox_info", {"bbox": [0.1, 0.2, 0.3, None], "short_expr": "x"}, "None is not of type 'number'"),
        ("bbox_info", {"bbox": [0.1, 0.2, 0.3, 0.4, 10**400], "short_expr": "x"}, "must be finite"),
    ],
)
def test_a_wrong_region_of_others_costs_the_region(
    tmp_path: Path, name: str, wrong: Any, message: str
) -> None:
    good: Any = [0, 9, 0.1, 0.2, 0.3, 0.4, 0.9]
    if name == "bbox_info":
        good = {"bbox": [0.1, 0.2, 0.3, 0.4], "short_expr": "a red mug"}
    dataset = shard_of(tmp_path / "a.tar", {"caption": "a red mug on a table", name: [good, wrong]})
    sample, (problem,) = read_usable(dataset, 0)
    assert sample is not None
    assert [region.text for region in sample.regions] == ["a red mug"]
    assert re.search(message, problem.message)
    assert problem.cause == "broken region"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b'{"caption": "x", "caption": "y"}', "'caption' comes twice"),
        (
            b'{"regions": [{"box": [0,0,1,1], "text": "a", "text": "b"}], "box_format": "xyxy_norm"}',
            "'text' comes",
        ),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"x": ' + b"[" * 80 + b"]" * 80 + b"}", "more than 64 levels"),
        (
            b'{"captions": [], "regions": [], "box_format": "xyxy_norm", "x": '
            + b'{"y": ' * 80
            + b"1"
            + b"}" * 81,
            "64 levels",
        ),
        (b'{"x": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"width": 1e400, "height": 5, "captions": "x"}', "captions"),
        (b'{"width": "64", "height": 5}', "'64' is not of type"),
        (b'{"width": true, "height": 5}', "True is not of type"),
        (b'{"width": %s, "height": 5}' % (b"9" * 400), "sizes must be below"),
        (b'{"captions": ["x", null]}', "captions"),
        (b"null", "None is not of type 'object'"),
        (b"", "not valid JSON"),
        (b'"\\ud83d"', "is not of type 'object'"),
        ('{"caption": "x"}'.encode("utf-16"), "not valid JSON"),
    ],
)
def test_a_wrong_json_costs_the_sample(tmp_path: Path, document: bytes, message: str) -> None:
    tar = tar_of(tmp_path / "0.tar", [("a.jpg", encoded("JPEG")), ("a.json", document)])
    sample, (problem,) = read_usable(ShardDataset(str(tar)), 0)
    assert sample is None
    assert message in problem.message
    assert "0.tar, key 'a'" in problem.message
    assert problem.cause in ("broken JSON", "JSON of another form")
    assert len(problem.message) < 1000


def test_what_pandas_writes_for_nothing_is_nothing(tmp_path: Path) -> None:
    document = (
        b'{"caption": NaN, "width": NaN, "height": null, "original_width": -Infinity, "similarity": NaN, '
        b'"exif": {"a": NaN}, "punsafe": 0.5, "\\ud83d": "half \\ude00"}'
    )
    tar = tar_of(
        tmp_path / "0.tar", [("a.jpg", encoded("JPEG")), ("a.json", document), ("a.txt", b"\xef\xbb\xbfhi")]
    )
    sample, problems = read_usable(ShardDataset(str(tar)), 0)
    assert problems == []
    assert sample is not None
    assert sample.captions == ("hi",)
    assert sample.metadata["similarity"] is None
    assert sample.metadata["exif"] == {"a": None}
    write_shards([sample], tmp_path / "out")
    assert ShardDataset(str(tmp_path / "out"))[0].captions == ("hi",)


def test_odd_names_of_our_own_metadata_can_be_written(tmp_path: Path) -> None:
    sample = RegionSample("a", encoded("JPEG"), ("x",), (), {"\ud83d\ude00 \ud83d": 1})
    write_shards([clean_sample(sample)], tmp_path / "out")
    assert list(ShardDataset(str(tmp_path / "out"))[0].metadata) == ["\U0001f600 "]


def twice_in(text: bytes) -> bool:
    """The slow way."""
    found = []

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found.append(len(dict(pairs)) < len(pairs))
        return dict(pairs)

    json.loads(text, object_pairs_hook=look)
    return any(found)


names = st.sampled_from(("a", 'a"', "a\\", 'a":', '":', "\\", ":", "", "é"))
written = st.recursive(
    st.sampled_from(("1", "null", *(json.dumps(text) for text in ("x", 'x":', "x\\", '\\":', '": ":', ":")))),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: f"[{','.join(parts)}]")
        | st.lists(st.tuples(names, st.sampled_from((":", ": ", " :", "\n:")), inner), max_size=4).map(
            lambda rows: "{" + ",".join(json.dumps(name) + colon + part for name, colon, part in rows) + "}"
        )
    ),
    max_leaves=8,
)


@settings(max_examples=500, deadline=None)
@given(part=written, other=written)
def test_names_that_come_twice_are_never_overlooked(part: str, other: str) -> None:
    text = f'{{"regions": [{{"text": {part}}}], "captions": ["x"], "more": {other}}}'.encode()
    fields = json.loads(text)
    if _names_each_once(text, fields) or (_surely_valid(fields) and _writes_as_many(text, fields)):
        assert not twice_in(text)
    plain = json.dumps(json.loads(text)).encode()
    assert _names_each_once(plain, json.loads(plain)) or any(
        odd in plain for odd in (b'\\\\"', b" :", b'":"')
    )


OUTLINE = {"size": [2, 2], "counts": "13"}
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from(("\ud83d", "\0", "xyxy_norm", "NaN")),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
NAMES = (
    *("key", "status", "caption", "captions", "width", "height", "original_width", "original_height"),
    *("regions", "box_format", "role_texts", "noun_chunks", "ref_exps", "bbox_info", "anything"),
)
BASE: dict[str, Any] = {
    "key": "k",
    "caption": "a red mug",
    "captions": ["a red mug"],
    "width": 20,
    "height": 10,
    "regions": [GOOD | {"score": 0.5, "source": "s", "span": [0, 3], "cycle": 0.1, "mask": OUTLINE}],
    "box_format": "xyxy_norm",
    "role_texts": [{"text": "long", "role": "long", "weight": 1.0}],
}


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_json_of_any_shape_is_read_or_one_samples_fault(data: st.DataObject) -> None:
    """And what is read can be drawn, and written."""
    document = dict(BASE)
    for _ in range(data.draw(st.integers(1, 3))):
        name, value = data.draw(st.sampled_from(NAMES)), data.draw(json_values)
        inner = data.draw(st.sampled_from(("", *BASE["regions"][0])))
        document[name] = [BASE["regions"][0] | {inner: value}] if inner and name == "regions" else value
    if data.draw(st.booleans()):
        document.pop("regions", None)
    try:
        raw = parse_sample("a", encoded("JPEG"), b"hi", json.dumps(document).encode(), "here")
        sample, problems = sound_part(raw)
    except SampleError as error:
        told = str(error)
    else:
        told = "".join(problem.message for problem in problems) or "here"
        assert parse_sample("a", b"", None, encode_json(sample, (10, 20)), "again").key == "a"
        roles = {"long": 1, "regions.r": 2}
        draw_texts(sample, range(len(sample.regions)), roles, str.lower, np.random.default_rng(0))
    assert "here" in told


FULL = {
    "key": "k",
    "status": "success",
    "caption": "one",
    "captions": ["one"],
    "width": 4,
    "height": 3,
    "original_width": 8,
    "original_height": 6,
    "regions": [{"box": [0, 0.1, 0.5, 1], "text": "x", "score": 0.5, "source": "s", "mask": OUTLINE}],
    "box_format": "xyxy_norm",
}


VALUES = (None, True, 0, 1, -1, 1.5, float("nan"), "x", [], {}, ["x"], [0.5], [0.5] * 4, [0.5] * 5, ["x"] * 4)


@pytest.mark.parametrize("value", VALUES, ids=repr)
@pytest.mark.parametrize(
    "name",
    [*FULL, "noun_chunks", "bbox_info", "regions.box", "regions.text", "regions.score", "regions.mask"],
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


def test_outlines_come_back(tmp_path: Path) -> None:
    """Whether a back-slash is among the run lengths or not, and on a grid of their own."""
    rng = np.random.default_rng(0)
    masks = [Mask.of(rng.random((9, 7)) < share) for share in (0, 0.1, 0.5, 1)]
    masks += [Mask.of(np.tri(300, 400, 20 * i) > 0) for i in range(20)]
    assert any("\\" in mask.counts for mask in masks)
    regions = tuple(Region((0.1, 0.1, 0.5, 0.5), "a dog", mask=mask) for mask in (*masks, None))
    sample = RegionSample("a", np.zeros((8, 8, 3), np.uint8), regions=regions)
    write_shards([sample], tmp_path / "out")
    assert ShardDataset(str(tmp_path / "out"))[0].regions == regions
    for some in (regions[:1], regions):
        document = encode_json(replace(sample, regions=some), (8, 8))
        fields = json.loads(document)
        assert _surely_valid(fields)
        assert _writes_as_many(document, fields)
    escaped = document.replace(b'"a dog"', b'"a \\"dog"', 1)
    assert not _writes_as_many(escaped, json.loads(escaped))
    twice = document.replace(b'"counts":', b'"counts": "00", "counts":')
    with pytest.raises(SampleError, match="twice"):
        parse_sample("a", b"", None, twice, "here")


ROLE_TEXT = {"text": "a dog", "role": "mention", "source": "sentence 0, phrase 1", "weight": 1.0}


@pytest.mark.parametrize("value", VALUES, ids=repr)
@pytest.mark.parametrize("name", ["", *ROLE_TEXT, "more"])
def test_the_fast_check_of_texts_with_roles(name: str, value: Any) -> None:
    """It passes what we write, and nothing that the schema refuses."""
    texts = [ROLE_TEXT, ROLE_TEXT | {name: value}] if name else value
    document = FULL | {"regions": [FULL["regions"][0] | {"role_texts": texts}]}  # type: ignore[index]
    if schema_problems(document) != ("", {}):
        assert not _surely_valid(document)
    good = FULL | {"regions": [FULL["regions"][0] | {"role_texts": [ROLE_TEXT] * 2}]}  # type: ignore[index]
    assert _surely_valid(good)
    written = json.dumps(good).encode()
    assert _writes_as_many(written, good)
    twice = written.replace(b'"role":', b'"role": "other", "role":', 1)
    assert not _writes_as_many(twice, good)
    (region,) = parse_sample("a", b"", None, written, "here").regions
    assert region.texts == (Text(**ROLE_TEXT),) * 2  # type: ignore[arg-type]


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
    raw = parse_sample(
        "a", b"", None, b'{"role_texts": [{"text": "x"}, {"text": "y", "role": "long"}]}', "here"
    )
    assert raw.texts == (Text("y", "long"),)
    (problem,) = raw.problems
    assert problem.cause == "broken text"
    assert "role_texts[0]: 'role' is a required property" in problem.message
