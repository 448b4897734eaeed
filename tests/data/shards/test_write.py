"""Samples to tar shards and back, whole or not at all, the same bytes each time."""

from __future__ import annotations

import json
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from open_cloc.data.shards.read import ShardDataset
from open_cloc.data.shards.region_json import _surely_valid, _validator
from open_cloc.data.shards.write import MARK, write_shards
from open_cloc.files import LOCK, is_free, locked
from open_cloc.samples import Region, RegionSample
from tests.data.shards.tars import encoded, files, samples


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
    assert sorted(files(unfinished)) == [MARK, "00000.tar", "00000_index.npz", "00000_stats.json"]
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
        ([replace(good, key="a.b")], r"key must be a plain path without a '\.', such as .* makes; got 'a.b'"),
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


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("what", ["notes", "tars", "ours and notes", "a link", "a link inside", "a file"])
def test_nothing_is_touched_that_no_conversion_made(tmp_path: Path, what: str, resume: bool) -> None:
    """`OUT.incomplete` of somebody else stays as it is, and so does all that links lead to."""
    unfinished, theirs = tmp_path / "out.incomplete", tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "00000.tar").write_text("mine")
    if what == "a link":
        (theirs / MARK).touch()
        unfinished.symlink_to(theirs)
    elif what == "a file":
        unfinished.write_text("mine")
    else:
        unfinished.mkdir()
        if what != "tars":
            (unfinished / MARK).touch()
        if what == "a link inside":
            (unfinished / "00000.tar").symlink_to(theirs / "00000.tar")
        else:
            (unfinished / ("notes.txt" if "notes" in what else "00000.tar")).write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match=r"out\.incomplete is in the way, and no stopped conversion"):
        write_shards(samples(), tmp_path / "out", 2, resume=resume)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_killed_conversion_is_begun_anew(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the source broke"):
        write_shards(failing(3), tmp_path / "out", 2, resume=True)
    (tmp_path / "out.incomplete" / LOCK).touch()
    (tmp_path / "out.incomplete" / "00001.tar.part").touch()
    (tmp_path / "out.incomplete" / ".part-7-00000000.json").touch()
    assert write_shards(samples()[1:], tmp_path / "out", 2) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {name[0] for name in files(tmp_path / "out")} == {"0", "s"}


def test_a_conversion_at_work_is_left_alone(tmp_path: Path) -> None:
    unfinished = tmp_path / "out.incomplete"
    with locked(unfinished):
        (unfinished / MARK).touch()
        (unfinished / "00000.tar").touch()
        with pytest.raises(ValueError, match=r"another process works in .*out\.incomplete"):
            write_shards(samples(), tmp_path / "out", 2)
        assert sorted(files(unfinished)) == [LOCK, MARK, "00000.tar"]


def test_a_conversion_that_was_overtaken_leaves_the_other_ones_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one has ended between the first look at the folder and the lock."""
    write_shards(samples(), tmp_path / "whole", 2)
    made = files(tmp_path / "whole")
    looks: list[Path] = []

    def free(folder: Path) -> bool:
        looks.append(folder)
        if len(looks) == 3:  # the output, the unfinished one, and the output again
            (tmp_path / "whole").rename(tmp_path / "out")
        return is_free(folder)

    monkeypatch.setattr("open_cloc.data.shards.write.is_free", free)
    with pytest.raises(FileExistsError, match="must be new or empty"):
        write_shards(samples(), tmp_path / "out", 2)
    assert files(tmp_path / "out") == made
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
