"""What all phrase rules keep to, whatever their kind."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from open_cloc.labelling.phrases import PHRASE_RULES, open_phrase_rules
from open_cloc.labelling.recipe import PhraseConfig
from open_cloc.labelling.types import PhraseRules
from tests.labelling.made import spacy_model

CAPTIONS = [
    "A man rides a brown horse.",
    "",
    " \n\t ",
    "...!?",
    "Free stock photo of a red mug, a RED mug and Two Dogs",
    "İstanbul'da kırmızı bir kupa",
    "a " * 3000 + "mug",
    "🐶" * 300,
]


@pytest.fixture(scope="module", params=PHRASE_RULES)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of the dict."""
    pytest.importorskip("spacy", reason="spaCy comes with the extra [label]")
    return request.param


def opened(kind: str, **changes: Any) -> PhraseRules:
    return open_phrase_rules(replace(PhraseConfig(kind=kind, spacy_model=spacy_model()), **changes))


@pytest.fixture(scope="module")
def rules(kind: str) -> PhraseRules:
    return opened(kind)


def test_each_caption_has_its_phrases_whatever_the_others_are(rules: PhraseRules) -> None:
    together = rules(CAPTIONS)
    assert len(together) == len(CAPTIONS)
    for caption, expected in zip(CAPTIONS, together, strict=True):
        assert rules([caption]) == [expected]
    assert rules([]) == []
    assert together[0].kept
    assert [found.kept for found in together[1:4]] == [()] * 3


def test_phrases_are_lower_case_once_each_and_have_their_place(rules: PhraseRules) -> None:
    for caption, found in zip(CAPTIONS, rules(CAPTIONS), strict=True):
        texts = [phrase.text for phrase in found.kept]
        assert len(set(texts)) == len(texts)
        starts = [phrase.start for phrase in found.kept]
        assert starts == sorted(starts)
        for phrase in found.kept:
            assert phrase.text == phrase.text.lower()
            assert phrase.text.strip()
            inside = caption[phrase.start : phrase.end].lower()
            assert inside.startswith(phrase.text.split()[0])
            assert inside.endswith(phrase.text.split()[-1])


def test_what_is_over_a_limit_is_counted(kind: str) -> None:
    few = opened(kind, max_phrases=1)(CAPTIONS)
    for found, whole in zip(few, opened(kind)(CAPTIONS), strict=True):
        assert found.kept == whole.kept[:1]
    assert few[4].dropped["over the limit"] >= 1
    (short,) = opened(kind, max_words=3)([CAPTIONS[0]])
    assert short.dropped["word past the longest caption"] == 3


def test_it_says_what_it_is(kind: str, rules: PhraseRules) -> None:
    told = json.loads(json.dumps(rules.provenance))
    assert told == rules.provenance
    assert told["config"]["kind"] == kind
    assert {"rules", "rules_sha256", "spacy"} <= set(told)
