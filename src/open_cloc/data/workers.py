"""Items of a dataset in order, made by worker processes whose deaths are explained."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import traceback
from collections.abc import Generator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from open_cloc.errors import (
    MissingFileError,
    MissingPictureError,
    SampleError,
    UserError,
    WorkerDiedError,
    WorkerTimeoutError,
)

PREFETCH = 2  # batches that each worker has ready
SHARED_MEMORY = Path("/dev/shm")  # where batches come through from worker processes
# Open files: pipes and such of a worker, tensors of a batch, and whatever else a run opens.
FILES_OF_A_WORKER, FILES_OF_A_BATCH, SPARE_FILES = 8, 16, 16
LONGEST_TEMPORARY = 75  # characters of a folder in which a socket's name still fits


MOST_WORKERS = 16


def default_workers() -> int:
    """Workers of a loader whose config leaves their number open.

    Beside a GPU all cores but one of this rank's share; beside training on a CPU, which wants the cores
    itself, at most two.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own = cores // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if torch.cuda.is_available():
        return max(1, min(own - 1, MOST_WORKERS))
    return max(0, min(own - 1, 2))


# What torch iterates with, by its id. The garbage collector may be who ends a generator below: it would take
# the queues first, by which workers are told to end, and torch would wait for 5 seconds for each of them.
_RUNNING: dict[int, Any] = {}


def run_workers(batches: Any, workers: int, pin: bool, timeout: float = 0.0) -> Generator[Any, None, None]:
    """Yield the items of an indexable dataset in order, made by worker processes.

    Args:
        batches: The dataset, with `__len__`, `__getitem__` and `batch_bytes`, the size of an item's tensors.
            Where it has a tensor `reading`, of a number for each worker, a hung worker's is told.
        workers: Number of processes; 0 makes the items in this one.
        pin: Whether to pin the memory of what comes.
        timeout: Seconds without an item after which a worker counts as hung; 0 for never.

    Raises:
        UserError: If this machine has no room for so many workers, or an item raises it.
        WorkerDefectError: If an item raises anything else, in a worker.
        WorkerTimeoutError: If a worker hangs.
        WorkerDiedError: If a worker dies.
    """
    _require_memory(batches.batch_bytes)
    if workers:
        _require_shared_memory(workers, batches.batch_bytes)
        _require_files(workers)
        if hasattr(batches, "reading"):
            batches.reading.share_memory_()
    # Its own generator: starting workers draws a seed, which must not move the training's random state.
    generator = torch.Generator()
    guarded: Any = _Guarded(batches) if workers else batches
    items = iter(
        DataLoader(
            guarded,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=workers,
            prefetch_factor=PREFETCH if workers else None,
            pin_memory=pin,
            generator=generator,
            timeout=timeout if workers else 0,
            worker_init_fn=_prepare_worker,
        )
    )
    _RUNNING[id(items)] = items
    try:
        for number in range(len(batches)):
            item, failure = None, None
            try:
                item = next(items)
            # The last two where a worker died in the middle of a batch.
            except (RuntimeError, OSError, EOFError) as error:
                failure = _explained(error, batches, number % max(1, workers), items, timeout)
            if isinstance(item, Failure):
                failure = item.error()
            if failure is not None:
                raise failure
            yield item
    finally:  # ends the workers now, not whenever an error is forgotten
        del _RUNNING[id(items)], items


class WorkerDefectError(RuntimeError):
    """A worker has failed in a way that nobody foresaw; the message holds its traceback."""


class Failure(NamedTuple):
    """Why a worker could not make an item, as texts: an error itself may not survive the way to here.

    torch would make it again from its type and one text, which not every type can be made of.

    Attributes:
        kind: Name of one of `KINDS`, or empty for a defect.
        message: What the error says, or the traceback of a defect.
        cause: Kind of fault of a sample.
    """

    kind: str
    message: str
    cause: str = ""

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """What an error says; of a subclass, the nearest kind."""
        kind = next((kind for kind in KINDS if isinstance(error, kind)), None)
        if kind is None:
            return cls("", traceback.format_exc())
        return cls(kind.__name__, str(error), getattr(error, "cause", ""))

    def error(self) -> Exception:
        """An error that says the same."""
        kind = next((kind for kind in KINDS if kind.__name__ == self.kind), None)
        if kind is None:
            return WorkerDefectError(f"a data worker has failed:\n{self.message}")
        return kind(self.message, self.cause) if issubclass(kind, SampleError) else kind(self.message)


