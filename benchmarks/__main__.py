"""Every benchmark of speed and memory, and one table of the aims: python -m benchmarks

    --shared FOLDER  where coco128/ lies, for the loader's; without it they are left out
    --only NAME ...  some of them

Each runs in a process of its own with one thread. Give them the machine: other work spoils the ratios.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.timing import OUTPUT, write_json

BENCHMARKS = (
    "phrases",
    "region_embeddings",
    "training_step",
    "accumulation",
    "region_loss",
    "fsdp",
    "loader",
    "loader_memory",
)
WITH_PHOTOS = ("loader", "loader_memory")


@dataclass
class Options:
    """Attributes:
    shared: Folder that holds coco128/.
    only: Names of benchmarks; all by default.
    """

    shared: Path = Path("../shared/data")
    only: tuple[str, ...] = BENCHMARKS


def main(options: Options) -> int:
    """Run them one after the other; 1 if one of them fails."""
    failed, aims = [], []
    for name in options.only:
        arguments = ["--shared", str(options.shared)] if name in WITH_PHOTOS else []
        if name in WITH_PHOTOS and not options.shared.is_dir():
            print(f"{name}: left out, there is no {options.shared}")
            continue
        print(f"\n=== {name}", flush=True)
        started = time.monotonic()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
        if subprocess.run(command, env=environment).returncode:
            failed.append(name)
            continue
        print(f"({time.monotonic() - started:.0f} s)")
        aims += json.loads((OUTPUT / f"{name}.json").read_text())["aims"]
    print(f"\n{table(aims)}\n{write_json('all', {'aims': aims, 'failed': failed})}")
    if failed:
        print(f"failed, see above: {', '.join(failed)}")
    return 1 if failed else 0


def table(aims: list[dict]) -> str:
    """What was aimed at and reached, a line each."""
    width = max((len(aim["what"]) for aim in aims), default=0)
    lines = [f"{'':{width}s} {'reached':>10s} {'aim':>12s}"]
    for aim in aims:
        sign, verdict = ">=" if aim["least"] else "<=", "met" if aim["met"] else "SHORT"
        lines.append(f"{aim['what']:{width}s} {aim['got']:10.4g} {sign:>3s} {aim['aim']:8.4g}  {verdict}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options)))
