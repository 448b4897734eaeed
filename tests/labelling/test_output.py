"""The folder of a run: what is refused, what is left to do, what a kill leaves."""

from __future__ import annotations

import errno
import io
import json
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from open_cloc.data.shards.read import ShardDataset
from open_cloc.data.shards.write import write_shards
from open_cloc.errors import UserError
from open_cloc.files import read_json
from open_cloc.labelling.diff import compare
from open_cloc.labelling.output import RunFolder, write_unit
from open_cloc.labelling.pipeline import label
from open_cloc.labelling.recipe import (
    LabelRecipe,
)
from open_cloc.labelling.source import plan_units, read_batches
from open_cloc.labelling.stages import CaptionStage, DetectStage, PhraseStage
from open_cloc.labelling.types import Batch, Failure, Picture, Unit
from tests.labelling.made import (
    Labelled,
    calls,
    captions_only,
    checksums,
    copy_of,
    encoded,
    recipe,
)


def test_another_filter_reruns_the_last_stage_alone(
    labelled: Labelled, without_ray: None, tmp_path: Path
) -> None:
    output = copy_of(labelled, tmp_path / "out")
    before, made = calls(labelled.folder), checksums(labelled.output)
    label(recipe(labelled.folder), labelled.source, output)
    assert checksums(output) == made
    strict = label(recipe(labelled.folder, min_score=0.5), labelled.source, output).counts
    assert calls(labelled.folder) == before
    assert strict["filtered"]["score"] > 0
    label(recipe(labelled.folder, min_score=0.5), labelled.source, tmp_path / "fresh")
    remade = checksums(output)
    assert remade == checksums(tmp_path / "fresh")
    assert remade["raw/00000_boxes.parquet"] == made["raw/00000_boxes.parquet"]
    assert remade["00000.tar"] != made["00000.tar"]
    assert compare(output, tmp_path / "fresh") == {"made": [], "came out": []}


def test_labels_made_otherwise_are_refused(labelled: Labelled, without_ray: None, tmp_path: Path) -> None:
    output = copy_of(labelled, tmp_path / "out")
    mine = recipe(labelled.folder)
    other = replace(mine, phrases=replace(mine.phrases, max_phrases=1))
    with pytest.raises(ValueError, match=r"phrases\.max_phrases was 20, now 1"):
        label(other, labelled.source, output)
    assert checksums(output) == checksums(labelled.output)
    (output / "mine.txt").write_text("not of a run")
    label(other, labelled.source, output, overwrite=True)
    assert (output / "mine.txt").read_text() == "not of a run"
    changes = compare(output, labelled.output)
    assert ("recipe.phrases.max_phrases", 1, 20) in changes["made"]
    assert any(what == "regions" for what, _, _ in changes["came out"])
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "file").touch()
    with pytest.raises(FileExistsError, match="must be new"):
        label(mine, labelled.source, tmp_path / "strange", overwrite=True)


def test_a_model_that_changed_under_its_name_is_refused(
    labelled: Labelled, without_ray: None, tmp_path: Path
) -> None:
    output = copy_of(labelled, tmp_path / "out")
    for mark in ("raw/00001.json", "00001_label.json"):
        (output / mark).unlink()
    (labelled.folder / "version").touch()
    with pytest.raises(ValueError, match=r"made otherwise: detect\.version was False, now True"):
        label(recipe(labelled.folder), labelled.source, output)
    (labelled.folder / "version").unlink()
    assert not (output / "00001_label.json").exists()


def batches_of(unit: Unit, mine: LabelRecipe) -> list[Batch]:
    """A unit's batches as they come out of the stages."""
    stages = [
        CaptionStage(mine.caption, "cpu"),
        PhraseStage(mine.phrases),
        DetectStage(mine.detect, "", "cpu"),
    ]
    batches = list(read_batches(unit, 2))
    for stage in stages:
        batches = [stage(batch) for batch in batches]
    return batches


def test_a_full_disk_leaves_no_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = captions_only(tmp_path / "in", 5)
    units, mine = plan_units(source, 1000), recipe(tmp_path)
    run = RunFolder.open(tmp_path / "out", mine, source, units)
    batches = batches_of(units[0], mine)

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("open_cloc.data.shards.write.save_index", full)
        with pytest.raises(OSError, match="No space left"):
            write_unit(run.path, mine, units[0], batches)
    assert not list((tmp_path / "out").glob("*_label.json"))
    assert not list((tmp_path / "out").glob("*.tar"))
    assert run.todo() == ([], units)
    write_unit(run.path, mine, units[0], None)
    assert run.todo() == ([], [])
    assert run.finish()["written"] == 5
    assert len(ShardDataset(str(tmp_path / "out"))) == 5


