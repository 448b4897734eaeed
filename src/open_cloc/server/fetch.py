"""Pictures from URLs, where an allow-list names them: no redirects, no addresses that nobody meant."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

from open_cloc.config import require
from open_cloc.errors import UserError
from open_cloc.server.limits import Limits, RefusedError

SECONDS = 15.0
PORTS = {"http": 80, "https": 443}


class Fetcher:
    """Fetches what begins with one of the allowed URLs.

    A host that the allow-list names by its number, or as localhost, may be private: somebody has said so. Any
    other must have a public address, looked up once and connected to as looked up.
    """

    def __init__(self, allowed: Sequence[str], limits: Limits) -> None:
        """Take an allow-list.

        Args:
            allowed: URLs such as `https://images.example.org/photos/`.
            limits: What is taken.

        Raises:
            UserError: If one is no http or https URL, or the extra is not installed.
        """
        self._httpx: Any = require("httpx", "serve") if allowed else None
        self._limits = limits
        self._allowed = [urlsplit(url) for url in allowed]
        for url, text in zip(self._allowed, allowed):
            if url.scheme not in PORTS or not url.hostname or url.username or url.query or url.fragment:
                raise UserError(f"an allowed URL must be such as https://host/folder/; got {text!r:.100}")

    @property
    def is_open(self) -> bool:
        """Whether any URL is allowed."""
        return bool(self._allowed)

    async def __call__(self, url: str, headers: Mapping[str, str] | None = None) -> bytes:
        """Fetch a picture's file.

        Args:
            url: Where it is.
            headers: Further ones.

        Raises:
            RefusedError: If the URL is not allowed, or there is nothing to be had.
        """
        parts, allowed = self._checked(url)
        address = await self._address(parts, allowed)
        port = parts.port or PORTS[parts.scheme]
        host = f"[{address}]" if ":" in address else address
        rest = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
        sent = {**(headers or {}), "Host": parts.netloc}
        try:
            asking = self._ask(f"{parts.scheme}://{host}:{port}{rest}", sent, parts.hostname or "")
            return await asyncio.wait_for(asking, SECONDS)
        except (self._httpx.HTTPError, asyncio.TimeoutError) as error:
            raise RefusedError(422, f"the picture's URL cannot be read: {type(error).__name__}") from None

    async def _ask(self, target: str, headers: Mapping[str, str], host: str) -> bytes:
        """The content at an address, where a host of this name answers."""
        client = self._httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=SECONDS)
        async with client:
            extensions = {"sni_hostname": host}
            async with client.stream("GET", target, headers=headers, extensions=extensions) as answer:
                return await self._content(answer)

    def _checked(self, url: str) -> tuple[SplitResult, SplitResult]:
        """A URL and the allowed one that it begins with."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise RefusedError(422, "the picture's URL is none") from None
        plain = ".." not in parts.path and "%" not in parts.path[:1] and "\\" not in url
        for allowed in self._allowed:
            same = (parts.scheme, parts.hostname, port or PORTS.get(parts.scheme)) == (
                allowed.scheme,
                allowed.hostname,
                allowed.port or PORTS[allowed.scheme],
            )
            folder = allowed.path if allowed.path.endswith("/") else f"{allowed.path}/"
            below = (parts.path or "/") == allowed.path or (parts.path or "/").startswith(folder)
            if same and plain and below and parts.username is None:
                return parts, allowed
        raise RefusedError(422, "this server does not fetch that URL")

    @staticmethod
    async def _address(parts: SplitResult, allowed: SplitResult) -> str:
        """The host's address, which nothing looks up again."""
        host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:
            raise RefusedError(422, "the host of the picture's URL is not known") from None
        addresses = [str(row[4][0]) for row in found]
        if not _is_literal(allowed.hostname or "") and not all(
            ipaddress.ip_address(address).is_global for address in addresses
        ):
            raise RefusedError(422, "this server does not fetch from private addresses")
        return addresses[0]

    async def _content(self, answer: Any) -> bytes:
        if answer.status_code != 200:
            what = "redirects, which are not followed" if answer.is_redirect else str(answer.status_code)
            raise RefusedError(422, f"the picture's URL answers with {what}")
        chunks, size = [], 0
        async for chunk in answer.aiter_bytes():
            size += len(chunk)
            if size > self._limits.bytes:
                raise RefusedError(413, f"the picture must have at most {self._limits.megabytes} MiB")
            chunks.append(chunk)
        return b"".join(chunks)


def _is_literal(host: str) -> bool:
    """Whether a host is named by its number, or is this machine."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True
