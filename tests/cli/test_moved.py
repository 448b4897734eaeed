"""What is called otherwise now is said, and nothing is guessed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from open_cloc.cli.main import main
from open_cloc.cli.moved import MOVED, check_options
from open_cloc.errors import UserError

RECIPES = """
from open_cloc.config import from_dict
from open_cloc.data.collate import LoaderConfig
from open_cloc.training.recipe import Recipe


def by_class():
    return LoaderConfig(lower_case=False)


def by_table():
    return from_dict(Recipe, {"name": "x", "model": {}, "data": {"loader": {"lower_case": False}}})


def of_its_own():
    return LoaderConfig(colour=1)
"""


@pytest.mark.parametrize("option", MOVED)
def test_an_old_option_is_answered_with_the_new_one(option: str) -> None:
    with pytest.raises(UserError, match=f"^{option} is now"):
        check_options([option, "x"])
    check_options(["--model.lower-case", "--model.no-lower-case", "--data.loader.num-regions", "2"])


@pytest.mark.parametrize("flag", ["--data.loader.no-lower-case", "--data.loader.lower_case"])
def test_lower_case_of_the_loader_has_moved_to_the_model(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "scenes-cloc", flag]) == 2
    assert "--model.no-lower-case, and saved with the model" in capsys.readouterr().err


def test_lower_case_of_an_evaluation_is_the_models(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["region_retrieval", "--weights", "nowhere", "--data", "scenes:val"]
    assert main(["eval", *argv, "--no-lower-case"]) == 2
    assert "part of the model, which is asked as it was trained" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["by_class", "by_table"])
def test_an_older_recipe_is_told_where_its_field_is(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old_recipes.py").write_text(RECIPES)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["train", f"old_recipes:{form}", "--run.samples", "4"]) == 2
    said = capsys.readouterr().err
    assert "lower_case is now ModelConfig.lower_case" in said
    assert said.count("\n") == 1
    with pytest.raises(TypeError, match="colour"):
        main(["train", "old_recipes:of_its_own"])
    sys.modules.pop("old_recipes")
