"""What lies behind a URL or comes out of a command: opened for reading, or copied within bounds."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from typing import IO, Any

import fsspec

from open_cloc.shown import without_secrets

HTTP_TIMEOUT = 60.0  # seconds without a byte
GONE = (401, 403, 404, 410)  # HTTP codes that trying again does not change
NO_HEAD = (400, 403, 405, 501)  # HTTP codes by which servers refuse to tell of a file without sending it
GRACE = 120.0  # seconds until a transfer must have come up to its least rate
LEAST_RATE = 10_000  # bytes a second on average
AT_ONCE = 1 << 20

# Where fsspec's file systems say what tells a file from one that was made anew.
ETAGS = ("ETag", "etag", "md5Hash", "md5", "crc32c", "blob_id")
TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")

# What a store tells of a file: `etag`, `time`, `size`; what it does not tell is not in it.
Version = dict[str, str]


@dataclass(frozen=True)
class Bounds:
    """How much may come, and how slowly.

    Attributes:
        most_bytes: Of the whole file.
        started: Seconds of the monotonic clock.
    """

    most_bytes: float
    started: float

    @classmethod
    def from_now(cls, most_bytes: float) -> Bounds:
        """Bounds of a transfer that begins now."""
        return cls(most_bytes, time.monotonic())

    def check(self, received: int) -> None:
        """Stop a transfer that has no end.

        Raises:
            OSError: If it is larger or slower than may be.
        """
        if received > self.most_bytes:
            raise OSError(f"more than {self.most_bytes / 1e9:g} GB came: a tar must fit into cache_gb")
        elapsed = time.monotonic() - self.started
        if elapsed > GRACE and received < LEAST_RATE * elapsed:
            raise TimeoutError(f"only {received} bytes came in {elapsed:.0f} s")


def download(url: str, stream: IO[bytes], bounds: Bounds) -> Version:
    """Copy what is behind a URL, or what a command prints, into an open file; tells of which version it is.

    Raises:
        OSError: If it cannot be had, or less or more comes than is announced or allowed.
    """
    if url.startswith("pipe:"):
        _run(url.removeprefix("pipe:"), stream, bounds)
        return {}
    with open_url(url) as (source, version):
        received = _copy(source, stream, bounds)
    size = version.get("size")
    if size is not None and int(size) != received:
        raise OSError(f"{received} of {size} bytes came")
    return version


def read_url(url: str, bounds: Bounds) -> bytes:
    """The content of a small file behind a URL."""
    with tempfile.SpooledTemporaryFile(AT_ONCE) as stream:
        download(url, stream, bounds)
        stream.seek(0)
        return stream.read()


def version_of(url: str) -> Version:
    """What tells the file behind a URL from one that is made anew there; empty where nothing does."""
    if url.startswith("pipe:"):
        return {}
    if not url.startswith(("http://", "https://")):
        system, path = fsspec.core.url_to_fs(url)
        return _version(system.info(path))
    try:
        with urllib.request.urlopen(_request(url, "HEAD"), timeout=HTTP_TIMEOUT) as response:
            return _http_version(response.headers)
    except urllib.error.HTTPError as error:
        if error.code not in NO_HEAD:
            raise
    with open_url(url) as (_, version):  # the body is not read
        return version


def is_other(before: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Whether two versions differ, by the surest that both tell beside the size."""
    both = [name for name in ("etag", "time") if name in before and name in now][:1]
    return any(before[name] != now[name] for name in (*both, "size") if name in before and name in now)


@contextmanager
def open_url(url: str) -> Iterator[tuple[IO[bytes], Version]]:
    """Open a URL for reading: HTTP by the standard library, anything else by fsspec."""
    if url.startswith(("http://", "https://")):
        with urllib.request.urlopen(_request(url, "GET"), timeout=HTTP_TIMEOUT) as response:
            yield response, _http_version(response.headers)
    else:
        system, path = fsspec.core.url_to_fs(url)
        version = _version(system.info(path))
        with system.open(path, "rb") as stream:
            yield stream, version


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


def _request(url: str, method: str) -> urllib.request.Request:
    """A request; a login in the URL goes into a header, which no redirection takes elsewhere."""
    parts = urllib.parse.urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host).geturl(), method=method)
    if at:
        encoded = base64.b64encode(urllib.parse.unquote(login).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {encoded}")
    return request


def _http_version(headers: Mapping[str, str]) -> Version:
    size = headers.get("Content-Length", "")
    told = {
        "etag": headers.get("ETag", ""),
        "time": headers.get("Last-Modified", ""),
        "size": size if size.isdigit() and int(size) else "",  # some say 0 where they send nothing
    }
    return {name: value for name, value in told.items() if value}


def _version(info: Mapping[str, Any]) -> Version:
    found = {
        name: next((str(info[key]) for key in keys if info.get(key)), "")
        for name, keys in (("etag", ETAGS), ("time", TIMES), ("size", ("size",)))
    }
    return {name: value for name, value in found.items() if value}


def _copy(source: IO[bytes], stream: IO[bytes], bounds: Bounds) -> int:
    # Of a server, what has come; to wait for more would be to wait as long as it likes.
    read = getattr(source, "read1", source.read)
    received = 0
    try:
        while part := read(AT_ONCE):
            stream.write(part)
            received += len(part)
            bounds.check(received)
    except HTTPException as error:
        raise OSError(f"the answer breaks off after {received} bytes: {error!r}") from error
    return received


def _run(command: str, stream: IO[bytes], bounds: Bounds) -> None:
    """Let a command print into a file; past the bounds it ends, with all that it has started."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, shell=True, stdout=stream, stderr=said, start_new_session=True)
        try:
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.5)
                bounds.check(os.fstat(stream.fileno()).st_size)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        if process.returncode:
            size = said.seek(0, os.SEEK_END)
            said.seek(max(0, size - 10_000))
            last_line = said.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise OSError(f"command ended with code {process.returncode}: {without_secrets(last_line)}")
