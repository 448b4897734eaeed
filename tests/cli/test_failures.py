"""Which errors are told in one line, and whose they are."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable

import numpy as np
import pytest
import torch

from open_cloc.cli.failures import Stopped, explain
from open_cloc.errors import ExistingFileError, MissingFileError, NotFiniteError, UserError


def of_the_system(number: int, *files: object) -> OSError:
    """As the system's calls raise it."""
    return OSError(number, os.strerror(number), *files)


@pytest.mark.parametrize(
    ("error", "sentence", "code"),
    [
        (UserError("bad"), "bad", 2),
        (MissingFileError("no such file: a"), "no such file: a", 2),
        (ExistingFileError("there already"), "there already", 2),
        (NotFiniteError("loss"), "loss", 1),
        (of_the_system(errno.EACCES, "a/b"), "Permission denied: a/b", 2),
        (of_the_system(errno.ENOENT, b"a/b"), "No such file or directory: a/b", 2),
        (of_the_system(errno.ENAMETOOLONG, "x"), "File name too long: x", 2),
        (of_the_system(errno.EROFS, "x"), "Read-only file system: x", 2),
        (of_the_system(errno.ELOOP, "x"), "Too many levels of symbolic links: x", 2),
        (of_the_system(errno.EXDEV, "x", None, "y"), "Invalid cross-device link: x -> y", 2),
        (
            of_the_system(errno.ENOSPC, "x"),
            "No space left on device: x (free some space, or write elsewhere)",
            1,
        ),
        (
            of_the_system(errno.EMFILE),
            "Too many open files (raise the limit on open files (ulimit -n))",
            1,
        ),
        (of_the_system(errno.EIO, 7), "Input/output error", 1),
        (of_the_system(errno.ECONNREFUSED), "Connection refused", 1),
        (MemoryError(), "out of memory: take less at a time", 1),
        (RecursionError("maximum"), "the input is nested too deeply (--debug shows where)", 2),
        (OverflowError("too large"), "a number is too large: too large (--debug shows where)", 2),
        (KeyboardInterrupt(), "interrupted", 130),
        (KeyboardInterrupt("go on so"), "interrupted; go on so", 130),
        (Stopped(signal.SIGTERM), "stopped by SIGTERM", 143),
        (Stopped(signal.SIGHUP), "stopped: its terminal was closed", 129),
    ],
)
def test_what_is_told(error: BaseException, sentence: str, code: int) -> None:
    assert explain(error) == (sentence, code)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("of numpy"),
        OSError("without a number, from a library"),
        FileNotFoundError("x"),
        KeyError(1),
        RuntimeError("shapes"),
        AssertionError(),
        SystemExit(2),
    ],
)
def test_defects_are_not_explained(error: BaseException) -> None:
    assert explain(error) is None


@pytest.mark.parametrize(
    "take",
    [lambda: np.zeros(2**50), lambda: torch.zeros(2**58), lambda: bytearray(2**62)],
    ids=["numpy", "torch", "python"],
)
def test_lack_of_memory_is_recognised(take: Callable[[], object]) -> None:
    """As the libraries say it."""
    with pytest.raises((MemoryError, RuntimeError)) as raised:
        take()
    told = explain(raised.value)
    assert told is not None
    assert told[0].startswith("out of memory: ")
    assert told[1] == 1


def test_a_device_without_memory_is_recognised() -> None:
    told = explain(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee more"))
    assert told == ("out of memory: CUDA out of memory. Tried to allocate 2.00 GiB.", 1)
