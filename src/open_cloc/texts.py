"""Texts as the whole package treats them: cleaned, named by a hash, and kept many in two arrays."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np


class PackedTexts:
    """Texts by number, which worker processes share without copying.

    A list's strings would be copied page by page into every worker, since reading one changes its reference
    count: about 100 bytes a text and worker.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        """Pack texts; a text that holds half a character, as JSON may, keeps it."""
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self._starts = np.cumsum([0, *map(len, encoded)])  # (texts + 1,)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        content = self._bytes[self._starts[index] : self._starts[index + 1]].tobytes()
        return content.decode("utf-8", "surrogatepass")


def clean_text(text: str, lower_case: bool) -> str:
    """One line, single spaces, lower case where asked for."""
    text = " ".join(text.split())
    return text.lower() if lower_case else text


def text_id(text: str) -> int:
    """A 64-bit hash of a text, the same in every process.

    Of 10^5 different texts, two share one with a chance of 1 in 3e9.
    """
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)
