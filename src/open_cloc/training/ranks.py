"""Where this process stands among the others of a run, and what they tell each other.

`torchrun` and `srun` say it through the environment; a plain `python` is alone. What the processes tell each
other besides tensors of the model goes through gloo on the CPU: it does not wait for the GPU.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist

from open_cloc.devices import choose_device
from open_cloc.errors import UserError, WorkerTimeoutError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Waiting for the first rank may take as long as its evaluation or its download.
FIRST_RANK_TIMEOUT = timedelta(hours=6)

START_TIMEOUT = timedelta(minutes=30)  # until all processes must have started


class Place(NamedTuple):
    """A process's number in the run, the number of processes, and its number on this machine."""

    rank: int
    world_size: int
    local_rank: int


def find_place(environment: Mapping[str, str]) -> Place:
    """This process's place, from torchrun's variables or else from those of a SLURM step.

    Raises:
        UserError: If torchrun's variables are there in part.
    """
    if "WORLD_SIZE" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        missing = [name for name in names if name not in environment]
        if missing and int(environment["WORLD_SIZE"]) > 1:
            raise UserError(
                f"WORLD_SIZE={environment['WORLD_SIZE']} without {missing[0]}: start several processes with "
                "torchrun or srun, one with plain python and no WORLD_SIZE"
            )
        return Place(*(int(environment.get(name, name == "WORLD_SIZE")) for name in names))
    # Only `srun` sets this one: a batch script sees SLURM_NTASKS too, but is a single process.
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        return Place(*(int(environment[name]) for name in names))
    return Place(0, 1, 0)


def rendezvous(environment: Mapping[str, str]) -> tuple[str, int]:
    """Address and port where the processes meet: torchrun's, else the first host of the SLURM step.

    Raises:
        UserError: If neither says.
    """
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    address = environment.get("MASTER_ADDR") or first_host(hosts)
    if not address:
        raise UserError("MASTER_ADDR is not set: start several processes with torchrun or srun")
    # Two jobs on one machine must not meet: their numbers differ.
    port = 15_000 + int(environment.get("SLURM_JOB_ID", "0")) % 20_000
    return address, int(environment.get("MASTER_PORT", port))