def test_a_unit_is_written_once_its_last_batch_is_here(tmp_path: Path) -> None:
    source, _ = captions_only(tmp_path / "in", 7)
    units, mine = plan_units(source, 1000), recipe(tmp_path)
    run = RunFolder.open(tmp_path / "out", mine, source, units)
    assert run.todo() == (units, [])
    first, second, third = batches_of(units[0], mine)
    (alone,) = batches_of(units[1], mine)
    written: list[tuple[str, list[int]]] = []

    def write(unit: Unit, batches: Sequence[Batch] | None) -> None:
        assert batches is not None
        written.append((unit.name, [batch.number for batch in batches]))
        write_unit(run.path, mine, unit, batches)

    for batch in (third, first, alone, second):  # in any order
        run.add(batch, write)
    assert written == [("00001", [0]), ("00000", [2, 0, 1])]
    assert run.finish()["written"] == 7
    assert [mark["counts"]["written"] for _, mark in run.marks()] == [5, 2]
    assert [len(ShardDataset(str(run.tar(unit)))) for unit in run.units] == [5, 2]
    assert ShardDataset(str(run.path)).key(0) == first.pictures[0].key


def test_secrets_of_urls_are_not_recorded(tmp_path: Path) -> None:
    spec = "shards:http://user:sesame@host/{}.tar?token=abc"
    units = [Unit("00000", spec.format(0)), Unit("00001", spec.format(1))]
    run = RunFolder.open(tmp_path, recipe(tmp_path), spec, units)
    written = (tmp_path / "label.json").read_text()
    assert "sesame" not in written
    assert "abc" not in written
    assert run.todo().detect == units  # but they are read by their whole names
    other = [Unit(unit.name, unit.spec.replace("abc", "def")) for unit in units]
    assert RunFolder.open(tmp_path, recipe(tmp_path), spec, other).todo().detect == other


