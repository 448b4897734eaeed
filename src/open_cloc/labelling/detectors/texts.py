"""What detectors do with phrases: cut those that are too long, remember the embeddings of the last ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Texts that are remembered: 48 MiB at 768 numbers each.
TEXTS = 16384


class TextCache:
    """Remembers what `encode` made of each text, the least recently asked is forgotten first.

    A text is encoded by itself: matrix products round differently in batches of different sizes, and then a
    run that was stopped and started again would not give the same bytes.

    Args:
        encode: Function that makes an embedding (D,) of a text.
        capacity: Number of texts to remember, at least one.

    Attributes:
        num_encoded: Number of times that `encode` was called.
    """

    def __init__(self, encode: Callable[[str], Tensor], capacity: int = TEXTS) -> None:
        self.encode = encode
        self.capacity = capacity
        self.num_encoded = 0
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    def get(self, texts: Sequence[str]) -> Tensor:
        """Texts, at least one -> (T, D)."""
        return torch.stack([self._one(text) for text in texts])

    def _one(self, text: str) -> Tensor:
        if text in self._known:
            self._known.move_to_end(text)
        else:
            self._known[text] = self.encode(text)
            self.num_encoded += 1
            if len(self._known) > self.capacity:
                self._known.popitem(last=False)
        return self._known[text]


def drop_first_words(
    phrase: str, prompt: str, num_tokens: Callable[[str], int], max_tokens: int
) -> tuple[str, bool]:
    """Make a phrase fit a text tower; its last words name the thing, so the first ones go.

    Args:
        phrase: The phrase as it came out of the caption.
        prompt: Template of the question, with `{}` for the phrase.
        num_tokens: Function that counts the tokens of a text, special ones included.
        max_tokens: Most tokens that the tower takes.

    Returns:
        The question, and whether words are missing in it. One last word that alone is too long is left to the
        tokenizer to cut, and counts as missing.
    """
    words = phrase.split() or [""]
    first = max(0, len(words) - max_tokens)  # a word has at least one token
    while True:
        text = prompt.replace("{}", " ".join(words[first:]))
        fits = num_tokens(text) <= max_tokens
        if fits or first == len(words) - 1:
            return text, not fits or first > 0
        first += 1
