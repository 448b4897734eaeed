"""What detectors do with phrases: cut those that are too long, remember the embeddings of the last ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Texts that are remembered: 48 MiB at 768 numbers each.
TEXTS = 16384


# Texts of a pass on a GPU, which takes as long for one.
TEXTS_AT_ONCE = 32


def texts_at_once(device: torch.device) -> int:
    """Texts of each pass: one on a CPU, whose price is the tokens."""
    return 1 if device.type == "cpu" else TEXTS_AT_ONCE


class TextCache:
    """Remembers what `encode` made of each text, the least recently asked is forgotten first.

    Every pass has the same number of texts, filled up with copies of one: matrix products round differently
    in batches of different sizes, and a run that was stopped and started again would not give the same bytes.

    Args:
        encode: Function that makes embeddings (T, D) of texts; each whatever the others are.
        at_once: T.
        capacity: Number of texts to remember, at least one.

    Attributes:
        num_encoded: Number of texts that were encoded.
    """

    def __init__(
        self, encode: Callable[[Sequence[str]], Tensor], at_once: int = 1, capacity: int = TEXTS
    ) -> None:
        self.encode, self.at_once, self.capacity = encode, at_once, capacity
        self.num_encoded = 0
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    def get(self, texts: Sequence[str]) -> Tensor:
        """Texts, at least one -> (T, D)."""
        wanted = list(dict.fromkeys(texts))
        found = {text: self._known[text] for text in wanted if text in self._known}
        new = [text for text in wanted if text not in found]
        for start in range(0, len(new), self.at_once):
            part = new[start : start + self.at_once]
            filled = part + part[:1] * (self.at_once - len(part))
            found |= zip(part, self.encode(filled))
        self.num_encoded += len(new)
        for text in wanted:
            self._known[text] = found[text]
            self._known.move_to_end(text)
        while len(self._known) > self.capacity:
            self._known.popitem(last=False)
        return torch.stack([found[text] for text in texts])


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