# Errors that are not defects, the special ones first.
KINDS: tuple[type[UserError], ...] = (MissingPictureError, SampleError, MissingFileError, UserError)


class _Guarded:
    """A dataset whose errors come as values."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Any:
        try:
            return self.batches[number]
        except Exception as error:  # of any library, and of any shape
            return Failure.of(error)


def _explained(error: Exception, batches: Any, worker: int, items: Any, timeout: float) -> Exception:
    """One sentence about a worker that hangs or has died, from torch's message; other errors as they are."""
    if "DataLoader timed out" in str(error):
        pid = items._workers[worker].pid  # torch gives batches to workers in turn
        reading = getattr(batches, "reading", None)
        at = f" while it reads sample number {int(reading[worker])}" if reading is not None else ""
        return WorkerTimeoutError(
            f"data worker {worker} (process {pid}) has given no batch for {timeout:g} s{at}: look at the "
            "storage and that sample, or raise loader.timeout"
        )
    if not isinstance(error, RuntimeError):
        try:
            return _death_by_process(getattr(items, "_workers", ())) or error
        except RuntimeError as told:  # torch's own, which its handler of signals raises wherever we stand
            error = told
    return death_of_worker(error) or error


def _death_by_process(processes: Sequence[BaseProcess]) -> WorkerDiedError | None:
    """One sentence about the first of some workers that is no longer there; None if all are."""
    for process in processes:
        process.join(0.1)  # the system may not have told yet
        if not process.is_alive():
            return _died(f"(pid {process.pid}) has died")
    return None


def death_of_worker(error: BaseException) -> WorkerDiedError | None:
    """One sentence about a worker that has died; None for other errors.

    torch raises its own wherever the main process stands just then, such as in the middle of a step.
    """
    if not isinstance(error, RuntimeError) or "DataLoader worker" not in str(error) or "Caught" in str(error):
        return None
    what = " ".join(str(error).split()).removeprefix("DataLoader worker ").rstrip(". ")
    return _died(what)


def _died(what: str) -> WorkerDiedError:
    return WorkerDiedError(
        f"data worker {what}: often for lack of memory; try fewer loader.workers, or --resume latest"
    )


def _require_memory(batch_bytes: int) -> None:
    """Refuse a batch that cannot be, before hours are spent on filling the memory with it."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if batch_bytes > there:
        raise UserError(
            f"a batch's pictures need {batch_bytes / 2**30:,.1f} GiB, and this machine has "
            f"{there / 2**30:,.1f} GiB: take smaller batches or pictures"
        )


def _require_shared_memory(workers: int, batch_bytes: int) -> None:
    """Refuse more batches at a time than fit: the system would kill a worker in the middle of the run."""
    if not SHARED_MEMORY.is_dir():
        return
    needed = (PREFETCH * workers + 1) * batch_bytes
    free = shutil.disk_usage(SHARED_MEMORY).free
    if needed > free:
        raise UserError(
            f"the batches of {workers} workers need {needed / 1e6:,.1f} MB of shared memory, and "
            f"{SHARED_MEMORY} has {free / 1e6:,.1f} MB free: give it more (docker run --shm-size 1g), or "
            "take fewer workers; 0 needs none"
        )


def _require_files(workers: int) -> None:
    """Let this process open as many files as its workers' batches take, or refuse."""
    most, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    folder = Path("/proc/self/fd")
    is_open = len(list(folder.iterdir())) if folder.is_dir() else SPARE_FILES
    batches = PREFETCH * workers + 1
    needed = is_open + SPARE_FILES + workers * FILES_OF_A_WORKER + batches * FILES_OF_A_BATCH
    if most == resource.RLIM_INFINITY or needed <= most:
        return
    if limit != resource.RLIM_INFINITY and needed > limit:
        raise UserError(
            f"{workers} workers need {needed} open files, and this process may have {limit}: raise the limit "
            "(ulimit -n), or take fewer workers; 0 needs none"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, limit))


def _prepare_worker(worker: int) -> None:
    """What a worker does before its first batch."""
    # A SIGTERM or Ctrl-C for the whole process group must not take the data away from the last step.
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    # Its socket lies in the folder for temporary files, whose path may be too long for one.
    if len(tempfile.gettempdir()) > LONGEST_TEMPORARY:
        tempfile.tempdir = "/tmp"


def _unchanged(item: Any) -> Any:
    """In place of torch's collation, which would make tensors of names."""
    return item
