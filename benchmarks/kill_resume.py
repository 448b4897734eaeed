"""Kills at random moments lose nothing: python -m benchmarks.kill_resume --kills 20

Two ranks with two workers each train generated scenes and save every few steps. Again and again one process
of the run, or all of them, is killed with SIGKILL at a random moment and the run started again with `--resume
auto`. In the end its weights, optimizer state and losses must be an undisturbed run's, bit for bit.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from benchmarks.timing import write_json
from open_cloc.data.collate import LoaderConfig
from open_cloc.model import sharded
from open_cloc.model.create import ModelConfig
from open_cloc.model.prompter import PrompterConfig
from open_cloc.training.checkpoint import list_checkpoints
from open_cloc.training.recipe import DataConfig, OptimConfig, Recipe, RunConfig
from open_cloc.training.run_folder import CHECKPOINTS_FOLDER

RANKS, WORKERS, BATCH = 2, 2, 4
OF_THE_CLOCK = ("images_per_s", "step_time", "data_time")
TOWERS = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32},
    "text_cfg": {"width": 32, "heads": 2, "layers": 2, "context_length": 16},
}


@dataclass
class Options:
    """Attributes:
    kills: How often the run is killed.
    steps: Length of the run.
    parallel: `ddp` or `fsdp`.
    seed: Of the moments.
    folder: Where the two runs go; replaced.
    """

    kills: int = 20
    steps: int = 400
    parallel: str = "ddp"
    seed: int = 0
    folder: Path = Path("runs/kill_resume")


def recipe() -> Recipe:
    """A tiny model with dropout, in two parts a batch, saved every five steps."""
    return Recipe(
        name="kill-resume",
        model=ModelConfig(
            towers=TOWERS, prompter=PrompterConfig(readout="prompt", box_prior=True, dropout=0.1)
        ),
        data=DataConfig(
            train=("scenes:train,image_size=32,num_samples=1000",),
            loader=LoaderConfig(num_regions=3, workers=WORKERS),
        ),
        optim=OptimConfig(lr=1e-3, warmup=10),
        run=RunConfig(
            global_batch_size=BATCH * RANKS,
            device="cpu",
            accumulate=2,
            save_steps=5,
            log_steps=1,
            report_to=(),
            progress=False,
        ),
    )


def start(options: Options, name: str) -> subprocess.Popen[bytes]:
    """Begin or go on with a run, in a process group of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    command += ["-m", "open_cloc.cli", "train", "benchmarks.kill_resume:recipe", "--resume", "auto"]
    command += ["--run.output", str(options.folder / name), "--run.parallel", options.parallel]
    command += ["--run.samples", str(options.steps * BATCH * RANKS)]
    with (options.folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True
        )


def descendants(pid: int) -> list[int]:
    """A process's children, their children and so on: ranks and loader workers."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        own = [int(child) for child in children.read_text().split()]
    except FileNotFoundError:  # it has ended
        return []
    return own + [further for child in own for further in descendants(child)]


def kill(process: subprocess.Popen[bytes], draw: random.Random) -> str:
    """SIGKILL to one process of a run or to all; what is left is then ended too. Says which."""
    family = [process.pid, *descendants(process.pid)]
    victims = family if draw.random() < 0.5 else [draw.choice(family)]
    for victim in victims:
        _end(victim)
    time.sleep(0.5)  # the survivors of one process's death get a moment to do harm
    for victim in {*family, process.pid, *descendants(process.pid)}:
        _end(victim)
    process.wait()
    return "all" if len(victims) > 1 else f"process {family.index(victims[0])} of {len(family)}"


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it has ended by itself


def progress(folder: Path) -> tuple[int, int]:
    """When the log was last written, in ns, and its number of steps; zeros before there is one."""
    log = folder / "log.jsonl"
    return (log.stat().st_mtime_ns, log.read_bytes().count(b"\n")) if log.is_file() else (0, 0)


def kill_once(options: Options, draw: random.Random) -> dict[str, object] | None:
    """Start, wait for a random moment of the run's work, kill; None if it ended before."""
    folder = options.folder / "killed"
    whole = list_checkpoints(folder / CHECKPOINTS_FOLDER)
    done = int(whole[-1].name.removeprefix("step_")) if whole else 0
    before = progress(folder)[0]
    process = start(options, "killed")
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        written, steps = progress(folder)
        if written > before and steps > done:  # a kill while Python starts shows little
            break
        time.sleep(0.02)
    time.sleep(draw.uniform(0, 3))
    if process.poll() is not None:
        return None
    writing = [path.name for path in (folder / CHECKPOINTS_FOLDER).glob(".writing_*")]
    victim = kill(process, draw)
    saved = [path.name for path in list_checkpoints(folder / CHECKPOINTS_FOLDER)]
    return {"victim": victim, "step": progress(folder)[1], "writing": writing, "whole": saved[-1:]}


def losses(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in OF_THE_CLOCK} for line in lines]


def differences(options: Options) -> list[str]:
    """Tensors of the last checkpoint, and the log, where the runs differ."""
    folders = [options.folder / name for name in ("killed", "undisturbed")]
    last = [list_checkpoints(folder / CHECKPOINTS_FOLDER)[-1] for folder in folders]
    one, other = (sharded.read_tensors(path) for path in last)
    unequal = [name for name in one if name not in other or not torch.equal(one[name], other[name])]
    unequal += sorted(set(other) - set(one))
    if last[0].name != last[1].name:
        unequal.append("last step")
    if losses(folders[0]) != losses(folders[1]):
        unequal.append("log")
    return unequal


def main(options: Options) -> int:
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    if start(options, "undisturbed").wait():
        raise RuntimeError(f"the undisturbed run failed: see {options.folder}/undisturbed.log")
    draw = random.Random(options.seed)
    kills: list[dict[str, object]] = []
    while len(kills) < options.kills:
        made = kill_once(options, draw)
        if made is None:
            break
        kills.append(made)
        print(f"kill {len(kills)}: {made}", flush=True)
    if start(options, "killed").wait():
        raise RuntimeError(f"the run could not go on: see {options.folder}/killed.log")
    unequal = differences(options)
    print(f"{len(kills)} kills, {options.steps} steps: {unequal or 'identical'}")
    print(write_json("kill_resume", {"parallel": options.parallel, "kills": kills, "differences": unequal}))
    return 0 if not unequal and len(kills) == options.kills else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