def test_a_sample_that_cannot_be_written_any_more_is_a_failure_of_its_own(tmp_path: Path) -> None:
    """Between reading and writing one picture is damaged, another is gone."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (40, 30), (238, 40, 40)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a red square")
    units, mine = plan_units(f"folder:{folder}", 1000), recipe(tmp_path)
    run = RunFolder.open(tmp_path / "out", mine, f"folder:{folder}", units)
    batches = batches_of(units[0], mine)
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:60])
    (folder / "1.png").unlink()
    write_unit(run.path, mine, units[0], batches)
    ((_, mark),) = run.marks()
    assert mark["counts"]["written"] == 2
    assert sum(mark["counts"]["failures"].values()) == 2
    assert mark["counts"]["pictures"] == 4
    assert run.todo() == ([], [])  # and no more at the next start
    assert [sample.key for sample in (ShardDataset(str(run.path))[i] for i in range(2))] == ["2", "3"]


ODD = {
    "nan": ("0009", {"caption": "a red square", "similarity": float("nan")}),
    "emoji": ("0009", {"caption": "a red square \ud83d"}),
    "deep": ("0009", {"caption": "a red square", "more": {"a": [{"b": "\ud83d"}, float("inf")]}}),
    "dot slash": ("./0009", {"caption": "a red square"}),
    "html": ("0009", {"caption": "a <b>red</b> square &amp; \x00"}),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_sample_costs_no_more_than_itself(tmp_path: Path, name: str) -> None:
    """Among good ones, from the tar through all stages to a shard that can be read, and converted again."""
    picture = encoded(1)
    key, fields = ODD[name]
    members = [(f"{i:04d}.{s}", d) for i in range(3) for s, d in (("png", picture), ("txt", b"a red square"))]
    members += [(f"{key}.png", picture), (f"{key}.json", json.dumps(fields).encode())]
    tar = tmp_path / "in" / "00000.tar"
    tar.parent.mkdir()
    with tarfile.open(tar, "w") as writing:
        for member, content in members:
            info = tarfile.TarInfo(member)
            info.size = len(content)
            writing.addfile(info, io.BytesIO(content))
    units, mine = plan_units(f"shards:{tar.parent}", 1000), recipe(tmp_path)
    run = RunFolder.open(tmp_path / "out", mine, f"shards:{tar.parent}", units)
    write_unit(run.path, mine, units[0], batches_of(units[0], mine))
    assert run.todo() == ([], [])
    counts = run.finish()
    assert counts["written"] + sum(counts["failures"].values()) == 4
    assert counts["written"] >= 3
    labelled = ShardDataset(str(run.path))
    write_shards([labelled[index] for index in range(len(labelled))], tmp_path / "again")
    texts = [text for index in range(len(labelled)) for text in labelled[index].captions]
    assert all(text.encode() and "<" not in text and "\0" not in text for text in texts)


def test_a_unit_of_which_nothing_can_be_written_is_done_too(tmp_path: Path) -> None:
    source, _ = captions_only(tmp_path / "in", 5)
    units, mine = plan_units(source, 1000), recipe(tmp_path)
    run = RunFolder.open(tmp_path / "out", mine, source, units)
    batches = [
        replace(batch, pictures=tuple(replace(p, index=100 + p.index) for p in batch.pictures))
        for batch in batches_of(units[0], mine)
    ]
    write_unit(run.path, mine, units[0], batches)
    assert run.todo() == ([], [])
    assert run.finish()["written"] == 0
    assert not list(run.path.glob("*.tar"))


def test_each_mark_is_read_once_however_many_units_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, count = "scenes:val,num_samples=60", 60
    units, mine = plan_units(spec, 1), recipe(tmp_path)
    run = RunFolder.open(tmp_path / "out", mine, spec, units)
    assert len(units) == count
    picture = Picture(0, "a", failure=Failure("broken", "cut off"))
    for unit in units[: count // 2]:
        write_unit(run.path, mine, unit, [Batch(unit.name, 0, 1, (picture,))])
    read: Counter[str] = Counter()

    def counting(path: Path) -> Any:
        read[path.name] += 1
        return read_json(path)

    monkeypatch.setattr("open_cloc.labelling.marks.read_json", counting)
    again = RunFolder.open(tmp_path / "out", mine, spec, units)
    assert again.todo() == (units[count // 2 :], [])
    assert again.finish()["failures"] == {"broken": count // 2}
    assert read.total() == 1 + 2 * count // 2
    other = RunFolder.open(tmp_path / "out", recipe(tmp_path, min_score=0.5), spec, units)
    read.clear()
    assert other.todo() == (units[count // 2 :], units[: count // 2])
    assert read.total() == count // 2


def in_old_words(path: Path) -> None:
    """Make a certificate what version 0.1 wrote."""
    document = json.loads(path.read_text())
    recipe = document["recipe"]
    recipe["caption"]["model"] = recipe["caption"].pop("weights")
    recipe["detect"]["dtype"] = {"fp32": "float32"}[recipe["detect"].pop("precision")]
    if "made_by" in document:
        document["made_by"]["detect"]["dtype"] = "float32"
    path.write_text(json.dumps(document))


def test_a_folder_of_version_0_1_is_understood(tmp_path: Path) -> None:
    source, _ = captions_only(tmp_path / "in")
    units, mine = plan_units(source, 1000), recipe(tmp_path)
    mine = replace(mine, detect=replace(mine.detect, precision="fp32"))  # as `label` decides
    run = RunFolder.open(tmp_path / "out", mine, source, units)
    for unit in units[:2]:
        write_unit(run.path, mine, unit, batches_of(unit, mine))
    for path in (run.path / "label.json", *run.path.glob("raw/*.json"), *run.path.glob("*_label.json")):
        in_old_words(path)
    again = RunFolder.open(tmp_path / "out", mine, source, units)
    assert again.todo() == ([units[2]], [])
    (batch,) = batches_of(units[2], mine)
    own = {**batch.made_by, "detect": {**batch.made_by["detect"], "precision": "fp32"}}
    again.add(replace(batch, made_by=own), lambda unit, batches: write_unit(run.path, mine, unit, batches))
    assert again.finish()["written"] == 12
    assert [mark["counts"]["written"] for _, mark in again.marks()] == [5, 5, 2]
    coarse = replace(mine, detect=replace(mine.detect, precision="bf16"))
    with pytest.raises(ValueError, match=r"recipe\.detect\.precision was 'fp32', now 'bf16'"):
        RunFolder.open(tmp_path / "out", coarse, source, units)


def test_a_broken_mark_is_named(tmp_path: Path) -> None:
    (tmp_path / "label.json").write_text("{")
    with pytest.raises(UserError, match=r"label\.json is not valid JSON.*is no certificate"):
        RunFolder.load(tmp_path)
