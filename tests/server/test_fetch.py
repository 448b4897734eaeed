"""URLs: only allowed ones, no way out of them, no private addresses behind public names."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from open_cloc.errors import UserError
from open_cloc.server.fetch import Fetcher
from open_cloc.server.limits import Limits, RefusedError


class Site(BaseHTTPRequestHandler):
    seen: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        Site.seen.append(f"{self.headers['host']}{self.path}")
        if self.path == "/photos/away":
            self.send_response(302)
            self.send_header("Location", "/secret")
            self.end_headers()
            return
        self.send_response(200 if "lost" not in self.path else 404)
        self.end_headers()
        self.wfile.write(b"x" * (2 * 2**20) if "large" in self.path else b"a picture")

    def log_message(self, *given: Any) -> None:
        """Say nothing."""


@pytest.fixture
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Site.seen.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def fetch(url: str, *allowed: str) -> bytes:
    return asyncio.run(Fetcher(allowed, Limits(megabytes=1))(url))


def refusal(url: str, *allowed: str) -> str:
    with pytest.raises(RefusedError) as caught:
        fetch(url, *allowed)
    return str(caught.value)


def test_an_allowed_url_is_fetched(site: str) -> None:
    assert fetch(f"{site}/photos/a.jpg?x=1", f"{site}/photos/") == b"a picture"
    assert Site.seen == [f"{site.removeprefix('http://')}/photos/a.jpg?x=1"]


@pytest.mark.parametrize(
    "path",
    ["/other/a.jpg", "/photos/../secret", "/photos", "/photosabc/x", "\\@evil/photos/", "/photos/\\..\\x"],
)
def test_any_other_path_is_not(path: str, site: str) -> None:
    assert refusal(f"{site}{path}", f"{site}/photos/") == "this server does not fetch that URL"
    assert Site.seen == []


@pytest.mark.parametrize(
    "url", ["http://[", "http://x:99999/", "https://user@127.0.0.1/photos/", "http://127.0.0.1:1/"]
)
def test_what_is_no_allowed_url(url: str, site: str) -> None:
    assert "URL" in refusal(url, f"{site}/photos/")


def test_redirects_large_and_lost_files(site: str) -> None:
    allowed = f"{site}/photos/"
    assert "redirects, which are not followed" in refusal(f"{allowed}away", allowed)
    assert "404" in refusal(f"{allowed}lost", allowed)
    assert "at most 1 MiB" in refusal(f"{allowed}large", allowed)
    assert not any("secret" in seen for seen in Site.seen)


def test_a_public_name_with_a_private_address_is_refused(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = int(site.rpartition(":")[2])
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    async def answer(self: Any, *given: Any, **named: Any) -> Any:
        return found

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", answer)
    url = f"http://images.example.org:{port}/a.jpg"
    assert "private addresses" in refusal(url, f"http://images.example.org:{port}/")
    assert Site.seen == []


@pytest.mark.parametrize(
    "url", ["images.example.org", "ftp://x.org/", "https://user:pw@x.org/", "https://x.org/?q"]
)
def test_an_allow_list_of_something_else(url: str) -> None:
    with pytest.raises(UserError, match="an allowed URL must be such as"):
        Fetcher([url], Limits())


def test_nothing_is_fetched_without_an_allow_list(site: str) -> None:
    assert "does not fetch" in refusal(f"{site}/photos/a.jpg")
