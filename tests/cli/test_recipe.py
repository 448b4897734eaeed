"""Towers on the command line: a spec, or a table as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from open_cloc.cli.recipe import RecipeField, parse_options
from open_cloc.errors import UserError
from open_cloc.training.recipe import Recipe
from open_cloc.training.recipes import RECIPES


@dataclass(frozen=True)
class Options:
    recipe: RecipeField


def parse(recipe: str, *argv: str) -> Recipe:
    return parse_options(Options, "train", [recipe, *argv]).recipe


@pytest.mark.parametrize("recipe", ["scenes-cloc", "finetune"])
def test_towers_are_one_option(recipe: str, tiny_model_cfg: dict[str, Any]) -> None:
    assert parse(recipe) == RECIPES[recipe]()
    spec = "timm:test_resnet,text=a,b,weights_match=order"
    assert parse(recipe, "--model.towers", spec).model.towers == spec
    changed = parse(recipe, "--model.towers", json.dumps(tiny_model_cfg), "--model.image-size", "32").model
    assert changed.towers == tiny_model_cfg
    assert changed.image_size == 32
    assert changed.prompter == RECIPES[recipe]().model.prompter


def test_help_shows_the_towers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("finetune", "--help")
    text = "".join(capsys.readouterr().out.replace("│", "").split())  # lines may break anywhere
    assert "--model.towersKIND:WHAT" in text
    assert "default:open_clip:ViT-B-16,pretrained=openai" in text


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("{embed_dim: 3}", r"^the table \{embed_dim: 3\} is not valid JSON: Expecting property name"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"embed_dim": 1, "embed_dim": 2}', "key 'embed_dim' comes twice"),
    ],
)
def test_a_broken_table_is_an_error(table: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse("finetune", "--model.towers", table)
