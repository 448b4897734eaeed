"""What every reader of `READERS` promises, walked over the dict: a new one needs only a fixture here."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from open_cloc.data.annotations import RawSample, checked_boxes, raw_sample
from open_cloc.data.readers import READERS, SampleDataset, guess_spec, open_reader
from open_cloc.data.shards.read import ShardDataset
from open_cloc.data.shards.write import write_shards
from open_cloc.errors import UserError
from open_cloc.samples import RegionSample
from tests.data.readers.made import (
    coco_document,
    pictures,
    write_class_folders,
    write_coco,
    write_dci,
    write_fg_ovd,
    write_finehard,
    write_flair,
    write_flickr30k,
    write_genome,
    write_grefcoco,
    write_karpathy,
    write_lvis,
    write_masks,
    write_mdetr,
    write_objects365,
    write_odvg,
    write_open_images,
    write_panoptic,
    write_reclip,
    write_refcoco_table,
    write_sharegpt4v,
    write_table,
    write_urban1k,
    write_voc,
    write_yolo,
)


def _coco(folder: Path) -> str:
    return str(write_coco(folder, coco_document()))


def _lvis(folder: Path) -> str:
    return str(write_lvis(folder))


def _yolo(folder: Path) -> str:
    write_yolo(folder, {"a": ["0 0.5 0.5 0.2 0.4", "1 0.5 0.5 1 1"], "b": None})
    return str(folder)


def _shards(folder: Path) -> str:
    scenes = open_reader("scenes:val,num_samples=3")
    write_shards((scenes[index] for index in range(3)), folder / "tars", samples_per_shard=2)
    return str(folder / "tars")


def _folder(folder: Path) -> str:
    pictures(folder, "a.png", "deep/b.jpg")
    (folder / "a.txt").write_text("a red mug")
    return str(folder)


def _table(folder: Path) -> str:
    pictures(folder, "a.png", "b.png")
    return str(write_table(folder / "t.csv", [{"image": f"{name}.png", "text": name} for name in "ab"]))


# What lies there, and the path that a user would give. Scenes lie nowhere: they have no bare path.
FIXTURES: dict[str, Callable[[Path], str]] = {
    "coco": _coco,
    "lvis": _lvis,
    "yolo": _yolo,
    "shards": _shards,
    "folder": _folder,
    "table": _table,
    "visual_genome": lambda folder: str(write_genome(folder)),
    "flickr30k": lambda folder: str(write_flickr30k(folder)),
    "panoptic": lambda folder: str(write_panoptic(folder)),
    "voc": lambda folder: str(write_voc(folder)),
    "odvg": lambda folder: str(write_odvg(folder)),
    "karpathy": lambda folder: str(write_karpathy(folder)),
    "flair": lambda folder: str(write_flair(folder)),
    "sharegpt4v": lambda folder: str(write_sharegpt4v(folder)),
    "urban1k": lambda folder: str(write_urban1k(folder)),
    "dci": lambda folder: str(write_dci(folder)),
    "reclip": lambda folder: str(write_reclip(folder)),
    "finehard": lambda folder: str(write_finehard(folder)),
    "fg_ovd": lambda folder: str(write_fg_ovd(folder)),
    "scenes": lambda folder: "val",
    "masks": write_masks,
    "grefcoco": lambda folder: str(write_grefcoco(folder)),
    "mdetr": lambda folder: str(write_mdetr(folder)),
    "refcoco_table": lambda folder: str(write_refcoco_table(folder)),
    "open_images": lambda folder: str(write_open_images(folder)),
    "objects365": lambda folder: str(write_objects365(folder)),
    "class_folders": lambda folder: str(write_class_folders(folder)),
}
UNGUESSED = ("scenes", "masks", "class_folders")  # what a path alone does not say


def opened(kind: str, folder: Path) -> SampleDataset:
    return open_reader(f"{kind}:{FIXTURES[kind](folder)}")


def samples(dataset: SampleDataset) -> list[RegionSample]:
    return [dataset[index] for index in range(min(len(dataset), 5))]


def test_every_reader_has_a_fixture() -> None:
    assert set(FIXTURES) == set(READERS)


@pytest.mark.parametrize("kind", READERS)
def test_samples_are_valid(kind: str, tmp_path: Path) -> None:
    dataset = opened(kind, tmp_path)
    found = samples(dataset)
    assert found
    assert len({sample.key for sample in found}) == len(found)
    for index, sample in enumerate(found):
        assert sample.key
        assert "." not in sample.key
        assert sample.pixels().dtype == np.uint8
        np.testing.assert_array_equal(
            checked_boxes(sample), [region.box for region in sample.regions] or np.empty((0, 4))
        )
        assert all(region.text.strip() and region.source for region in sample.regions)
        assert raw_sample(dataset, index).key == sample.key
    with pytest.raises(IndexError):
        dataset[len(dataset)]


@pytest.mark.parametrize("kind", READERS)
def test_a_worker_process_reads_the_same(kind: str, tmp_path: Path) -> None:
    dataset = opened(kind, tmp_path)
    again = pickle.loads(pickle.dumps(dataset))
    assert len(again) == len(dataset)
    assert [sample.key for sample in samples(again)] == [sample.key for sample in samples(dataset)]
    assert [sample.regions for sample in samples(again)] == [sample.regions for sample in samples(dataset)]


@pytest.mark.parametrize("kind", READERS)
def test_samples_survive_shards(kind: str, tmp_path: Path) -> None:
    found = samples(opened(kind, tmp_path))
    write_shards(found, tmp_path / "written")
    again = samples(ShardDataset(str(tmp_path / "written")))
    for before, after in zip(found, again, strict=True):
        assert (after.key, after.captions, after.regions) == (before.key, before.captions, before.regions)
        assert dict(after.metadata) == dict(before.metadata)
        np.testing.assert_array_equal(after.pixels(), before.pixels())


@pytest.mark.parametrize("kind", READERS)
def test_unknown_options_are_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown option 'colour'"):
        open_reader(f"{kind}:{FIXTURES[kind](tmp_path)},colour=red")


@pytest.mark.parametrize("kind", [kind for kind in READERS if kind not in UNGUESSED])
def test_a_bare_path_is_recognised(kind: str, tmp_path: Path) -> None:
    path = FIXTURES[kind](tmp_path)
    assert guess_spec(path) == f"{kind}:{path}"


@pytest.mark.parametrize("kind", READERS)
def test_what_is_not_there_is_the_users_to_mend(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent"):
        open_reader(f"{kind}:{tmp_path}/absent.x")


@pytest.mark.parametrize("kind", [kind for kind in READERS if kind not in UNGUESSED])
def test_what_is_wrong_or_not_used_can_be_told(kind: str, tmp_path: Path) -> None:
    dataset: Any = opened(kind, tmp_path)
    assert list(dataset.problems) == []
    assert all(count > 0 for count in dataset.left_out.values())
    assert isinstance(dataset.raw(0), RawSample)


NAMING = (
    *("coco", "lvis", "odvg", "fg_ovd", "finehard", "reclip", "flair", "sharegpt4v"),
    *("karpathy", "mdetr", "dci", "grefcoco", "panoptic", "visual_genome"),
)


def with_key(value: Any) -> Any:
    """The same JSON with a key that no format knows in each of its objects."""
    if isinstance(value, list):
        return [with_key(part) for part in value]
    if isinstance(value, dict):
        return {name: with_key(part) for name, part in value.items()} | {"foo": "x"}
    return value


@pytest.mark.parametrize("kind", NAMING)
def test_keys_that_are_not_used_are_named(kind: str, tmp_path: Path) -> None:
    plain: Any = opened(kind, tmp_path)
    assert "key '" not in str(plain.left_out)
    for file in (file for file in tmp_path.rglob("*.json*") if file.name != "splits.json"):
        parts = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
        file.write_text("\n".join(json.dumps(with_key(json.loads(part))) for part in parts))
    dataset: Any = open_reader(f"{kind}:{plain.where}")
    assert "' key 'foo'" in str(dataset.left_out)
