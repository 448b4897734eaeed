"""One HTTP request of which neither the answer's size nor its time is the server's to choose."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

# Bytes of an answer: a caption of thousands of words, or a list of thousands of models.
MOST_BYTES = 4 * 2**20


class Reply(NamedTuple):
    """What a server has answered.

    Attributes:
        status: HTTP's code.
        headers: Headers; their names may be asked for in capitals or not.
        body: The answer itself.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_success(self) -> bool:
        """Whether the code says that all is well."""
        return 200 <= self.status < 300

    @property
    def text(self) -> str:
        """The body as text, whatever character set it claims to be of."""
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body parsed.

        Raises:
            ValueError: If it is no JSON, or nested without end.
        """
        try:
            return json.loads(self.body)
        except RecursionError:
            raise ValueError("nested too deeply") from None


class UnusableReplyError(Exception):
    """An answer that is not read: too large, or packed so that its size cannot be known."""


async def request(client: Any, method: str, path: str, timeout: float, **content: Any) -> Reply:
    """Ask a server.

    Args:
        client: An `httpx.AsyncClient`.
        method: Such as `POST`.
        path: Below the client's URL.
        timeout: Seconds until the answer is there in whole; httpx's own limit is for each byte, which a
            server that trickles never reaches.
        **content: What is sent, as httpx takes it.

    Raises:
        UnusableReplyError: If the answer is too large.
        TimeoutError: If it takes too long.
    """
    return await asyncio.wait_for(_request(client, method, path, **content), timeout)


async def _request(client: Any, method: str, path: str, **content: Any) -> Reply:
    # Packed answers may unpack to a thousand times their size.
    headers = {"Accept-Encoding": "identity"}
    async with client.stream(method, path, headers=headers, **content) as response:
        packed = response.headers.get("Content-Encoding", "identity").strip().lower()
        if packed not in ("", "identity"):
            raise UnusableReplyError(f"the answer is packed ({packed[:20]}), which was not asked for")
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > MOST_BYTES:
                raise UnusableReplyError(f"the answer has more than {MOST_BYTES >> 20} MiB")
        return Reply(response.status_code, response.headers, bytes(body))
