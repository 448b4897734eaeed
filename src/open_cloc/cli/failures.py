"""What a user is told of an error: one line and an exit code, or nothing, where it is a defect."""

from __future__ import annotations

import errno
import os
import signal

from open_cloc.errors import RunError, UserError

STOPPED_BY = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "stopped by SIGTERM",
    signal.SIGHUP: "stopped: its terminal was closed",
}

# The machine cannot, whatever is asked of it, and what helps. Any other reason of the system, such as a path
# that is not there, lies in what was asked.
OF_THE_MACHINE = {
    errno.ENOSPC: "free some space, or write elsewhere",
    errno.EDQUOT: "free some space, or write elsewhere",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or write elsewhere",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "raise the limit on open files (ulimit -n)",
    errno.EAGAIN: "raise the limit on processes (ulimit -u)",
    errno.ENOMEM: "",
    errno.EIO: "",
    errno.ESTALE: "",
    errno.EPIPE: "",
    errno.ETIMEDOUT: "",
    errno.ECONNREFUSED: "",
    errno.ECONNRESET: "",
    errno.EHOSTUNREACH: "",
    errno.ENETUNREACH: "",
}

# How torch and the system's loader of libraries say, in errors of no special kind, that there is no memory.
NO_MEMORY = ("can't allocate memory", "out of memory", "not enough memory", "failed to map segment")


class Stopped(KeyboardInterrupt):
    """A signal that ends this process has come, other than that of Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def explain(error: BaseException) -> tuple[str, int] | None:
    """The sentence and the exit code for an error; None for a defect, which shows its traceback."""
    if isinstance(error, KeyboardInterrupt):
        number = error.number if isinstance(error, Stopped) else signal.SIGINT
        hints = "".join(f"; {hint}" for hint in error.args)
        return f"{STOPPED_BY[signal.Signals(number)]}{hints}", code_of_signal(number)
    if isinstance(error, RuntimeError) and "DataLoader" in str(error):
        from open_cloc.data.workers import death_of_worker  # torch, which is there by now

        error = death_of_worker(error) or error
    if isinstance(error, RunError):
        return str(error), 1
    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, OSError) and error.errno is not None:
        return describe_os_error(error), 1 if error.errno in OF_THE_MACHINE else 2
    if is_lack_of_memory(error):
        reason = str(error).strip().partition("\n")[0]
        return f"out of memory: {reason or 'take less at a time'}", 1
    if isinstance(error, RecursionError):
        return "the input is nested too deeply (--debug shows where)", 2
    if isinstance(error, OverflowError):
        return f"a number is too large: {error} (--debug shows where)", 2
    return None


def code_of_signal(number: int) -> int:
    """The exit code by which shells know that a signal ended a process."""
    return 128 + number


def describe_os_error(error: OSError) -> str:
    """What the system says, the file it speaks of, and what helps."""
    reason = error.strerror or os.strerror(error.errno or 0)
    files = [
        os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))
    ]
    hint = OF_THE_MACHINE.get(error.errno or 0)
    return f"{reason}{': ' if files else ''}{' -> '.join(files)}{f' ({hint})' if hint else ''}"


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether there is no memory left, here or on a device."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, (RuntimeError, ImportError)) and any(phrase in said for phrase in NO_MEMORY)
    )
