"""Phrase rules: each finds the phrases of captions; `open_phrase_rules` opens them by kind."""

from __future__ import annotations

from open_cloc.config import import_object
from open_cloc.errors import UserError
from open_cloc.labelling.recipe import PhraseConfig
from open_cloc.labelling.types import PhraseRules

# kind -> `module:class` of rules made from a config. Imported only when used.
PHRASE_RULES = {
    "noun_phrases": "open_cloc.labelling.phrases.noun_phrases:NounPhrases",
    "ngrams": "open_cloc.labelling.phrases.ngrams:NGrams",
}


def open_phrase_rules(config: PhraseConfig) -> PhraseRules:
    """Phrase rules by their kind, or `package.module:Name` of a callable of the config.

    Raises:
        UserError: If the kind is unknown, a limit is below 1, or what the rules need is not installed.
    """
    if config.kind not in PHRASE_RULES and ":" not in config.kind:
        raise UserError(f"unknown phrases.kind {config.kind!r}; expected one of {', '.join(PHRASE_RULES)}")
    for name in ("max_phrases", "max_words", "ngram_words"):
        if getattr(config, name) < 1:
            raise UserError(f"phrases.{name} must be at least 1; got {getattr(config, name)}")
    rules = import_object(PHRASE_RULES.get(config.kind, config.kind), "phrase rules")
    return rules(config)
