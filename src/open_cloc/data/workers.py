"""Items of a dataset in order, made by worker processes whose deaths are explained."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from open_cloc.errors import WorkerDiedError, WorkerTimeoutError


def run_workers(batches: Any, workers: int, pin: bool, timeout: float = 0.0) -> Iterator[Any]:
    """Yield the items of an indexable dataset in order, made by worker processes.

    Args:
        batches: The dataset, with `__len__` and `__getitem__`. Where it has a tensor `reading`, of a number
            for each worker, a hung worker's is told.
        workers: Number of processes; 0 makes the items in this one.
        pin: Whether to pin the memory of what comes.
        timeout: Seconds without an item after which a worker counts as hung; 0 for never.

    Raises:
        WorkerTimeoutError: If a worker hangs.
        WorkerDiedError: If a worker dies.
    """
    # Its own generator: starting workers draws a seed, which must not move the training's random state.
    generator = torch.Generator()
    items = iter(
        DataLoader(
            batches,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=workers,
            pin_memory=pin,
            generator=generator,
            timeout=timeout if workers else 0,
            worker_init_fn=_leave_signals_to_the_main_process,
        )
    )
    for number in range(len(batches)):
        failure = None
        try:
            item = next(items)
        except RuntimeError as error:
            failure = _explained(error, batches, number % max(1, workers), items, timeout)
        if failure is not None:
            del items  # ends the other workers now, not whenever the error is forgotten
            raise failure
        yield item


def _explained(error: RuntimeError, batches: Any, worker: int, items: Any, timeout: float) -> Exception:
    """One sentence about a worker that hangs or has died, from torch's message; other errors as they are."""
    if "DataLoader timed out" in str(error):
        pid = items._workers[worker].pid  # torch gives batches to workers in turn
        reading = getattr(batches, "reading", None)
        at = f" while it reads sample number {int(reading[worker])}" if reading is not None else ""
        return WorkerTimeoutError(
            f"data worker {worker} (process {pid}) has given no batch for {timeout:g} s{at}: look at the "
            "storage and that sample, or raise loader.timeout"
        )
    if "DataLoader worker" in str(error) and "Caught" not in str(error):
        what = " ".join(str(error).split()).removeprefix("DataLoader worker ").rstrip(". ")
        return WorkerDiedError(
            f"data worker {what}: often for lack of memory; try fewer loader.workers, or --resume latest"
        )
    return error


def _leave_signals_to_the_main_process(worker: int) -> None:
    """A SIGTERM or Ctrl-C for the whole process group must not take the data away from the last step."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()


def _unchanged(item: Any) -> Any:
    """In place of torch's collation, which would make tensors of names."""
    return item
