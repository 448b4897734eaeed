"""Labelling recipes by name; a recipe is a function that returns a `LabelRecipe`."""

from __future__ import annotations

from collections.abc import Callable

from open_cloc.labelling.recipe import CaptionConfig, DetectorConfig, LabelRecipe, PhraseConfig


def vesl() -> LabelRecipe:
    """Noun phrases of the given captions, found by OWLv2 (large); the paper's where captions are good."""
    return LabelRecipe("vesl")


def vesl_recaption() -> LabelRecipe:
    """The paper's recipe: captions written anew by a server (vLLM, SGLang, ...), then as `vesl`."""
    return LabelRecipe("vesl-recaption", caption=CaptionConfig(kind="server"))


def ngrams() -> LabelRecipe:
    """The recipe that the paper compares with: all n-grams of the given captions, found by OWLv2 (large)."""
    return LabelRecipe("ngrams", phrases=PhraseConfig(kind="ngrams", max_phrases=300))


def cloc() -> LabelRecipe:
    """Noun phrases of the given captions, found by a CLOC model: --detect.weights FOLDER."""
    return LabelRecipe("cloc", detect=DetectorConfig(kind="cloc", weights=""), cycle_weights="detector")


RECIPES: dict[str, Callable[[], LabelRecipe]] = {
    "vesl": vesl,
    "vesl-recaption": vesl_recaption,
    "ngrams": ngrams,
    "cloc": cloc,
}
