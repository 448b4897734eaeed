"""What grows with the number of samples: python -m benchmarks.growth

Each size in a process of its own: the order of an epoch, the index of shards (its first opening, which reads
the tars, and a later one), and the start of a labelling run half of whose units are detected. Memory is the
peak beyond what the process had before. The tars of a million samples take 2 GB of the temporary folder.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.timing import print_table, verdict, write_json
from open_cloc.data.order import ShuffledOrder
from open_cloc.data.shards.read import ShardDataset
from open_cloc.labelling.output import RunFolder
from open_cloc.labelling.recipe import DetectorConfig, LabelRecipe, LabelRunConfig
from open_cloc.labelling.source import plan_units

ASKED = 10_000  # places of an order
PER_TAR = 1000


@dataclass
class Options:
    """Attributes:
    order: Samples of an epoch.
    index: Samples in shards.
    units: Of a labelling run.
    """

    order: tuple[int, ...] = (10**6, 10**8, 10**10)
    index: tuple[int, ...] = (10**4, 10**6)
    units: tuple[int, ...] = (10**3, 10**4, 10**5)


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and MB of the peak beyond what was used before."""
    before = _peak()
    started = time.perf_counter()
    kept = work()
    seconds = time.perf_counter() - started
    del kept
    return seconds, _peak() - before


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def order(length: int) -> dict[str, float]:
    """The beginning of an epoch, then places all over it."""
    made = ShuffledOrder(length, (0,))
    seconds, megabytes = measured(lambda: made.index(0))
    places = range(0, length, length // ASKED)
    started = time.perf_counter()
    for place in places:
        made.index(place)
    each = (time.perf_counter() - started) / len(places)
    in_turn = range(min(length, 10 * ASKED))
    started = time.perf_counter()
    for place in in_turn:
        made.index(place)
    turn = (time.perf_counter() - started) / len(in_turn)
    return {"start s": seconds, "MB": megabytes, "us anywhere": each * 1e6, "us in turn": turn * 1e6}


def index(length: int) -> dict[str, float]:
    """Opening shards for the first time on a host, and again in another process."""
    with tempfile.TemporaryDirectory() as folder:
        write_tars(Path(folder) / "shards", length)
        environment = {**os.environ, "OPEN_CLOC_CACHE": f"{folder}/cache"}
        first, again = (
            run("opened", f"{folder}/shards", environment=environment) for _ in ("first", "again")
        )
    return {
        "first s": first["s"],
        "first MB": first["MB"],
        "again s": again["s"],
        "again MB": again["MB"],
    }


def opened(folder: str) -> dict[str, float]:
    """Opening them in this process."""
    seconds, megabytes = measured(lambda: ShardDataset(folder))
    return {"s": seconds, "MB": megabytes}


def write_tars(folder: Path, length: int) -> None:
    """Tars as img2dataset's, of samples of a few bytes."""
    folder.mkdir()
    for shard in range(length // PER_TAR):
        with (folder / f"{shard:05d}.tar").open("wb") as tar:
            for number in range(PER_TAR):
                for suffix, content in ((".jpg", b"x" * 30), (".txt", b"hi")):
                    member = tarfile.TarInfo(f"{shard:05d}{number:04d}{suffix}")
                    member.size = len(content)
                    tar.write(member.tobuf(tarfile.USTAR_FORMAT) + content.ljust(512, b"\0"))
            tar.write(bytes(10240))


def units(count: int) -> dict[str, float]:
    """What a labelling run does before anything is labelled, half of its units being detected."""
    source = f"scenes:val,num_samples={count}"
    recipe = LabelRecipe(
        "growth", detect=DetectorConfig(weights="w"), run=LabelRunConfig(samples_per_shard=1)
    )
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder.open(Path(folder) / "out", recipe, source, plan_units(source, 1))
        mark = {"recipe": run.certificate["recipe"], "made_by": {}, "software": {}}
        (run.path / "raw").mkdir(exist_ok=True)
        for number in range(count // 2):
            (run.path / "raw" / f"{number:05d}.json").write_text(json.dumps(mark))

        def start() -> object:
            planned = plan_units(source, 1)
            again = RunFolder.open(run.path, recipe, source, planned)
            detect, rest = again.todo()
            assert (len(detect), len(rest)) == (count - count // 2, count // 2)
            return again

        seconds, megabytes = measured(start)
    return {"s": seconds, "MB": megabytes, "us a unit": seconds / count * 1e6}


def run(name: str, size: int | str, environment: dict[str, str] | None = None) -> dict[str, float]:
    """A measurement in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.growth", "--own", name, str(size)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(options: Options) -> int:
    """Measure all, print a table of each, and say whether memory stays where it is."""
    rows: dict[str, Any] = {}
    for name in ("order", "index", "units"):
        rows[name] = {f"{size:,}": run(name, size) for size in getattr(options, name)}
        print(f"\n{name}")
        print_table(rows[name])
    orders, labels = list(rows["order"].values()), list(rows["units"].values())
    aims = [
        verdict("growth: MB of the largest order", orders[-1]["MB"], 10, least=False),
        verdict(
            "growth: labelling's start, us a unit, largest over smallest",
            labels[-1]["us a unit"] / labels[0]["us a unit"],
            1.5,
            least=False,
        ),
    ]
    print(write_json("growth", {"rows": rows, "aims": aims}))
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--own"]:
        name, size = sys.argv[2:]
        print(json.dumps(globals()[name](size if name == "opened" else int(size))))
    else:
        sys.exit(main(tyro.cli(Options, description=__doc__)))
