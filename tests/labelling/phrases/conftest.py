"""Phrase rules of each kind, opened once."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from open_cloc.labelling.phrases import open_phrase_rules
from open_cloc.labelling.phrases.noun_phrases import find_pipeline
from open_cloc.labelling.recipe import PhraseConfig
from open_cloc.labelling.types import PhraseRules
from tests.labelling.phrases.made import PACKAGE


@pytest.fixture(scope="session")
def pipeline() -> Path:
    """Folder of an English spaCy pipeline; its package is never imported."""
    pytest.importorskip("spacy", reason="spaCy comes with the extra [label]")
    if importlib.util.find_spec(PACKAGE) is None:
        pytest.skip(f"{PACKAGE} is not installed")
    return find_pipeline(PACKAGE)


@pytest.fixture(scope="session")
def rules(pipeline: Path) -> PhraseRules:
    return open_phrase_rules(PhraseConfig(spacy_model=str(pipeline)))


@pytest.fixture(scope="session")
def ngrams() -> PhraseRules:
    pytest.importorskip("spacy", reason="spaCy comes with the extra [label]")
    return open_phrase_rules(PhraseConfig(kind="ngrams", ngram_words=3, max_phrases=1000))
