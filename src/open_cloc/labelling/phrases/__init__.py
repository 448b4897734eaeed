"""Phrase rules: each finds the phrases of captions."""

from __future__ import annotations

from open_cloc.config import lookup
from open_cloc.labelling.checks import check_phrases
from open_cloc.labelling.recipe import PhraseConfig
from open_cloc.labelling.types import PhraseRules

__all__ = ["PHRASE_RULES", "open_phrase_rules"]

# kind -> `module:class` of rules made from a config.
PHRASE_RULES = {
    "noun_phrases": "open_cloc.labelling.phrases.noun_phrases:NounPhrases",
    "ngrams": "open_cloc.labelling.phrases.ngrams:NGrams",
}


def open_phrase_rules(config: PhraseConfig) -> PhraseRules:
    """Open phrase rules.

    Args:
        config: Which ones; its `kind` is a key of `PHRASE_RULES`, or `package.module:Name` of a callable of
            the config.

    Raises:
        UserError: If the kind is unknown, a limit is below 1, or what the rules need is not installed.
    """
    check_phrases(config)
    return lookup(PHRASE_RULES, config.kind, "phrases.kind")(config)
