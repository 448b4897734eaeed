"""The kinds that a recipe names, and the tagger, must be there before anything is read or written."""

from __future__ import annotations

from open_cloc.config import check_name
from open_cloc.labelling.captioners import CAPTIONERS
from open_cloc.labelling.detectors import DETECTORS
from open_cloc.labelling.phrases import PHRASE_RULES
from open_cloc.labelling.phrases.noun_phrases import find_pipeline
from open_cloc.labelling.recipe import AUTO, LabelRecipe


def check_kinds(recipe: LabelRecipe) -> None:
    """Refuse a recipe of which a stage is of an unknown kind.

    Raises:
        UserError: Names the option, the kinds there are, and the nearest one; or that there is no tagger.
    """
    check_name(CAPTIONERS, recipe.caption.kind, "caption.kind")
    check_name(PHRASE_RULES, recipe.phrases.kind, "phrases.kind")
    if recipe.phrases.kind == "noun_phrases":
        find_pipeline(recipe.phrases.spacy_model)
    if recipe.detect.kind != AUTO:
        check_name(DETECTORS, recipe.detect.kind, "detect.kind")
