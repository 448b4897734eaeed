"""Wrong settings, and libraries and pipelines that are absent or broken."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from open_cloc import config as extras
from open_cloc.labelling.phrases import open_phrase_rules
from open_cloc.labelling.phrases.noun_phrases import find_pipeline
from open_cloc.labelling.recipe import PhraseConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "nouns"}, "unknown phrases.kind 'nouns'; expected one of noun_phrases, ngrams"),
        ({"max_phrases": 0}, "phrases.max_phrases must be at least 1; got 0"),
        ({"max_words": -1}, "phrases.max_words must be at least 1; got -1"),
        ({"ngram_words": 0}, "phrases.ngram_words must be at least 1; got 0"),
    ],
)
def test_bad_configs(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        open_phrase_rules(replace(PhraseConfig(), **changes))


@pytest.mark.parametrize("model", ["no_such_pipeline", "no/such/folder", "", "json", "os.path"])
def test_an_absent_pipeline_says_how_to_get_one(model: str) -> None:
    with pytest.raises(ValueError, match=r"no spaCy pipeline .* `python -m spacy download en_core_web_sm`"):
        find_pipeline(model)


def test_a_pipeline_without_a_tagger(tmp_path: Path) -> None:
    spacy = pytest.importorskip("spacy", reason="spaCy comes with the extra [label]")
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(ValueError, match="has no tagger of Penn tags"):
        open_phrase_rules(PhraseConfig(spacy_model=str(tmp_path / "blank")))


def test_a_broken_pipeline(tmp_path: Path) -> None:
    pytest.importorskip("spacy", reason="spaCy comes with the extra [label]")
    (tmp_path / "config.cfg").write_text("[nlp]\nlang = ")
    with pytest.raises(ValueError, match="cannot be loaded"):
        open_phrase_rules(PhraseConfig(spacy_model=str(tmp_path)))


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ValueError, match=re.escape("pip install 'open-cloc[label]'")):
        extras.require("spacy", "label")
    with pytest.raises(ValueError, match="no_such_library"):
        extras.require("no_such_library.part", "label")


def test_a_library_that_breaks_says_so_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "breaks_inside.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        extras.require("breaks_inside", "label")
