"""Items made by worker processes: what an item raises comes as a value, whatever its type."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
import torch

from open_cloc.data.workers import Failure, WorkerDefectError, run_workers
from open_cloc.errors import (
    MissingFileError,
    MissingPictureError,
    SampleError,
    UserError,
    WorkerDiedError,
)


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


class Dying(Items):
    """Gives tensors, which another process takes out of this one's hands, until it is killed."""

    def __getitem__(self, number: int) -> Any:
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.ones(1000)


def test_a_worker_that_dies_over_a_half_received_item_is_one_sentence() -> None:
    items = run_workers(Dying({}), 1, False)
    next(items)
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's own would tell first
    try:
        time.sleep(1)
        with pytest.raises(
            WorkerDiedError, match=r"^data worker \(pid \d+\) has died: often for lack of memory"
        ):
            list(items)
    finally:
        signal.signal(signal.SIGCHLD, before)
