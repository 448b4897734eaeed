"""Captions as words."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings

from open_cloc.labelling.phrases.words import split_words
from tests.labelling.phrases.made import ANY_CAPTION


@given(caption=ANY_CAPTION)
@settings(max_examples=200, deadline=None)
def test_every_character_of_a_word_comes_from_its_own(caption: str) -> None:
    for word in split_words(caption, 1000, Counter()):
        assert len(word.text) == len(word.origin)
        start, end = word.span(0, len(word.text))
        assert caption[start:end].lower() == word.text


@pytest.mark.parametrize("word", ["IMG_12", "a.jpg", "www.a.b", "a@b.c", "#tag", "@me", "mailto:x", "x.com"])
def test_each_of_what_is_no_word_looks_suspicious(word: str) -> None:
    dropped: Counter[str] = Counter()
    assert split_words(word, 10, dropped) == []
    assert dropped.total() == 1
