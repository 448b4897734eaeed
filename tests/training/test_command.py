"""`open-cloc train` from its command line."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import asdict
from pathlib import Path

import pytest
from tiny_recipes import SCENES, with_run

from open_cloc.cli import main as cli
from open_cloc.training.recipe import Recipe
from open_cloc.training.recipes import RECIPES


def test_overrides_reach_the_recipe(project: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    argv = shlex.split(
        "train my_run:tiny --optim.lr 1e-4 --run.global-batch-size 8 --data.loader.num_regions 2"
    )
    second = "scenes:train,image_size=32,num_samples=9"
    assert cli.main([*argv, "--data.train", SCENES, second, "--run.samples", "8"]) == 0
    assert capsys.readouterr().out == f"{project.run.output}/model\n"
    saved = json.loads((Path(project.run.output) / "recipe.json").read_text())
    assert saved["optim"]["lr"] == 1e-4
    assert saved["run"]["global_batch_size"] == 8
    assert saved["data"]["loader"]["num_regions"] == 2
    assert saved["data"]["train"] == [SCENES, second]
    assert saved["model"]["prompter"]["dropout"] == 0.2  # what nobody overrode


def test_the_run_folder_is_named_after_the_recipe(project: Recipe, tmp_path: Path) -> None:
    (tmp_path / "tiny.json").write_text(json.dumps(asdict(with_run(project, output="", samples=4))))
    assert cli.main(["train", "my_run:tiny"]) == 0
    assert (tmp_path / "runs/tiny/model/config.json").is_file()
    assert cli.main(["train", "my_run:tiny"]) == 2  # there already


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["scenes-clock"],
            "unknown recipe 'scenes-clock'; expected one of scenes-cloc, .*did you mean scenes-cloc",
        ),
        (["nowhere:recipe"], "no recipe at 'nowhere:recipe'"),
        (["my_run:nothing"], "no recipe at 'my_run:nothing'"),
        (["my_run:wrong"], "recipe 'my_run:wrong' must return a Recipe; got str"),
        (["my_run:tiny", "--resume", "latest"], "nothing to resume: .* holds no checkpoint"),
        (["my_run:tiny", "--data.train", "coco:nowhere"], "nowhere"),
        (["my_run:tiny", "--data.train", "ark:x"], "unknown data 'ark:x'; expected FORMAT:PATH"),
        (["my_run:tiny", "--run.global-batch-size", "0"], "run.global_batch_size must be at least 1; got 0"),
        (["my_run:tiny", "--run.samples", "2"], "run.samples must be at least one batch of 4; got 2"),
    ],
)
def test_wrong_commands_are_one_sentence(
    project: Recipe, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert cli.main(["train", *argv]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("open-cloc train: ")
    assert re.search(message, error)
    assert not Path(project.run.output).exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--run.precision", "fp8"], "fp8"),
        (["--optim.lr", "fast"], "fast"),
        (["--optim.speed", "9"], "--optim.speed"),
    ],
)
def test_wrong_options_end_with_2(
    project: Recipe, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "my_run:tiny", *argv])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_usage_lists_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--help"]) == 0
    listed = capsys.readouterr().out
    assert cli.main(["train"]) == 2
    assert all(f"  {name} " in listed for name in RECIPES)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ("image_text,weight=x", "weight in 'image_text,weight=x' must be a number; got 'x'"),
        ("image_text,per=foo", "unknown per 'foo' of image_text; expected one of batch, images_with_regions"),
        ("image_txt", "did you mean image_text"),
    ],
)
def test_wrong_objectives_are_one_line(
    project: Recipe, term: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "my_run:tiny", "--objectives", term, "--run.samples", "8"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
