"""Tar shards: what is written is read back, by us and by others; wrong shards are named."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from open_cloc.data.shards import index as shard_index
from open_cloc.data.shards.index import UnreadableShardError
from open_cloc.data.shards.read import ShardDataset
from open_cloc.data.shards.region_json import _surely_valid, _validator, schema_problem
from open_cloc.data.shards.write import write_shards
from open_cloc.samples import Region, RegionSample


def encoded(kind: str, size: tuple[int, int] = (20, 10), colour: int = 90) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (colour, 20, 30)).save(buffer, kind)
    return buffer.getvalue()


def samples(count: int = 5) -> list[RegionSample]:
    labelled = Region((0.1, 0.2, 0.5, 1.0), "a “red” mug", 0.25, "owlv2", span=(0, 11), cycle=-0.5)
    regions = (labelled, Region((0, 0, 1, 1), "all"))
    made = []
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 255, (8 + i, 12, 3), dtype=np.uint8)
        image = pixels if i % 2 else encoded("JPEG", colour=i)
        captions = (f"caption {i}", "second") if i != 3 else ()
        made.append(
            RegionSample(f"k{i}", image, captions, regions[: i % 3], {"url": f"http://x/{i}", "n": [i]})
        )
    return made


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def tar_of(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def shard_of(path: Path, document: Any, caption: str = "a red mug on a table") -> ShardDataset:
    members = [
        ("a.jpg", encoded("JPEG")),
        ("a.txt", caption.encode()),
        ("a.json", json.dumps(document).encode()),
    ]
    return ShardDataset(str(tar_of(path, members)))


def test_round_trip(tmp_path: Path) -> None:
    assert write_shards(samples(), tmp_path / "out", samples_per_shard=2) == 5
    dataset = ShardDataset(str(tmp_path / "out"))
    assert [path.name for path in dataset.paths] == ["00000.tar", "00001.tar", "00002.tar"]
    assert len(dataset) == 5
    for original, read in zip(samples(), [dataset[i] for i in range(5)]):
        assert replace(read, image=b"") == replace(original, image=b"")
        np.testing.assert_array_equal(read.pixels(), original.pixels())
        if isinstance(original.image, bytes):
            assert read.image == original.image  # not encoded again
    with pytest.raises(IndexError):
        dataset[5]
    assert pickle.loads(pickle.dumps(dataset))[4].key == "k4"  # as spawned workers get it


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_shards(samples(), tmp_path / name, samples_per_shard=3)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_sidecars(tmp_path: Path) -> None:
    counted: list[int] = []
    write_shards(samples(), tmp_path / "out", 2, progress=counted.append)
    assert counted == [1] * 5
    assert json.loads((tmp_path / "out/sizes.json").read_text()) == {
        "00000.tar": 2,
        "00001.tar": 2,
        "00002.tar": 1,
    }
    stats = json.loads((tmp_path / "out/00000_stats.json").read_text())
    assert stats["count"] == stats["successes"] == stats["status_dict"]["success"] == 2
    assert (stats["regions"], stats["captions"]) == (1, 4)


def test_webdataset_reads_what_we_write_as_open_clip_does(tmp_path: Path) -> None:
    write_shards(samples(), tmp_path / "out", 2)
    url = str(tmp_path / "out/{00000..00002}.tar")
    stream = webdataset.DataPipeline(
        webdataset.SimpleShardList(url),
        webdataset.tarfile_to_samples(),
        webdataset.select(lambda sample: "txt" in sample),
        webdataset.decode("pilrgb"),
        webdataset.rename(image="jpg;png;jpeg;webp", text="txt"),
        webdataset.to_tuple("__key__", "image", "text", "json"),
    )
    read = list(stream)
    captioned = [sample for sample in samples() if sample.captions]
    assert [(key, text) for key, _, text, _ in read] == [(s.key, s.captions[0]) for s in captioned]
    for sample, (_, image, text, document) in zip(captioned, read):
        np.testing.assert_array_equal(np.asarray(image), sample.pixels())
        assert document["caption"] == text
        assert (document["height"], document["width"]) == sample.pixels().shape[:2]
        assert [region["text"] for region in document["regions"]] == [r.text for r in sample.regions]
    assert len(list(webdataset.WebDataset(url, shardshuffle=False))) == 5


def test_everything_written_fits_the_published_schema(tmp_path: Path) -> None:
    write_shards(samples(), tmp_path / "out")
    with tarfile.open(tmp_path / "out/00000.tar") as tar:
        documents = [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")]  # type: ignore[arg-type]
        assert {(m.mtime, m.uid) for m in tar} == {(0, 0)}
    assert len(documents) == 5
    for document in documents:
        _validator().validate(document)
        assert _surely_valid(document)  # the fast path takes what we write


def test_pictures_from_files_and_of_other_formats(tmp_path: Path) -> None:
    for kind in ("PNG", "WEBP", "GIF", "BMP"):
        (tmp_path / f"p.{kind.lower()}").write_bytes(encoded(kind))
    made = [RegionSample(kind, tmp_path / f"p.{kind}") for kind in ("png", "webp", "gif", "bmp")]
    write_shards(made, tmp_path / "out")
    with tarfile.open(tmp_path / "out/00000.tar") as tar:
        assert [n for n in tar.getnames() if "json" not in n] == [
            "png.png",
            "webp.webp",
            "gif.png",
            "bmp.png",
        ]
    dataset = ShardDataset(str(tmp_path / "out"))
    assert dataset[0].image == (tmp_path / "p.png").read_bytes()
    for i, original in enumerate(made):
        np.testing.assert_array_equal(dataset[i].pixels(), original.pixels())


def test_pixels_may_be_stored_as_jpeg(tmp_path: Path) -> None:
    flat = RegionSample("a", np.full((16, 16, 3), 77, np.uint8))
    write_shards([flat], tmp_path / "out", array_format="jpg")
    (read,) = ShardDataset(str(tmp_path / "out"))  # type: ignore[misc]
    assert isinstance(read.image, bytes)
    assert read.image[:2] == b"\xff\xd8"
    assert np.abs(read.pixels().astype(int) - 77).max() <= 2


@pytest.mark.parametrize(
    ("size", "stored"), [((640, 480), (64, 48)), ((30, 1000), (2, 64)), ((64, 10), None)]
)
def test_pictures_larger_than_max_side_are_stored_smaller(
    tmp_path: Path, size: tuple[int, int], stored: tuple[int, int] | None
) -> None:
    region = Region((0.1, 0.2, 0.5, 1.0), "a mug")
    original = RegionSample("a", encoded("JPEG", size), ("x",), (region,))
    write_shards([original], tmp_path / "out", max_side=64)
    (read,) = ShardDataset(str(tmp_path / "out"))  # type: ignore[misc]
    assert read.regions == (region,)  # normalised, hence the same
    if stored is None:
        assert read.image == original.image  # byte for byte
    else:
        assert read.pixels().shape == (*stored[::-1], 3)
        assert np.abs(read.pixels().astype(int) - [90, 20, 30]).max() <= 3
        with tarfile.open(tmp_path / "out/00000.tar") as tar:
            document = json.load(tar.extractfile("a.json"))  # type: ignore[arg-type]
        assert (document["width"], document["height"]) == stored
    pixels = RegionSample("p", np.zeros((size[1], size[0], 3), np.uint8))
    write_shards([pixels], tmp_path / "pixels", max_side=64)
    assert ShardDataset(str(tmp_path / "pixels"))[0].pixels().shape[:2] == (stored or size)[::-1]
    with pytest.raises(ValueError, match="max_side must be at least 1, or 0 for no limit; got -1"):
        write_shards([pixels], tmp_path / "x", max_side=-1)


def test_a_resumed_conversion_keeps_to_one_size(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the source broke"):
        write_shards(failing(3), tmp_path / "out", 2, max_side=8, resume=True)
    with pytest.raises(ValueError, match="holds other samples; start anew without resume"):
        write_shards(samples(), tmp_path / "out", 2, max_side=6, resume=True)


def opened_by_scanning(path: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tars that opening a dataset scans."""
    scanned: list[str] = []
    scan = shard_index.scan_shard
    with monkeypatch.context() as patch:
        patch.setattr(shard_index, "scan_shard", lambda tar: scanned.append(tar.name) or scan(tar))
        ShardDataset(path)
    return scanned