def first_host(hosts: str) -> str:
    """The first of a SLURM node list such as `node[07-12,20],other`."""
    match = re.match(r"([^,\[]*)(?:\[(\w+)[^\]]*\])?([^,]*)", hosts)
    return "".join(part or "" for part in match.groups()) if match else ""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run.

    Attributes:
        rank: Number of this process.
        size: Number of processes.
        device: The device of this process.
        control: Group of small messages between main threads; None for one process.
        saving: Group of the threads that write checkpoints; None for one process.
    """

    rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup | None = None
    saving: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the one process that prints, logs and writes reports."""
        return self.rank == 0

    def on_first(self, function: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
        """Run a function on the first process; all get its result, or fail if it does.

        The first process raises the error itself. The others leave with exit code 2: one message is enough.

        Args:
            function: Work for the first process.
            group: Tells the others; `control` unless this is another thread than the main one.
        """
        if self.size == 1:
            return function()
        told: list[Any] = [None, None]
        error: Exception | None = None
        if self.is_first:
            try:
                told[1] = function()
            except Exception as caught:  # whatever it is, the others must not wait for ever
                told[0], error = str(caught), caught
        dist.broadcast_object_list(told, src=0, group=group or self.control)
        if error is not None:
            raise error
        if told[0] is not None:
            raise SystemExit(2)
        return told[1]

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum of each number over all processes."""
        total = torch.tensor(values, dtype=torch.float64)
        if self.control is not None:
            dist.all_reduce(total, group=self.control)
        return total.tolist()

    def gather(self, value: T) -> list[T]:
        """Each process's value, in order of their numbers; all must call this at the same place."""
        values: list[Any] = [value] * self.size
        if self.control is not None:
            dist.all_gather_object(values, value, group=self.control)
        return values


@contextmanager
def join_ranks(device: str = "") -> Iterator[Ranks]:
    """Meet the run's other processes, if there are any; leaves them at the end.

    Args:
        device: `cuda`, `cpu`, ...; empty takes a GPU if there is one, that of the local rank where there are
            several processes.

    Raises:
        UserError: If the environment is incomplete, the device unknown, or there are too few GPUs.
    """
    place = find_place(os.environ)
    if place.world_size == 1:
        yield Ranks(0, 1, choose_device(device or None))
        return
    own_device = _own_device(device, place)
    joined_before = dist.is_initialized()
    if not joined_before:
        _initialize(own_device, place)
    if place.rank > 0:
        logging.getLogger("open_cloc").setLevel(logging.ERROR)  # warnings are the same everywhere
    # Each gloo group connects every rank with every other, hence no more of them than are needed: on the CPU
    # the model's own group carries the messages too, since both come from the main thread, in one order.
    shares = own_device.type != "cuda" and not joined_before
    control: Any = dist.group.WORLD if shares else _new_gloo()
    saving: Any = _new_gloo()
    try:
        yield Ranks(place.rank, place.world_size, own_device, control, saving)
    finally:
        if not joined_before:
            dist.destroy_process_group()


def _new_gloo() -> Any:
    return dist.new_group(backend="gloo", timeout=FIRST_RANK_TIMEOUT)


def _initialize(device: torch.device, place: Place) -> None:
    on_gpu = device.type == "cuda"
    backend, timeout = ("nccl", None) if on_gpu else ("gloo", FIRST_RANK_TIMEOUT)
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun hosts the meeting place itself
        method = "env://"
    else:
        address, port = rendezvous(os.environ)
        method = f"tcp://{address}:{port}"
    store, rank, world_size = next(dist.rendezvous(method, place.rank, place.world_size))
    dist.init_process_group(
        backend,
        store=_own_part(store, rank, world_size),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
    )


def _own_part(store: dist.Store, rank: int, world_size: int) -> dist.Store:
    """The part of a store that belongs to this start of all processes.

    torchrun keeps its store over a restart, and what dead ranks left must not be found. Its own count of
    restarts is no help: machines count differently when one of them fails or is replaced. So each process
    takes a new name, and the first one answers every name that it finds until each living one has heard.

    Raises:
        WorkerTimeoutError: If a process does not come.
    """
    own = uuid4().hex
    if rank > 0:
        store.set(f"name_{rank}", own)
        first = store.get(f"answer_{own}").decode()  # waits for it
        store.set(f"heard_{first}_{rank}", "")
        return dist.PrefixStore(first, store)
    missing, deadline = set(range(1, world_size)), time.monotonic() + START_TIMEOUT.total_seconds()
    while missing:
        for other in sorted(missing):
            if store.check([f"heard_{own}_{other}"]):
                missing.remove(other)
            elif store.check([f"name_{other}"]):
                store.set(f"answer_{store.get(f'name_{other}').decode()}", own)
        if missing and time.monotonic() > deadline:
            absent = min(missing)
            raise WorkerTimeoutError(f"rank {absent} of {world_size} has not come within {START_TIMEOUT}")
        time.sleep(0.02)
    return dist.PrefixStore(own, store)


def _own_device(device: str, place: Place) -> torch.device:
    # Without a look at the device: it would take memory of the first GPU for every rank.
    chosen = torch.device("cuda") if device.startswith("cuda") else choose_device(device or None)
    if chosen.type != "cuda":
        return chosen
    count = torch.cuda.device_count()
    alone = count == 1 and "SLURM_GPUS_PER_TASK" in os.environ  # each task sees its own as the only one
    index = 0 if alone else place.local_rank
    if index >= count:
        raise UserError(
            f"rank {place.rank} has no GPU of its own: local rank {place.local_rank}, {count} GPUs; start "
            "fewer processes a machine, or give --run.device cpu"
        )
    own = torch.device("cuda", index)
    torch.cuda.set_device(own)
    return own


class StopSignal:
    """Turns SIGTERM into a flag that the loop looks at after each step."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> StopSignal:
        self.previous = signal.signal(signal.SIGTERM, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGTERM, self.previous)
