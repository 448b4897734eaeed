"""All n-grams of a caption."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_cloc.labelling.phrases import open_phrase_rules
from open_cloc.labelling.phrases.words import GENERIC_WORDS
from tests.labelling.phrases.made import ANY_CAPTION, SOME_CAPTION, assert_spans, limited, texts


@given(st.one_of(ANY_CAPTION, SOME_CAPTION))
@settings(max_examples=300, deadline=None)
def test_spans_hold_the_words_of_ngrams(ngrams: Any, caption: str) -> None:
    (found,) = ngrams([caption])
    assert_spans(caption, found)


def test_ngrams_by_hand(ngrams: Any) -> None:
    caption = "Stock photo: the (red) mug"
    (found,) = ngrams([caption])
    assert texts(found) == ["the red", "the red mug", "red", "red mug", "mug"]
    assert [caption[p.start : p.end] for p in found.kept][:2] == ["the (red", "the (red) mug"]
    assert found.dropped == {"generic word at an edge": 6, "only stop words": 1}


def test_ngrams_neither_begin_nor_end_with_a_generic_word(ngrams: Any) -> None:
    (found,) = ngrams(["red photo mug picture"])
    assert texts(found) == ["red", "red photo mug", "mug"]
    assert found.dropped == {"generic word at an edge": 6}


def test_ngrams_count_repeats_symbols_and_the_limit(ngrams: Any) -> None:
    (found,) = limited(ngrams, max_phrases=2, ngram_words=1)(["mug ... mug cat dog 🐶"])
    assert texts(found) == ["mug", "cat"]
    assert found.dropped == {"duplicate": 1, "over the limit": 1, "word of symbols only": 2}


def test_ngrams_hold_no_markup_file_names_or_tags(ngrams: Any) -> None:
    (found,) = ngrams(["<b>red</b> &quot;mug&quot; #mug cat.jpg a&amp;b <a href='"])
    assert {word for text in texts(found) for word in text.split()} == {"red", "mug", "a", "b"}
    assert found.dropped["hash tag or user name"] == found.dropped["file name"] == 1


def test_ngrams_are_all_there_are(ngrams: Any) -> None:
    words = [f"w{i}" for i in range(7)]
    (found,) = ngrams([" ".join(words)])
    assert texts(found) == [" ".join(words[i:j]) for i in range(7) for j in range(i + 1, min(i + 3, 7) + 1)]


def test_ngrams_keep_combining_marks(ngrams: Any) -> None:
    assert "हाथी" in texts(ngrams(["(हाथी) पर"])[0])


def test_the_fingerprint_follows_the_word_lists(ngrams: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("open_cloc.labelling.phrases.ngrams.GENERIC_WORDS", GENERIC_WORDS | {"meme"})
    changed = open_phrase_rules(ngrams.config)
    assert changed.provenance["rules_sha256"] != ngrams.provenance["rules_sha256"]
