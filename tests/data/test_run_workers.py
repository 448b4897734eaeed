"""Items made by worker processes: what an item raises comes as a value, whatever its type."""

from __future__ import annotations

import gc
import multiprocessing
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from open_cloc.data.workers import Failure, WorkerDefectError, _explained, run_workers
from open_cloc.errors import (
    MissingFileError,
    MissingPictureError,
    SampleError,
    UserError,
    WorkerDiedError,
)
from tests.processes import CONTEXT


class OddError(SampleError):
    """Cannot be made of one text, nor pickled."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}", "odd")
        self.helper = lambda: None


class FarError(UserError):
    """Of somebody else's package."""

    def __init__(self, *, where: str) -> None:
        super().__init__(f"wrong in {where}")


class Items:
    batch_bytes = 0

    def __init__(self, errors: dict[int, Any]) -> None:
        self.errors = errors

    def __len__(self) -> int:
        return 6

    def __getitem__(self, number: int) -> int:
        if number in self.errors:
            raise self.errors[number]()
        return number


ERRORS = {
    "picture": (lambda: MissingPictureError("no a.jpg"), MissingPictureError, "no a.jpg"),
    "sample": (lambda: SampleError("cut", "damage"), SampleError, "cut"),
    "odd": (lambda: OddError(1, 2), SampleError, "1 and 2"),
    "file": (lambda: MissingFileError("no file"), MissingFileError, "no file"),
    "user": (lambda: UserError("wrong"), UserError, "wrong"),
    "far": (lambda: FarError(where="x"), UserError, "wrong in x"),
    "unicode": (
        lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why"),
        WorkerDefectError,
        "UnicodeDecodeError",
    ),
    "key": (lambda: KeyError("x"), WorkerDefectError, "(?s)Traceback.*KeyError: 'x'"),
    "memory": (lambda: MemoryError(), WorkerDefectError, "MemoryError"),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_come_as_what_they_are(kind: str) -> None:
    make, expected, message = ERRORS[kind]
    items = run_workers(Items({3: make}), workers=2, pin=False)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(expected, match=message) as caught:
        next(items)
    assert type(caught.value) is expected
    assert isinstance(caught.value, WorkerDefectError) == ("Traceback" in str(caught.value))
    if isinstance(caught.value, SampleError):
        assert caught.value.cause == make().cause


def test_in_this_process_errors_stay_as_they_are() -> None:
    with pytest.raises(OddError):
        list(run_workers(Items({0: lambda: OddError(1, 2)}), workers=0, pin=False))


def test_a_failure_keeps_what_the_nearest_kind_has() -> None:
    error = Failure.of(OddError(3, 4)).error()
    assert (type(error), str(error), error.cause) == (SampleError, "3 and 4", "odd")  # type: ignore[attr-defined]


def test_a_worker_that_dies_while_it_hands_over_an_item_is_one_sentence() -> None:
    """torch asks which workers have died before the system knows it, and lets its own error through."""
    living, dying = (CONTEXT.Process(target=time.sleep, args=(60,)) for _ in "ab")
    for process in (living, dying):
        process.start()
    error = EOFError()
    assert _explained(error, Items({}), 0, SimpleNamespace(_workers=[living]), 0) is error
    dying.kill()
    told = _explained(error, Items({}), 0, SimpleNamespace(_workers=[living, dying]), 0)
    assert isinstance(told, WorkerDiedError)
    assert str(told).startswith(f"data worker (pid {dying.pid}) has died: often for lack of memory")
    living.kill()
    living.join()


def test_torchs_own_word_of_a_death_may_come_while_we_look_for_it() -> None:
    """Its handler of SIGCHLD raises in the middle of whatever runs."""

    class Dying:
        pid = 7

        def join(self, timeout: float) -> None:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    told = _explained(ConnectionResetError(), Items({}), 0, SimpleNamespace(_workers=[Dying()]), 0)
    assert isinstance(told, WorkerDiedError)
    assert str(told).startswith("data worker (pid 7) is killed by signal: Killed: often for lack of memory")


def test_workers_end_at_once_whoever_ends_the_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the garbage collector takes their queues first, and torch waits for each of them."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 30.0)
    others = set(multiprocessing.active_children())
    items = run_workers(Items({}), workers=2, pin=False)
    assert [next(items), next(items)] == [0, 1]
    workers = set(multiprocessing.active_children()) - others
    assert len(workers) == 2
    circle: list[Any] = [items]
    circle.append(circle)
    del items, circle
    started = time.monotonic()
    gc.collect()
    assert time.monotonic() - started < 20
    assert [worker.exitcode for worker in workers] == [0, 0]
