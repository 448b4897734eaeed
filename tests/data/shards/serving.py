"""Shards on a web server that counts what is asked for and misbehaves on demand."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from open_cloc.data.shards.remote import RemoteShards, open_shards
from open_cloc.samples import Region, RegionSample

NUM_SHARDS, PER_SHARD = 6, 4


def numbered_samples() -> list[RegionSample]:
    rng = np.random.default_rng(0)
    return [
        RegionSample(
            f"k{i:03d}",
            rng.integers(0, 255, (24, 20, 3), dtype=np.uint8),
            (f"caption {i}",),
            (Region((0.1, 0.2, 0.5, 0.9), f"thing {i}"),),
        )
        for i in range(NUM_SHARDS * PER_SHARD)
    ]


@dataclass
class Server:
    """A web server over a folder.

    Attributes:
        asked: How often each file was sent for.
        told: How often it was asked about, by HEAD.
        fail: Name -> codes of the next answers; 0: cut short.
        hold: Answers for tars wait for it.
        manner: How tars are sent: `drip`, `endless`, `no-head`, `redirect URL`; well unless given.
        headers: Sent with everything.
        logins: What was sent as `Authorization`.
    """

    folder: Path
    url: str = ""
    asked: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)
    fail: dict[str, list[int]] = field(default_factory=dict)
    hold: threading.Event | None = None
    manner: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    logins: set[str | None] = field(default_factory=set)


class Handler(SimpleHTTPRequestHandler):
    def __init__(self, server: Server, *args: object) -> None:
        self.state = server
        super().__init__(*args, directory=str(server.folder))  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        return self.path.partition("?")[0].rpartition("/")[2]

    def do_HEAD(self) -> None:
        self.state.told[self.name] += 1
        if self.state.manner == "no-head":
            self.send_error(405)
        else:
            super().do_HEAD()

    def do_GET(self) -> None:
        name = self.name
        self.state.asked[name] += 1
        self.state.logins.add(self.headers.get("Authorization"))
        if self.state.hold is not None and name.endswith(".tar"):
            self.state.hold.wait(10)
        code = self.state.fail[name].pop(0) if self.state.fail.get(name) else 200
        if code == 200 and name.endswith(".tar") and self.state.manner not in ("", "no-head"):
            with suppress(OSError):  # whoever asked has left
                self._misbehave(*self.state.manner.split())
        elif code == 200:
            super().do_GET()
        elif code:
            self.send_error(code)
        else:
            content = (self.state.folder / name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])

    def _misbehave(self, manner: str, url: str = "") -> None:
        self.send_response(302 if url else 200)
        if url:
            self.send_header("Location", f"{url}/{self.name}")
        self.end_headers()
        deadline = time.monotonic() + 20
        while not url and time.monotonic() < deadline:
            self.wfile.write(b"x" if manner == "drip" else bytes(1 << 20))
            self.wfile.flush()
            threading.Event().wait(0.02 if manner == "drip" else 0)

    def end_headers(self) -> None:
        for name, value in self.state.headers.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving(shards: Path, folder: Path) -> Iterator[Server]:
    """A server over a copy of some shards."""
    shutil.copytree(shards, folder)
    state = Server(folder)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, state))
    httpd.daemon_threads = True
    httpd.block_on_close = False
    state.url = f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        if state.hold is not None:
            state.hold.set()
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def opened(path: str, cache: Path, gigabytes: float = 1.0) -> RemoteShards:
    dataset = open_shards(path, cache=cache, cache_gb=gigabytes)
    assert isinstance(dataset, RemoteShards)
    return dataset
