"""The labelling pipeline on a real local Ray cluster, from pictures to shards, kills included."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from open_cloc.data.shards.read import ShardDataset
from open_cloc.data.shards.write import write_shards
from open_cloc.errors import UserError
from open_cloc.labelling.pipeline import label, watched
from open_cloc.labelling.recipe import CaptionConfig
from open_cloc.labelling.types import Batch, Failure, Picture
from tests.labelling.caption_server import Server, answer, picture_in
from tests.labelling.made import (
    COUNT,
    Labelled,
    checksums,
    recipe,
)


def test_scenes_are_labelled(labelled: Labelled) -> None:
    dataset, scenes = ShardDataset(str(labelled.output)), labelled.scenes
    assert [dataset.key(i) for i in range(len(dataset))] == [scene.key for scene in scenes]
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


def test_bad_pictures_are_counted(without_ray: None, tmp_path: Path) -> None:
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
    counts = label(recipe(tmp_path), f"folder:{folder}", tmp_path / "out").counts
    assert counts["failures"] == {"unreadable picture": 2, "no caption": 1}
    assert "0x" not in str(counts["failure_examples"])  # an address would differ in each run
    assert counts["written"] == 2
    assert counts["pictures"] == 5
    mine = recipe(tmp_path)
    strict = replace(mine, run=replace(mine.run, max_bad_fraction=0.001))
    with pytest.raises(ValueError, match="samples are bad"):
        label(strict, f"folder:{folder}", tmp_path / "strict")


def test_too_many_bad_pictures_stop_the_run() -> None:
    failed = Picture(1, "b", failure=Failure("no caption", "none"))
    batches = [Batch("00000", 0, 1, (Picture(0, "a"), failed))] * 20
    assert len(list(watched(batches, None, 0.5))) == 20
    with pytest.raises(UserError, match="samples are bad"):
        list(watched(batches, None, 0.001))


def test_captions_come_from_a_server(labelled: Labelled, without_ray: None, tmp_path: Path) -> None:
    """What each picture's true caption is, a server says; the given ones say nothing."""
    source = ShardDataset(labelled.source.removeprefix("shards:"))
    pictures = [source[index] for index in range(COUNT)]
    said = {picture.image: picture.captions[0] for picture in pictures}
    write_shards([replace(p, captions=("a photo",)) for p in pictures], tmp_path / "in", samples_per_shard=5)
    server = Server(lambda _, body: answer(said[picture_in(body)]))
    try:
        mine = replace(
            recipe(labelled.folder), caption=CaptionConfig(kind="server", weights="m", url=server.url)
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


COMMAND = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.labelling.made import recipe, tell_machine
from dataclasses import replace
from pathlib import Path
from open_cloc.labelling.pipeline import label
tell_machine(Path(sys.argv[4]).with_name("machine"))
own = recipe(Path(sys.argv[2]))
run = replace(own.run, address=sys.argv[5], detectors=int(sys.argv[6]))
label(replace(own, run=run), sys.argv[3], sys.argv[4])
"""


def command(labelled: Labelled, output: Path, address: str = "", detectors: int = 1) -> list[str]:
    """A run in a process of its own."""
    arguments = [Path(__file__).parents[2], labelled.folder, labelled.source, output, address, detectors]
    return [sys.executable, "-c", COMMAND, *map(str, arguments)]


def wait_for_raw_boxes(output: Path) -> None:
    deadline = time.monotonic() + 180
    while not list(output.glob("raw/*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(output.glob("raw/*.json"))
    assert len(list(output.glob("*_label.json"))) < 3


def test_a_killed_driver_and_a_dead_worker_change_nothing(
    cluster: None, labelled: Labelled, tmp_path: Path
) -> None:
    """Nor does a stranger's file in the working folder that has a library's name: none of them runs."""
    output, strangers = tmp_path / "out", tmp_path / "strangers"
    strangers.mkdir()
    for name in ("numpy", "pyarrow", "random", "PIL", "torch"):
        (strangers / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\n")
    (labelled.folder / "slow").touch()
    killed = command(labelled, output)
    killed[2] = COMMAND.replace("sys.path.insert(0, sys.argv[1])", "sys.path[0] = sys.argv[1]")
    process = subprocess.Popen(killed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=strangers)
    try:
        wait_for_raw_boxes(output)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        (labelled.folder / "slow").unlink()
    (labelled.folder / "die").touch()
    label(recipe(labelled.folder), labelled.source, output)
    assert not (labelled.folder / "die").exists()
    assert not (tmp_path / "ran").exists()
    assert checksums(output) == checksums(labelled.output)


def test_a_cluster_of_machines_one_of_which_dies(labelled: Labelled, tmp_path: Path) -> None:
    import ray
    from ray.cluster_utils import Cluster

    output = tmp_path / "out"
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        # Older Rays join any of a host's machines, and with its own a run ends: seen with 2.50.
        joins_head = tuple(map(int, ray.__version__.split(".")[:2])) >= (2, 60)
        others = [machines.add_node(num_cpus=2) for _ in range(1 if joins_head else 2)]
        machines.wait_for_nodes()
        (labelled.folder / "slow").touch()
        process = subprocess.Popen(
            command(labelled, output, machines.address, 2), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        wait_for_raw_boxes(output)
        own = (tmp_path / "machine").read_text()
        machines.remove_node(next(m for m in others if m.node_id != own), allow_graceful=False)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()[-2000:]
    finally:
        (labelled.folder / "slow").unlink(missing_ok=True)
        machines.shutdown()
    assert checksums(output) == checksums(labelled.output)
