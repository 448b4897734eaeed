"""Texts as the whole package treats them: cleaned, named by a hash, and kept many in two arrays."""

from __future__ import annotations

import html
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from threading import Lock
from typing import Generic, TypeVar

import numpy as np

from open_cloc.errors import UserError

T = TypeVar("T")

MAX_KNOWN_TEXTS = 16384  # 48 MiB of features of 768 numbers


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


class TextCache(Generic[T]):
    """Remembers what was made of texts; those that were not asked for the longest time are forgotten first.

    Threads may share one: only one of them encodes at a time.

    Args:
        encode: Makes something of each of some distinct texts, in their order.
        max_known: Most texts to remember. A longer list is encoded too, but not remembered whole.

    Attributes:
        num_encoded: How many texts were given to `encode`.
    """

    def __init__(self, encode: Callable[[list[str]], Iterable[T]], max_known: int = MAX_KNOWN_TEXTS) -> None:
        self.encode = encode
        self.max_known = max_known
        self.num_encoded = 0
        self._known: OrderedDict[str, T] = OrderedDict()
        self._lock = Lock()

    def __call__(self, texts: Sequence[str]) -> list[T]:
        """What was made of each text, now or earlier."""
        with self._lock:
            found = {text: self._known[text] for text in texts if text in self._known}
            new = [text for text in dict.fromkeys(texts) if text not in found]
            if new:
                found.update(zip(new, self.encode(new), strict=True))
                self.num_encoded += len(new)
            for text, made in found.items():
                self._known[text] = made
                self._known.move_to_end(text)
            while len(self._known) > self.max_known:
                self._known.popitem(last=False)
        return [found[text] for text in texts]


# What has no place in a text. The rest of a text is looked at only where one of these is found.
_ODD = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff&<]")
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?")  # a terminal's
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]")
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_TAGS = (
    "a abbr b big blockquote br center cite code dd del div dl dt em figcaption figure font h1 h2 h3 h4 h5 h6"
)
_TAGS += " hr i iframe img ins label li link mark ol p pre q s script small span strike strong style sub sup"
_TAGS += " table tbody td th thead tr tt u ul video wbr"
_TAG = re.compile(rf"</?(?:{'|'.join(_TAGS.split())})(?:\s[^<>]*)?/?>|<!--.*?-->", re.IGNORECASE | re.DOTALL)

# What is left of them where a text was cut, or somebody wrote no semicolon.
_LOOSE_ENTITY = re.compile(r"&(?:quot|amp|nbsp|lt|gt|apos|#[0-9]{1,7})(?![0-9A-Za-z]);?")
_OPEN_TAG = re.compile(rf"</?(?:{'|'.join(_TAGS.split())})\b\s[^<>]*\Z", re.IGNORECASE)


def sound_text(text: str) -> str:
    """A text as it can be written, drawn and tokenized anywhere; most come back as they are.

    Half an emoji is left out, entities and tags of HTML become what they stand for, control characters and
    the marks that turn the direction of writing become spaces. Line breaks and tabs stay.
    """
    if not is_odd(text):
        return text
    if "&" in text:  # twice: pages that were quoted twice are common, and CLIP's tokenizer does it too
        text = _ENTITY.sub(_entity, _ENTITY.sub(_entity, text))
    text = _TAG.sub(" ", _ESCAPE.sub("", text))
    # Two halves that belong together are joined, one alone is left out.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")
    return _CONTROL.sub(" ", text)


def is_odd(text: str) -> bool:
    """Whether a text holds anything that `sound_text` may change."""
    return _ODD.search(text) is not None


def blank_markup(text: str) -> str:
    """The same text, as long as before, with spaces where tags and entities of HTML stand."""
    if "<" not in text and "&" not in text:
        return text
    for markup in (_ENTITY, _LOOSE_ENTITY, _TAG, _OPEN_TAG):
        text = markup.sub(lambda match: " " * len(match.group()), text)
    return text


def _entity(match: re.Match[str]) -> str:
    return html.unescape(match.group())


def clean_text(text: str, lower_case: bool) -> str:
    """One line, single spaces, lower case where asked for."""
    text = " ".join(text.split())
    return text.lower() if lower_case else text


@dataclass(frozen=True)
class TextCleaning:
    """How a model wants its texts: part of its config and saved with it, as the canvas is for its pictures.

    Whoever reads texts for a model asks the model: training, evaluation, prediction and labelling then see
    the same ones.

    Attributes:
        lower_case: Lower-case texts, as the paper does.
    """

    lower_case: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.lower_case, bool):
            raise UserError(f"texts.lower_case must be true or false; got {self.lower_case!r}")

    def __call__(self, text: str) -> str:
        """The text as the model reads it: sound, on one line, with single spaces."""
        return clean_text(sound_text(text), self.lower_case)


def text_id(text: str) -> int:
    """A 64-bit hash of a text, the same in every process.

    Of 10^5 different texts, two share one with a chance of 1 in 3e9.
    """
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)
