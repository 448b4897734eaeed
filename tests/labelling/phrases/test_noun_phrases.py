"""Noun phrases: worked examples, grammar and merging against slow references, spans, counts, limits."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_cloc.config import require
from open_cloc.labelling.phrases import noun_phrases as phrases
from open_cloc.labelling.phrases import open_phrase_rules
from open_cloc.labelling.phrases.noun_phrases import match_noun_phrases
from open_cloc.labelling.phrases.words import GENERIC_WORDS
from tests.labelling.phrases.made import ANY_CAPTION, PACKAGE, SOME_CAPTION, assert_spans, limited, texts

WORKED = [  # caption, phrases, dropped
    ("A man rides a brown horse.", ["a man", "a brown horse"], {}),
    ("Free stock photo of a red mug", ["a red mug"], {"generic word": 3}),
    ("A red stock mug", ["a red mug"], {"generic word": 1}),
    ("the front of two large dogs", ["large dogs"], {"only stop words": 1}),
    ("a red mug and a blue mug", ["a red mug", "a blue mug"], {}),
    ("a mug, then the mug and a red mug", ["a red mug"], {"duplicate": 1, "same head noun": 1}),
    ("a dog beside two dogs", ["a dog"], {"duplicate": 1}),
    ("a man with a box and two men with boxes", ["a man", "a box"], {"duplicate": 2}),
    ("a glass and a pair of glasses", ["a glass", "a pair", "glasses"], {}),
    ("a man in a white T-shirt", ["a man", "a white t-shirt"], {}),
    ("a blue-eyed dog near a well-kept lawn", ["a blue-eyed dog", "a well-kept lawn"], {}),
    ("he holds an id card", ["an id card"], {}),  # spaCy's tokens: i, d
    ("the cat's red ball", ["the cat", "red ball"], {}),
    ("a royalty-free photo of free-range chickens", ["free-range chickens"], {"generic word": 2}),
    ("a  red\nmug\x00and a\ta cat", ["a red mug", "a cat"], {}),
    ("😀 an old steam train", ["an old steam train"], {}),
    ("Dog | Cat • 🐶 | red mug", ["dog", "cat", "red mug"], {}),
    ("a close-up of a cat, High Quality", ["a cat"], {"generic word": 2}),
    ("&quot;Red mug&quot; on a table &amp; a chair", ["red mug", "a table", "a chair"], {}),
    ("<b>Red mug</b> on a <a href='x'>wooden table</a><br/>", ["red mug", "a wooden table"], {}),
    ("a red mug &#8211; an old chair", ["a red mug", "an old chair"], {}),
    ("a chair &nbsp; a mug <img src='x.jpg' alt", ["a chair", "a mug"], {}),
    ("red_mug_on_table_01.jpg", [], {"file name": 1}),
    ("a red mug (IMG_2041), DSC00012.JPG", ["a red mug"], {"file name": 2}),
    ("#redmug #kitchen a red mug by @potter", ["a red mug"], {"hash tag or user name": 3}),
    ("a red mug from www.mugs.example or https://a.b/c?d=1", ["a red mug"], {"address": 2}),
    ("write to me@mugs.example, see mugs.com.", [], {"address": 2}),
    ("an old_red_mug", ["an old red mug"], {}),
    ("", [], {}),
    (" \n\x07 ", [], {}),
    ("photo", [], {"generic word": 1}),
]


@pytest.mark.parametrize(("caption", "expected", "dropped"), WORKED)
def test_worked_examples(rules: Any, caption: str, expected: Any, dropped: dict[str, int]) -> None:
    (found,) = rules([caption])
    assert texts(found) == expected
    assert found.dropped == dropped


def test_the_examples_of_the_page(rules: Any) -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "phrases.md").read_text(encoding="utf-8")
    items = re.findall(r"^- `(.*?)`\sgives(.*?)\. Left out: (.*?)\.$", page, re.DOTALL | re.MULTILINE)
    assert len(items) == 3
    for caption, kept, dropped in items:
        (found,) = rules([caption])
        assert texts(found) == re.findall("`(.*?)`", kept)
        assert [f"{count} `{rule}`" for rule, count in found.dropped.items()] == dropped.split(", ")


def regex_chunks(tags: list[str]) -> list[tuple[int, int]]:
    """Slow reference: the grammar as a regular expression over `<DT><JJ>...`."""
    line = "".join(f"<{tag}>" for tag in tags)
    found = re.finditer(r"(?:<DT>)?(?:<JJ[^<>]*>)*(?:<NN[^<>]*>)+", line)
    return [(line[: m.start()].count("<"), line[: m.end()].count("<")) for m in found]


TAGS = ["DT", "JJ", "JJR", "JJS", "NN", "NNS", "NNP", "NNPS", "PDT", "WDT", "VBG", "IN", ",", "CD", "HYPH"]


@given(st.lists(st.sampled_from(TAGS), max_size=30))
@settings(max_examples=500, deadline=None)
def test_the_grammar_equals_a_regular_expression(tags: list[str]) -> None:
    assert list(match_noun_phrases(tags)) == regex_chunks(tags)


def test_the_grammar_by_hand() -> None:
    tags = "DT JJ NN IN DT DT NNS VBZ JJ JJ NN NNP JJ DT"
    assert list(match_noun_phrases(tags.split())) == [(0, 3), (5, 7), (8, 12)]


@given(st.one_of(ANY_CAPTION, SOME_CAPTION))
@settings(max_examples=300, deadline=None)
def test_spans_hold_the_words_of_noun_phrases(rules: Any, caption: str) -> None:
    (found,) = rules([caption])
    assert_spans(caption, found)
    for phrase in found.kept:
        assert not GENERIC_WORDS & set(phrase.text.split())
        json.dumps(phrase.text).encode()
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", phrase.text)


def test_spans_where_lower_case_is_longer(rules: Any, ngrams: Any) -> None:
    caption = "İİİ: a Cat in İstanbul's old Mosque"
    for kind in (rules, ngrams):
        (found,) = kind([caption])
        assert_spans(caption, found)
        spans = {phrase.text: caption[phrase.start : phrase.end] for phrase in found.kept}
        assert spans["a cat"] == "a Cat"
        assert spans["old mosque"] == "old Mosque"


def test_a_span_covers_the_words_cut_from_inside(rules: Any) -> None:
    caption = "See A red, stock mug!".replace(",", "")
    (phrase,) = rules([caption])[0].kept
    assert (phrase.text, caption[phrase.start : phrase.end]) == ("a red mug", "A red stock mug")


def test_a_caption_alone_and_in_a_batch(rules: Any, ngrams: Any, pipeline: Path) -> None:
    captions = [caption for caption, _, _ in WORKED] * 3
    for kind in (rules, ngrams):
        batch = kind(captions)
        assert batch == [kind([caption])[0] for caption in captions]
        assert batch[::-1] == kind(captions[::-1])
    assert open_phrase_rules(rules.config)(captions) == rules(captions)


def test_tokens_are_those_of_the_whole_text(rules: Any) -> None:
    """Tokenized word by word, for the spans, as spaCy would tokenize the whole caption."""
    caption = "mr. smith's dog isn't in the (old) u.s. house, he'll say: 5pm, $5.00 and 3/4 cups - no more..."
    tokens = [token.text for token in rules._tokens(caption, Counter())]
    assert tokens == [token.text for token in rules._nlp.tokenizer(caption)]


def test_hyphens_join_words_only(rules: Any) -> None:
    tokens = rules._tokens("black-and-white e-mail - well- -known a--b", Counter())
    joined = ["".join(t.text for t in compound) for compound in phrases.join_hyphens(tokens)]
    assert joined == ["black-and-white", "e-mail", "-", "well-", "-known", "a", "--", "b"]


def test_a_caption_is_cut(rules: Any) -> None:
    caption = " ".join(["a red mug and"] * 1250)
    (found,) = rules([caption])
    assert texts(found) == ["a red mug"]
    assert found.dropped == {"word past the longest caption": 5000 - 512, "duplicate": 127}


def test_long_words_are_left_out(rules: Any, ngrams: Any) -> None:
    caption = f"a cat {'x' * 61} {'y' * 60} " + "z" * 1_000_000
    (found,) = rules([caption])
    assert found.dropped["word of over 60 characters"] == 2
    assert not any("x" in text or "z" in text for text in texts(found))
    (found,) = ngrams([caption])
    assert found.dropped["word of over 60 characters"] == 2
    assert "y" * 60 in texts(found)


def test_two_thousand_phrases(rules: Any) -> None:
    caption = ", ".join(f"the red n{i:04d}" for i in range(2000))
    roomy = limited(rules, max_words=10_000, max_phrases=5000)
    (everything,) = roomy([caption])
    assert len(everything.kept) > 1900  # the tagger takes a few of these words for something else
    (found,) = limited(rules, max_words=10_000)([caption])
    assert found.kept == everything.kept[:20]
    assert found.dropped["over the limit"] == len(everything.kept) - 20


def chunk(text: str) -> phrases._Chunk:
    return phrases._Chunk(phrases.Phrase(text, 0, 1), tuple(text.split()))


def slow_merge(texts: list[str]) -> list[str]:
    """Reference: pair by pair."""
    kept = []
    for i, text in enumerate(texts):
        *modifiers, head = text.split()
        drop = False
        for j, other in enumerate(texts):
            *more, other_head = other.split()
            if i != j and head == other_head and set(modifiers) <= set(more):
                drop |= set(modifiers) != set(more) or j < i
        if not drop:
            kept.append(text)
    return kept


@given(
    st.lists(
        st.lists(st.sampled_from(("red", "big", "mug")), min_size=1, max_size=4).map(" ".join), max_size=9
    )
)
@settings(max_examples=300, deadline=None)
def test_merging_equals_a_comparison_of_all_pairs(texts: list[str]) -> None:
    dropped: Counter[str] = Counter()
    merged = phrases.merge_duplicates([chunk(text) for text in texts], dropped)
    assert [found.phrase.text for found in merged] == slow_merge(texts)
    assert dropped["duplicate"] == len(texts) - len(set(texts))
    assert len(merged) + sum(dropped.values()) == len(texts)


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        ("dogs", "dog"),
        ("houses", "house"),
        ("buses", "bus"),
        ("boxes", "box"),
        ("benches", "bench"),
        ("babies", "baby"),
        ("cookies", "cookie"),
        ("leaves", "leaf"),
        ("knives", "knife"),
        ("potatoes", "potato"),
        ("shoes", "shoe"),
        ("firewomen", "firewoman"),
        ("people", "person"),
        ("children", "child"),
        ("t-shirts", "t-shirt"),
    ],
)
def test_plurals(plural: str, singular: str) -> None:
    assert phrases._singular(plural, {singular, "cat"}) == singular
    assert phrases._singular(plural, {"cat"}) == plural


@pytest.mark.parametrize(("plural", "other"), [("capes", "cap"), ("planes", "plan"), ("glasses", "glass")])
def test_other_words_are_no_singulars(plural: str, other: str) -> None:
    assert phrases._singular(plural, {other}) == plural


@pytest.mark.parametrize(
    "caption", ["一只红色的杯子，在桌子上。", "رجل يركب حصانا", "🐶🐕 😀", "हाथी पर आदमी", "красная кружка"]
)
def test_other_scripts(rules: Any, ngrams: Any, caption: str) -> None:
    for kind in (rules, ngrams):
        (found,) = kind([caption])
        assert_spans(caption, found)


def test_provenance(rules: Any, ngrams: Any, pipeline: Path) -> None:
    for kind in (rules, ngrams):
        json.dumps(kind.provenance)
        assert re.fullmatch("[0-9a-f]{64}", kind.provenance["rules_sha256"])
        assert kind.provenance["config"]["max_words"] == 512
    assert rules.provenance["pipeline"] == PACKAGE
    assert rules.provenance["pipeline_version"] == "3.8.0"
    assert rules.provenance["spacy"] == require("spacy", "label").__version__


def test_a_package_is_data_and_only_the_tagger_is_loaded(rules: Any, pipeline: Path) -> None:
    assert rules._nlp.pipe_names == ["tok2vec", "tagger"]
    assert PACKAGE not in sys.modules
    assert pipeline.parent.name == PACKAGE


def test_new_words_are_not_remembered(rules: Any) -> None:
    before = len(rules._nlp.vocab.strings)
    rules([f"a wug{i} and a blick{i}" for i in range(50)])
    assert len(rules._nlp.vocab.strings) == before
