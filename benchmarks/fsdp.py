"""FSDP2 against DDP on two ranks, and asynchronous against synchronous saving: python -m benchmarks.fsdp

Each pair of ranks trains the same few steps of random pictures: losses, bytes of weights and moments that a
rank holds, CPU seconds a step, how long a save holds training up. Aims: the same losses, at most 0.51 of the
bytes, and an asynchronous save that holds up at most 0.35 as long as a synchronous one.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
import tyro

from benchmarks.accumulation import Options as BatchOptions
from benchmarks.accumulation import make_batch
from benchmarks.timing import print_table, verdict, write_json
from open_cloc.model.create import ModelConfig, build_model
from open_cloc.model.prompter import PrompterConfig
from open_cloc.objectives import Objectives
from open_cloc.training import freeze, optim
from open_cloc.training.checkpoint import Progress, Saver, state_tensors
from open_cloc.training.parallelize import parallelize
from open_cloc.training.ranks import join_ranks
from open_cloc.training.recipe import Recipe, RunConfig
from open_cloc.training.step import Run, train_step

RANKS = 2
# The same losses but for the order of sums; of DDP's state; of a synchronous save.
AIMS = {"relative difference of losses": 1e-6, "state a rank": 0.51, "asynchronous save blocks": 0.35}


@dataclass
class Options:
    """Attributes:
    architecture: open_clip's name.
    batch_size: Pictures on a rank.
    steps: Updates; the first is not timed.
    saves: How often each kind of save is timed.
    """

    architecture: str = "ViT-S-16"
    batch_size: int = 8
    steps: int = 4
    saves: int = 3


@dataclass(frozen=True)
class Measured:
    """One rank's numbers."""

    losses: list[float]
    weight_bytes: int
    moment_bytes: int
    step_seconds: float
    synchronous_seconds: list[float]
    asynchronous_seconds: list[float]
    written_seconds: list[float]


def measure(options: Options, parallel: Any, folder: Path) -> Measured:
    """Train and save on this rank."""
    torch.set_num_threads(1)
    recipe = Recipe(
        name="fsdp",
        model=ModelConfig(
            towers=options.architecture, prompter=PrompterConfig(readout="prompt", box_prior=True)
        ),
        run=RunConfig(global_batch_size=RANKS * options.batch_size, parallel=parallel, device="cpu"),
    )
    with join_ranks("cpu") as ranks:
        torch.manual_seed(0)
        model = build_model(recipe.model).train()
        objectives = Objectives(recipe.objectives)
        freeze.freeze_unreached(model, objectives, recipe.data.loader.num_regions)
        batch = make_batch(model, BatchOptions(batch_size=options.batch_size), seed=ranks.rank)
        network = parallelize(model, parallel, ranks)
        optimizer = optim.build_optimizer(model, objectives, recipe.optim)
        run = Run(recipe, ranks, folder, model, objectives, network, optimizer)
        losses, seconds = [], []
        for step in range(options.steps):
            started = time.process_time()
            losses.append(train_step(run, batch, step).losses["total"].item())
            seconds.append(time.process_time() - started)
        held = {name: _local(tensor) for name, tensor in state_tensors(run.state).items()}
        return Measured(
            losses,
            sum(tensor.nbytes for name, tensor in held.items() if name.startswith("model.")),
            sum(tensor.nbytes for name, tensor in held.items() if name.startswith("optimizer.")),
            min(seconds[1:]),
            [_save_now(run, folder / f"{parallel}_sync_{number}") for number in range(options.saves)],
            *_save_later(run, folder / parallel, options.saves),
        )


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """What of a tensor this rank holds."""
    return getattr(tensor, "_local_tensor", tensor)


def _save_now(run: Run, folder: Path) -> float:
    started = time.perf_counter()
    tensors = state_tensors(run.state)
    dcp.save(tensors, storage_writer=dcp.FileSystemWriter(folder), process_group=run.ranks.saving)
    return time.perf_counter() - started


def _save_later(run: Run, folder: Path, count: int) -> tuple[list[float], list[float]]:
    """Seconds that training waits for each save, and seconds until it is written."""
    waited, written = [], []
    with Saver(folder, run.state, run.ranks, keep=1) as saver:
        for step in range(1, count + 1):
            started = time.perf_counter()
            saver.save(Progress(step, 1, run.ranks.size))
            waited.append(time.perf_counter() - started)
            saver.wait()
            written.append(time.perf_counter() - started)
    return waited, written


def on_two_ranks(options: Options, parallel: str, folder: Path) -> list[Measured]:
    """Fork the ranks and collect what they measure."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    started = []
    for rank in range(RANKS):
        ours, theirs = context.Pipe()
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "MASTER_PORT": port}
        environment = {"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in place.items()}
        work = partial(measure, options, parallel, folder)
        process = context.Process(target=_be_rank, args=(environment, theirs, work))
        process.start()
        theirs.close()
        started.append((process, ours))
    measured = [ours.recv() for _, ours in started]
    for process, _ in started:
        process.join()
    return measured


def _be_rank(environment: dict[str, str], pipe: Connection, work: Any) -> None:
    os.environ.update(environment)
    pipe.send(work())


def row(measured: list[Measured]) -> dict[str, float]:
    """The worse rank's numbers."""
    synchronous = max(min(one.synchronous_seconds) for one in measured)
    asynchronous = max(min(one.asynchronous_seconds) for one in measured)
    return {
        "MB weights": max(one.weight_bytes for one in measured) / 2**20,
        "MB moments": max(one.moment_bytes for one in measured) / 2**20,
        "CPU s/step": max(one.step_seconds for one in measured),
        "save s": synchronous,
        "async s": asynchronous,
        "written s": max(min(one.written_seconds) for one in measured),
        "async/save": asynchronous / synchronous,
    }


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory() as made:
        measured = {name: on_two_ranks(options, name, Path(made)) for name in ("ddp", "fsdp")}
    rows = {name: row(ranks) for name, ranks in measured.items()}
    print_table(rows)
    pairs = zip(measured["ddp"][0].losses, measured["fsdp"][0].losses)
    gap = max(abs(one - other) / abs(one) for one, other in pairs)
    held = {n: rows[n]["MB weights"] + rows[n]["MB moments"] for n in rows}
    share = held["fsdp"] / held["ddp"]
    blocks = max(row["async/save"] for row in rows.values())
    got = {"relative difference of losses": gap, "state a rank": share, "asynchronous save blocks": blocks}
    aims = [verdict(f"FSDP2 against DDP, {what}", got[what], AIMS[what]) for what in AIMS]
    detail = {name: [asdict(one) for one in ranks] for name, ranks in measured.items()}
    result = {"rows": rows, "loss difference": gap, "state share": share, "ranks": detail, "aims": aims}
    print(write_json("fsdp", result))


if __name__ == "__main__":
    main(tyro.cli(Options))
