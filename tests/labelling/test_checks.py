"""Recipes that cannot be meant are refused by their option's name, before anything is made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from open_cloc.cli.label import main
from open_cloc.errors import UserError
from open_cloc.labelling.checks import check_recipe
from open_cloc.labelling.pipeline import label
from open_cloc.labelling.recipe import FilterConfig, LabelRecipe, PhraseConfig
from open_cloc.labelling.recipes import RECIPES
from tests.labelling.made import captions_only, recipe


@pytest.mark.parametrize("name", RECIPES)
def test_our_recipes_can_be_meant(name: str) -> None:
    check_recipe(RECIPES[name]())


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("filter", {"min_score": 2}, r"filter.min_score must lie in \[0, 1\]; got 2"),
        ("filter", {"nms_iou": float("nan")}, r"filter.nms_iou must lie in \[0, 1\]; got nan"),
        ("filter", {"max_regions": -1}, "filter.max_regions must be at least 0; got -1"),
        ("filter", {"min_cycle": 0.1}, "needs a cycle score"),
        ("run", {"batch_size": 0}, "run.batch_size must be at least 1"),
        ("run", {"detectors": -1}, "run.detectors must be at least 0"),
        ("run", {"max_bad_fraction": 2}, r"run.max_bad_fraction must lie in \[0, 1\]"),
        ("caption", {"requests": 0}, "caption.requests must be at least 1"),
        ("phrases", {"max_phrases": 0}, "phrases.max_phrases must be at least 1"),
        ("detect", {"prompt": "dog"}, "detect.prompt must hold"),
    ],
)
def test_values_out_of_range(part: str, changes: dict[str, Any], message: str) -> None:
    plain = LabelRecipe("test")
    with pytest.raises(UserError, match=message):
        check_recipe(replace(plain, **{part: replace(getattr(plain, part), **changes)}))


@pytest.mark.parametrize("kind", ["auto", "owlv2"])
def test_the_detectors_own_cycle_score_needs_a_cloc_model(kind: str) -> None:
    plain = LabelRecipe("test", cycle_weights="detector")
    with pytest.raises(UserError, match=f"needs a CLOC model as detector; got detect.kind '{kind}'"):
        check_recipe(replace(plain, detect=replace(plain.detect, kind=kind)))
    check_recipe(replace(plain, detect=replace(plain.detect, kind="cloc")))


def test_nothing_is_made_for_a_wrong_request(tmp_path: Path) -> None:
    source, _ = captions_only(tmp_path / "in", 2)
    wrong = replace(recipe(tmp_path), filter=FilterConfig(min_score=2))
    with pytest.raises(UserError, match="min_score"):
        label(wrong, source, tmp_path / "out")
    with pytest.raises(UserError, match=r"unknown labelling recipe 'vsl'.*did you mean vesl"):
        main(["vsl", source, str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_an_absent_tagger_is_told_before_anything_is_made(tmp_path: Path) -> None:
    absent = replace(recipe(tmp_path), phrases=PhraseConfig(spacy_model="no_such_pipeline"))
    with pytest.raises(UserError, match="no spaCy pipeline 'no_such_pipeline'"):
        label(absent, str(tmp_path / "in"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
