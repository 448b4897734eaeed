"""Captions as words, and the word lists of the phrase rules."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from open_cloc.texts import blank_markup

# Words that say where a picture is from or what medium it is, not what it shows. The first line is the
# paper's.
_GENERIC = """
photo image picture background illustration stock free wallpaper video download page online amazon
photos images pictures backgrounds illustrations wallpapers videos downloads downloadable pages
photograph photographs photography pic pics vector vectors clipart graphic graphics thumbnail screenshot
screenshots icon icons view views closeup royalty copyright premium hd hq 4k quality resolution
jpg jpeg png gif svg pdf psd eps webp website websites web site www http https com url blog
shutterstock istock getty alamy adobe dreamstime depositphotos freepik pinterest etsy ebay instagram
facebook youtube flickr
"""

GENERIC_WORDS = frozenset(_GENERIC.split())

# Longer words are addresses, codes, or whole sentences of scripts without spaces.
MAX_WORD_CHARACTERS = 60

# What separates words: white space, control characters, lone surrogates, zero-width space, byte-order mark.
_WORD = re.compile(r"[^\s\x00-\x1f\x7f-\x9f\ud800-\udfff\u200b\ufeff]+")
# `red_mug` is two of them.
_PART = re.compile(r"[^_]+")

# What people and programs write beside what is to be seen; each is left out, and counted.
NO_WORDS = {
    "address": r"https?://|www\.|mailto:|[\w.+-]+@[\w-]+\.\w|[\w.-]+\.(?:com|org|net|io|info|co\.uk|de|html?|php)"
    r"(?:[/?#:]|\W*$)",
    "file name": r".*\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|avif|hei[cf]|psd|eps|pdf|cr2|nef|dng|mp4|mov|webm)"
    r"[\W_]*$|(?:img|dsc[nf]?|pxl|vid|mvimg|gopr|imag|screenshot)[_-]?\d[\w.-]*[\W_]*$",
    "hash tag or user name": r"[#@]\w*[^\W\d_]",
}
# Something of this is in each of them; most captions have nothing of it.
_SUSPICIOUS = re.compile(r"[@#:_\d]|\.\w")
_NO_WORDS = {rule: re.compile(rf"[^\w#@]*(?:{pattern})", re.IGNORECASE) for rule, pattern in NO_WORDS.items()}


class Word(NamedTuple):
    """A word of a caption, in lower case.

    Attributes:
        text: The word in lower case, which may be longer than in the caption: `İ` becomes two characters.
        origin: Place in the caption that each character of `text` comes from.
    """

    text: str
    origin: Sequence[int]

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Where `text[start:end]` (not empty) is in the caption."""
        return self.origin[start], self.origin[end - 1] + 1


def split_words(caption: str, max_words: int, dropped: Counter[str]) -> list[Word]:
    """The caption's first `max_words` words, without what is none: see `NO_WORDS`.

    Markup of HTML separates words, as white space does.

    Args:
        caption: Any text.
        max_words: Most words, long ones included.
        dropped: Counter of the words that are left out, by rule.
    """
    caption = blank_markup(caption)
    is_suspicious = _SUSPICIOUS.search(caption) is not None
    words: list[Word] = []
    for number, match in enumerate(_WORD.finditer(caption)):
        word, start = match.group(), match.start()
        rule = None
        if number >= max_words:
            rule = "word past the longest caption"
        elif len(word) > MAX_WORD_CHARACTERS:
            rule = "word of over 60 characters"
        elif is_suspicious:
            rule = next((name for name, pattern in _NO_WORDS.items() if pattern.match(word)), None)
        if rule is not None:
            dropped[rule] += 1
        elif "_" in word:
            words += [_lower(part.group(), start + part.start()) for part in _PART.finditer(word)]
        else:
            words.append(_lower(word, start))
    return words


def _lower(text: str, start: int) -> Word:
    lowered = text.lower()
    if len(lowered) == len(text):
        return Word(lowered, range(start, start + len(text)))
    return Word(lowered, [start + i for i, character in enumerate(text) for _ in character.lower()])


def fingerprint(rules: Mapping[str, object]) -> str:
    """sha256 of rules and word lists: it changes where any of them does. Sets count as sorted lists."""
    text = json.dumps(rules, sort_keys=True, default=sorted)
    return hashlib.sha256(text.encode()).hexdigest()
