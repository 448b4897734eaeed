"""What lies behind a URL or comes out of a command: opened for reading, or copied into a file."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

import fsspec

from open_cloc.shown import without_secrets

HTTP_TIMEOUT = 60.0  # seconds without a byte
GONE = (401, 403, 404, 410)  # HTTP codes that trying again does not change


def download(url: str, stream: IO[bytes]) -> None:
    """Copy what is behind a URL, or what a command prints, into an open file."""
    if not url.startswith("pipe:"):
        with open_url(url) as source:
            shutil.copyfileobj(source, stream, 1 << 20)
        return
    code, said = _run(url.removeprefix("pipe:"), stream)
    if code:
        last_line = said.decode(errors="replace").strip().rpartition("\n")[2]
        raise OSError(f"command ended with code {code}: {without_secrets(last_line)}")


def _run(command: str, stream: IO[bytes]) -> tuple[int, bytes]:
    """The exit code of a command whose output goes into a file, and what it says of errors.

    With this process end all that the shell has started.
    """
    process = subprocess.Popen(
        command, shell=True, stdout=stream, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        _, said = process.communicate()
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return process.returncode, said


@contextmanager
def open_url(url: str) -> Iterator[IO[bytes]]:
    """Open a URL for reading: HTTP by the standard library, anything else by fsspec."""
    if url.startswith(("http://", "https://")):
        with urllib.request.urlopen(url, timeout=HTTP_TIMEOUT) as response:
            yield response
    else:
        with fsspec.open(url, "rb") as stream:
            yield stream


def shown(url: str) -> str:
    """A URL or command without what may be secret."""
    return without_secrets(url)


def lasting(url: str) -> str:
    """What of a URL stays the same tomorrow: all but its query, which may be a signature of today."""
    return url if url.startswith("pipe:") else url.partition("?")[0]


def is_final(error: Exception) -> bool:
    """Whether trying again is of no use."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in GONE
    return isinstance(error, (FileNotFoundError, PermissionError, ImportError))


def one_line(error: Exception) -> str:
    """An error in one line, without the secrets of URLs that it names."""
    return without_secrets(" ".join(str(error).split())) or type(error).__name__
