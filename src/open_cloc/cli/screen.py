"""All that is printed: onto terminals that know few characters, pipes that close, disks that fill."""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from open_cloc.files import speaking_of
from open_cloc.shown import printable, without_secrets

OUTPUT = Path("standard output")


def say(text: object = "", *, to_errors: bool = False) -> None:
    """Print a text as it may be shown: file names and captions hold whatever their makers put there.

    Args:
        text: One line or several.
        to_errors: Print to the standard error output, if anybody hears it.
    """
    if to_errors:
        with suppress(OSError):
            print(as_shown(str(text)), file=sys.stderr, flush=True)
        return
    with speaking_of(OUTPUT):
        print(as_shown(str(text)), flush=True)


def say_json(document: Any) -> None:
    """Print a document for programs: JSON writes control characters out by itself, and is not cut."""
    with speaking_of(OUTPUT):
        print(json.dumps(document, indent=2, allow_nan=False), flush=True)


def as_shown(text: str) -> str:
    """A text without secrets of URLs, and with control characters written out."""
    return printable(without_secrets(text))


class _ShownFormatter(logging.Formatter):
    """Log lines as `say` prints them."""

    def format(self, record: logging.LogRecord) -> str:
        return as_shown(super().format(record))


def show_warnings_as_text() -> None:
    """Let log lines that nobody else handles come out as `say` prints."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_ShownFormatter())
    # Pillow's about large pictures, which are read, and whose names it does not know.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")


def prepare_streams() -> None:
    """Let nothing that is printed end this process; streams that were closed lead nowhere."""
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows no umlaut


def use_utf8() -> None:
    """Start this process again where Python would not take file names for UTF-8, as data sets write them."""
    if sys.getfilesystemencoding() == "utf-8" or sys.flags.utf8_mode:
        return
    output = getattr(sys.stdout, "encoding", None) or "ascii"
    environment = {"PYTHONIOENCODING": f"{output}:backslashreplace"} | os.environ | {"PYTHONUTF8": "1"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def flush_output() -> None:
    """Write what was printed.

    Raises:
        OSError: If it cannot be written, such as on a full disk.
    """
    with speaking_of(OUTPUT):
        sys.stdout.flush()


def reader_has_left() -> bool:
    """Whether nobody reads our standard output any more, as behind `| head`."""
    try:
        output = sys.stdout.fileno()
    except OSError:  # no file, but an object in its place
        return False
    poller = select.poll()
    poller.register(output, 0)
    return bool(poller.poll(0))


def let_go_of_output() -> None:
    """Forget what cannot be written: Python tries once more at its end, and complains."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
