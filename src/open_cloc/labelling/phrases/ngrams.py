"""Phrases as OWLv2 makes them: all n-grams of a caption, the recipe that noun phrases are compared with."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import NamedTuple

from open_cloc.config import require
from open_cloc.labelling.phrases.words import (
    GENERIC_WORDS,
    MAX_WORD_CHARACTERS,
    NO_WORDS,
    Word,
    fingerprint,
    split_words,
)
from open_cloc.labelling.recipe import PhraseConfig
from open_cloc.labelling.types import Phrase, Phrases

VERSION = "ngrams/2"


class _Plain(NamedTuple):
    """A word without the punctuation around it, and where that is in the caption."""

    text: str
    start: int
    end: int


class NGrams:
    """Every run of 1 to `ngram_words` words, in the order of their first word, the shorter first.

    Runs of stop words only and those that begin or end with a generic word are left out, repeated ones and
    those over the limit too; each is counted. Punctuation around words is cut off and separates nothing.

    Attributes:
        provenance: What makes the phrases, as in `types.PhraseRules`.
    """

    def __init__(self, config: PhraseConfig) -> None:
        """Collect the words that count as stop words.

        Raises:
            UserError: If spaCy, whose list it is, is not installed.
        """
        self.config = config
        self._stop_words = frozenset(require("spacy.lang.en.stop_words", "label").STOP_WORDS)
        rules = {
            "version": VERSION,
            "generic": GENERIC_WORDS,
            "stop": self._stop_words,
            "longest_word": MAX_WORD_CHARACTERS,
            "no_words": NO_WORDS,
        }
        self.provenance: Mapping[str, object] = {
            "rules": VERSION,
            "rules_sha256": fingerprint(rules),
            "spacy": require("spacy", "label").__version__,
            "config": asdict(config),
        }

    def __call__(self, captions: Sequence[str]) -> list[Phrases]:
        """Captions -> the phrases of each; every caption by itself."""
        return [self._phrases(caption) for caption in captions]

    def _phrases(self, caption: str) -> Phrases:
        dropped: Counter[str] = Counter()
        words = plain_words(split_words(caption, self.config.max_words, dropped), dropped)
        kept: dict[str, Phrase] = {}
        for run in _runs(words, self.config.ngram_words):
            text = " ".join(word.text for word in run)
            rule = self._rule_against(run)
            if rule is None and text in kept:
                rule = "duplicate"
            elif rule is None and len(kept) == self.config.max_phrases:
                rule = "over the limit"
            if rule is None:
                kept[text] = Phrase(text, run[0].start, run[-1].end)
            else:
                dropped[rule] += 1
        return Phrases(tuple(kept.values()), dict(dropped))

    def _rule_against(self, run: Sequence[_Plain]) -> str | None:
        if all(word.text in self._stop_words for word in run):
            return "only stop words"
        if run[0].text in GENERIC_WORDS or run[-1].text in GENERIC_WORDS:
            return "generic word at an edge"
        return None


def plain_words(words: Sequence[Word], dropped: Counter[str]) -> list[_Plain]:
    """Words without punctuation and symbols at their edges; those of nothing else are left out, counted."""
    plain = []
    for word in words:
        inner = [i for i, character in enumerate(word.text) if unicodedata.category(character)[0] in "LNM"]
        if inner:
            first, end = inner[0], inner[-1] + 1
            plain.append(_Plain(word.text[first:end], *word.span(first, end)))
        else:
            dropped["word of symbols only"] += 1
    return plain


def _runs(words: Sequence[_Plain], longest: int) -> Iterator[Sequence[_Plain]]:
    for start in range(len(words)):
        for end in range(start + 1, min(start + longest, len(words)) + 1):
            yield words[start:end]