def test_the_index_beside_our_shards_is_used_while_it_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write_shards(samples(), out, 2)
    assert opened_by_scanning(str(out), monkeypatch) == []
    with_index = ShardDataset(str(out))
    for file in out.glob("*_index.npz"):
        file.unlink()
    scanned = ShardDataset(str(out))
    assert [scanned[i] for i in range(5)] == [with_index[i] for i in range(5)]
    write_shards(samples(), tmp_path / "again", 2)
    moved = tmp_path / "again"
    later = (moved / "00001_index.npz").stat().st_mtime + 10
    os.utime(moved / "00001.tar", (later, later))  # changed after its index was made
    (moved / "00002_index.npz").write_bytes(b"damaged")
    assert opened_by_scanning(str(moved), monkeypatch) == ["00001.tar", "00002.tar"]


def test_the_index_of_foreign_tars_is_kept_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = tar_of(tmp_path / "t.tar", [("a.jpg", encoded("JPEG"))])
    assert opened_by_scanning(str(tar), monkeypatch) == ["t.tar"]
    assert opened_by_scanning(str(tar), monkeypatch) == []
    tar_of(tar, [("a.jpg", encoded("JPEG")), ("b.jpg", encoded("JPEG"))])
    assert opened_by_scanning(str(tar), monkeypatch) == ["t.tar"]
    assert ShardDataset(str(tar)).keys.tolist() == ["a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["t.tar"]  # nothing is written beside it
    monkeypatch.setenv("OPEN_CLOC_CACHE", str(tar / "no folder"))
    assert len(ShardDataset(str(tar))) == 2  # a cache that cannot be written only costs time


def test_a_tar_that_was_cut_behind_its_index_is_a_broken_shard(tmp_path: Path) -> None:
    write_shards(samples(), tmp_path / "out")
    dataset = ShardDataset(str(tmp_path / "out"))
    tar = tmp_path / "out/00000.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[: len(whole) // 2])
    assert dataset[0].key == "k0"
    with pytest.raises(UnreadableShardError, match=r"shard is cut short before byte \d+ \(.*00000\.tar\)"):
        dataset[4]


def failing(count: int) -> Any:
    yield from samples()[:count]
    raise ValueError("the source broke")


@pytest.mark.parametrize("exists", [False, True])
def test_a_failed_conversion_leaves_nothing(tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="the source broke"):
        write_shards(failing(4), tmp_path / "out", 2)
    assert [path.name for path in tmp_path.rglob("*")] == (["out"] if exists else [])


def test_resume_keeps_finished_shards_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the source broke"):
        write_shards(failing(3), tmp_path / "out", 2, resume=True)
    unfinished = tmp_path / "out.incomplete"
    assert sorted(files(unfinished)) == ["00000.tar", "00000_index.npz", "00000_stats.json"]
    before = (unfinished / "00000.tar").stat().st_ino
    assert write_shards(samples(), tmp_path / "out", 2, resume=True) == 5
    assert (tmp_path / "out/00000.tar").stat().st_ino == before
    write_shards(samples(), tmp_path / "whole", 2)
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert not unfinished.exists()


def test_resume_refuses_other_samples(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the source broke"):
        write_shards(failing(3), tmp_path / "out", 2, resume=True)
    with pytest.raises(ValueError, match="holds other samples; start anew without resume"):
        write_shards(samples()[1:], tmp_path / "out", 2, resume=True)
    assert write_shards(samples()[1:], tmp_path / "out", 2) == 4


def test_wrong_samples_are_refused(tmp_path: Path) -> None:
    good = samples()[0]
    cases: list[tuple[list[RegionSample], str]] = [
        ([], "no samples to write"),
        ([good, good], "key 'k0' occurs twice"),
        ([replace(good, key="a.b")], r"key must not be empty, start with '/' or contain a '\.'; got 'a.b'"),
        ([replace(good, image=b"text")], "image of sample 'k0' cannot be decoded"),
        ([replace(good, image=encoded("JPEG")[:-200])], "image of sample 'k0' cannot be decoded"),
        ([replace(good, regions=(Region((9, 9, 50, 20), "px"),))], "box is outside the picture: got .*'k0'"),
        (
            [replace(good, regions=(Region((0.5, 0, 0.1, 1), "x"),))],
            "box is inverted: .*sample 'k0', region 0",
        ),
        ([replace(good, metadata={"x": {1, 2}})], "sample 'k0' cannot be written as JSON"),
    ]
    for wrong, message in cases:
        with pytest.raises(ValueError, match=message):
            write_shards(wrong, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="image of sample 'k0' not found: /nowhere"):
        write_shards([replace(good, image=Path("/nowhere/a.jpg"))], tmp_path / "out")
    with pytest.raises(ValueError, match="samples_per_shard must be at least 1; got 0"):
        write_shards([good], tmp_path / "out", 0)
    assert list(tmp_path.iterdir()) == []


def test_a_full_output_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(FileExistsError, match="must be new or empty"):
        write_shards(samples(), tmp_path)
    assert files(tmp_path) == {"note": b"mine"}


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
    with pytest.raises(ValueError, match=r"no text from 50 to 60 of the caption .*noun_chunks\[0\]"):
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
        with pytest.raises(ValueError, match=r"not valid JSON or UTF-8: .*00000\.tar, key 'a'"):
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
    assert bool(schema_problem(document)) == bool(errors)
    assert _surely_valid(FULL)


def test_broken_tars_are_named(tmp_path: Path) -> None:
    write_shards(samples(), tmp_path / "out")
    tar = tmp_path / "out/00000.tar"
    whole = tar.read_bytes()
    end = whole.rstrip(b"\0")
    boundary = -(-len(end) // 512) * 512  # after the last member: only the end mark is gone
    with tarfile.open(tar) as opened:
        middle = opened.getmembers()[4].offset
    damaged = whole[:middle] + b"\x55" * 512 + whole[middle + 512 :]
    for content in (whole[:1300], whole[: len(whole) // 2], whole[:boundary], damaged, b"", b"no tar" * 200):
        tar.write_bytes(content)
        with pytest.raises(ValueError, match=r"broken tar file: .*00000\.tar"):
            ShardDataset(str(tmp_path / "out"))
    tar.write_bytes(damaged)
    tolerant = ShardDataset.tolerant(str(tmp_path / "out"))
    assert len(tolerant) >= 1
    assert len(tolerant.problems) == 1


def test_repeated_keys_are_named(tmp_path: Path) -> None:
    picture = encoded("JPEG")
    tar_of(tmp_path / "00000.tar", [("a.jpg", picture), ("b.jpg", picture)])
    tar_of(tmp_path / "00001.tar", [("b.jpg", picture)])
    with pytest.raises(ValueError, match=r"key 'b' occurs twice; .*00000\.tar and .*00001\.tar"):
        ShardDataset(str(tmp_path))
    assert len(ShardDataset.tolerant(str(tmp_path))) == 2
    twice = tar_of(tmp_path / "x.tar", [("a.jpg", picture), ("a.txt", b"1"), ("a.txt", b"2")])
    with pytest.raises(ValueError, match=r"key 'a' has two members \.txt"):
        ShardDataset(str(twice))
    apart = tar_of(tmp_path / "y.tar", [("a.jpg", picture), ("b.jpg", picture), ("a.png", picture)])
    with pytest.raises(ValueError, match="key 'a' occurs twice"):
        ShardDataset(str(apart))


def test_where_shards_are(tmp_path: Path) -> None:
    write_shards(samples(), tmp_path / "out", 2)
    assert len(ShardDataset(f"{tmp_path}/out/{{00000..00001}}.tar")) == 4
    assert len(ShardDataset(f"{tmp_path}/out/00002.tar")) == 1
    with pytest.raises(FileNotFoundError, match=r"no such shard: .*00003\.tar"):
        ShardDataset(f"{tmp_path}/out/{{00002..00003}}.tar")
    with pytest.raises(ValueError, match=r"no \.tar files in folder"):
        ShardDataset(str(tmp_path))
    only_text = tar_of(tmp_path / "t.tar", [("a.txt", b"hi"), ("folder/b.c.json", b"{}"), (".hidden", b"")])
    with pytest.raises(ValueError, match="no samples with a picture"):
        ShardDataset(str(only_text))


def test_keys_end_at_the_first_dot_and_keep_their_folder(tmp_path: Path) -> None:
    tar = tar_of(tmp_path / "t.tar", [("d.x/b.jpg", encoded("JPEG")), ("d.x/b.json", b"{}"), ("c.txt", b"x")])
    dataset = ShardDataset(str(tar))
    assert dataset.keys.tolist() == ["d.x/b"]
    assert dataset.without_image == 1
    assert dataset[0].captions == ()
