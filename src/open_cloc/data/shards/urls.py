"""What lies behind a URL or comes out of a command: opened for reading, or copied into a file."""

from __future__ import annotations

import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import fsspec

HTTP_TIMEOUT = 60.0  # seconds without a byte
GONE = (401, 403, 404, 410)  # HTTP codes that trying again does not change


def download(url: str, stream: IO[bytes]) -> None:
    """Copy what is behind a URL, or what a command prints, into an open file."""
    if not url.startswith("pipe:"):
        with open_url(url) as source:
            shutil.copyfileobj(source, stream, 1 << 20)
        return
    done = subprocess.run(url.removeprefix("pipe:"), shell=True, stdout=stream, stderr=subprocess.PIPE)
    if done.returncode:
        last_line = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise OSError(f"command ended with code {done.returncode}: {last_line}")


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
    """A URL without its query, which may hold a signature."""
    return url if url.startswith("pipe:") else url.partition("?")[0]


def is_final(error: Exception) -> bool:
    """Whether trying again is of no use."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in GONE
    return isinstance(error, (FileNotFoundError, PermissionError, ImportError))


def one_line(error: Exception) -> str:
    """An error in one line."""
    return " ".join(str(error).split()) or type(error).__name__
