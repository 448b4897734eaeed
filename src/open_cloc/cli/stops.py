"""Ctrl-C, SIGTERM and a closed terminal: one line, the shell's exit code for it, nothing left running."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import NoReturn

from open_cloc.cli.failures import STOPPED_BY, Stopped, code_of_signal

STANDARD_STREAMS = 3
LATER = 0.01  # seconds until a signal that came at a bad time comes again
PATIENCE = 5.0  # seconds for what may hang: a library's own code, threads at Python's end


class Stops:
    """What the signals do that end this process.

    While libraries are imported there is nothing to undo, and an exception may get lost among them: the
    process ends where it stands. Later on a signal becomes an exception, so that all that is open is closed,
    and half-written files go; behind a library that is just being imported. A second signal ends the process
    at once.

    Args:
        name: What stands before the message, such as `open-cloc train`.

    Attributes:
        is_working: Whether there is something to undo.
        asked: The signal that has come; 0 before.
    """

    def __init__(self, name: str) -> None:
        self.name, self.is_working, self.asked = name, False, 0
        self._seen = threading.Event()
        self._put_off = 0  # a signal that has come while a library was imported

    def listen(self) -> None:
        """Take over the signals that nobody else handles or ignores, as `nohup` does."""
        open_closed_streams()
        for number in STOPPED_BY:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, self._come)
        # What comes for a child before it has forgotten our handlers would seem to come for this process.
        os.register_at_fork(
            before=partial(signal.pthread_sigmask, signal.SIG_BLOCK, STOPPED_BY),
            after_in_parent=partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, STOPPED_BY),
            after_in_child=self._forget,
        )
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reading,), name="stops", daemon=True).start()

    def come_now(self) -> None:
        """Raise what a signal becomes that has come and was put off."""
        if self._put_off:
            self._come(self._put_off, None)

    def settle(self) -> None:
        """All has been undone: no further signal disturbs what is left to do, and no worker is waited for."""
        for number in STOPPED_BY:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would complain about the workers
        end_children()

    def leave(self) -> NoReturn:
        """End as Python does, but for threads that hang, libraries that take long, and freeing all memory."""
        code = code_of_signal(self.asked)
        timer = threading.Timer(PATIENCE, os._exit, [code])
        timer.daemon = True
        timer.start()
        atexit._run_exitfuncs()
        os._exit(code)

    def _come(self, number: int, frame: FrameType | None) -> None:
        if self.is_working and _is_importing(frame):
            # An exception among a library's C++ aborts the process; `_watch` ends what takes too long.
            self._put_off = number
            later = threading.Timer(LATER, signal.pthread_kill, [threading.main_thread().ident, number])
            later.daemon = True
            later.start()
            return
        self._seen.set()
        self._put_off = 0
        if self.asked or not self.is_working:
            self._end_now(number)
        self.asked = number
        raise KeyboardInterrupt if number == signal.SIGINT else Stopped(number)

    def _watch(self, reading: int) -> None:
        """End the process where Python does not come to its handlers, as within a library's long call."""
        while True:
            (number,) = os.read(reading, 1)
            ours = number in STOPPED_BY and signal.getsignal(number) == self._come
            if ours and not self._seen.wait(PATIENCE):
                self._end_now(number)

    def _end_now(self, number: int) -> None:
        """End without undoing anything; writes past Python's own streams, which may be in use."""
        end_children()
        with suppress(OSError):  # nobody hears it
            os.write(2, f"{self.name}: {STOPPED_BY[signal.Signals(number)]}\n".encode())
        os._exit(code_of_signal(number))

    def _forget(self) -> None:
        """A child that goes on with our code is its parent's to end."""
        signal.set_wakeup_fd(-1)
        for number in STOPPED_BY:
            if signal.getsignal(number) == self._come:
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPED_BY)


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported, one that is asked for late."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def open_closed_streams() -> None:
    """Give a process that was started without standard streams some that lead nowhere.

    The next file to be opened, our pipe first, would take their numbers, and get what libraries print.
    """
    for number in range(STANDARD_STREAMS):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def end_children() -> None:
    """End the worker processes that libraries have started by `multiprocessing`."""
    if "multiprocessing" in sys.modules:
        children = sys.modules["multiprocessing"].active_children()
        for child in children:
            child.kill()
        for child in children:
            child.join(1.0)
