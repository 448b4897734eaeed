"""Room for worker processes is looked at before they start, and their deaths are one sentence."""

from __future__ import annotations

import resource
import tempfile
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from open_cloc.cli.failures import explain
from open_cloc.data import workers
from open_cloc.data.workers import death_of_worker, run_workers
from open_cloc.errors import UserError, WorkerDiedError


class Batches:
    """Four items of two tensors."""

    batch_bytes = 1000

    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((10,), number), torch.zeros(3)


def items(number_of_workers: int) -> list[int]:
    return [int(first[0]) for first, _ in run_workers(Batches(), number_of_workers, pin=False)]


def no_worker_starts(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("a worker was started")


def test_too_little_shared_memory_is_told_before_a_worker_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(workers, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda path: usage(0, 0, 5000))
    assert items(2) == [0, 1, 2, 3]  # two batches of each worker, and the one that is in use
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda path: usage(0, 0, 4999))
    assert items(0) == items(1) == [0, 1, 2, 3]
    monkeypatch.setattr(workers, "DataLoader", no_worker_starts)
    with pytest.raises(UserError, match=r"batches of 2 workers need 0\.0 MB of shared memory, and .* has"):
        items(2)


def test_a_batch_that_no_memory_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Batches, "batch_bytes", 2**60)
    with pytest.raises(
        UserError, match=r"a batch's pictures need 1,073,741,824\.0 GiB, and this machine has"
    ):
        items(0)


def test_systems_without_that_folder_are_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SHARED_MEMORY", tmp_path / "absent")
    assert items(1) == [0, 1, 2, 3]


def test_the_limit_on_open_files_is_raised_or_told(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(workers.resource, "setrlimit", lambda what, limits: set_to.append(limits))
    monkeypatch.setattr(workers.resource, "getrlimit", lambda what: (64, 4096))
    assert items(1) == [0, 1, 2, 3]
    ((most, limit),) = set_to
    assert 64 < most < 400
    assert limit == 4096
    monkeypatch.setattr(workers.resource, "getrlimit", lambda what: (64, 64))
    monkeypatch.setattr(workers, "DataLoader", no_worker_starts)
    with pytest.raises(UserError, match=r"4 workers need \d+ open files, and this process may have 64"):
        items(4)
    monkeypatch.setattr(workers.resource, "getrlimit", lambda what: (resource.RLIM_INFINITY,) * 2)
    workers._require_files(1000)
    assert len(set_to) == 1


def test_the_files_that_workers_need_are_counted_generously(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tensors on their way, with no more open files than are asked for."""
    needed: list[int] = []
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(workers, "_require_files", lambda count: needed.append(count))

    class Many(Batches):
        def __getitem__(self, number: int) -> Any:
            return [torch.full((10,), number)] * 1 + [torch.zeros(3) for _ in range(15)]

    is_open = len(list(Path("/proc/self/fd").iterdir()))
    most = is_open + 16 + 2 * workers.FILES_OF_A_WORKER + 5 * workers.FILES_OF_A_BATCH
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
    try:
        made = list(run_workers(Many(), 2, pin=False))[-1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(made) == 16
    assert needed == [2]


def test_a_long_path_for_temporary_files_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers pass on tensors by a socket, whose path may have 107 characters."""
    long = tmp_path / ("of a job" * 20)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert items(2) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "DataLoader worker (pid 7) is killed by signal: Killed. ",
            "data worker (pid 7) is killed by signal: Killed: often for lack of memory; try fewer",
        ),
        (
            "DataLoader worker (pid(s) 7, 8) exited unexpectedly",
            "data worker (pid(s) 7, 8) exited unexpectedly: often",
        ),
    ],
)
def test_a_death_that_torch_tells_anywhere_is_one_sentence(said: str, told: str) -> None:
    """Its signal handler raises in the middle of whatever the main process does."""
    error = death_of_worker(RuntimeError(said))
    assert isinstance(error, WorkerDiedError)
    assert str(error).startswith(told)
    sentence, code = explain(RuntimeError(said)) or ("", 0)
    assert sentence.startswith(told)
    assert code == 1


def test_other_errors_of_workers_are_no_deaths() -> None:
    for error in (
        RuntimeError("Caught ValueError in DataLoader worker process 0."),
        RuntimeError("shapes"),
        ValueError("DataLoader worker"),
    ):
        assert death_of_worker(error) is None
        assert explain(error) is None
