"""Recipes that cannot work are refused in one sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_recipes import SCENES, log_of, with_loader, with_run

from open_cloc.cli import main as cli
from open_cloc.data.readers import open_reader
from open_cloc.errors import UserError
from open_cloc.files import LOCK, locked
from open_cloc.model.create import ModelConfig
from open_cloc.model.prompter import PrompterConfig
from open_cloc.samples import RegionSample
from open_cloc.training.loop import train
from open_cloc.training.recipe import OptimConfig, Recipe, RunConfig
from tests.data.readers.made import annotation, coco_document, write_coco


class Broken:
    """Scenes of which one in five cannot be decoded."""

    def __init__(self, path: str) -> None:
        self.scenes = open_reader(SCENES)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> RegionSample:
        sample = self.scenes[index]
        return replace(sample, image=b"not a picture") if index % 5 == 0 else sample


def test_recipes_that_cannot_work_are_one_sentence(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for recipe, message in (
        (with_run(tiny, samples=3), "run.samples must be at least one batch of 4; got 3"),
        (
            with_run(tiny, accumulate=3),
            "run.accumulate must divide a rank's batch of 4 into equal parts; got 3",
        ),
        (with_run(tiny, output=""), "no run folder: give --run.output FOLDER"),
        (with_run(tiny, device="abacus"), "device 'abacus' cannot be used"),
        (with_run(tiny, report_to=("pigeon",)), "unknown report_to 'pigeon'; expected tensorboard or wandb"),
        (replace(tiny, data=replace(tiny.data, train=())), "no training data: give --data.train FORMAT:PATH"),
        (replace(tiny, data=replace(tiny.data, probe="scenes:nowhere")), "unknown split 'nowhere'"),
        (replace(tiny, model=ModelConfig(towers="ViT-Q")), "unknown architecture 'ViT-Q'"),
    ):
        with pytest.raises(ValueError, match=message):
            train(recipe)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE=2 without RANK: start several processes with torchrun"):
        train(tiny)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        (RunConfig, "precision", "fp8"),
        (RunConfig, "keep", 0),
        (RunConfig, "log_steps", 0),
        (RunConfig, "save_minutes", 0.0),
        (RunConfig, "accumulate", 0),
        (RunConfig, "parallel", "zero"),
        (OptimConfig, "lr", 0.0),
        (OptimConfig, "layer_decay", 1.5),
        (OptimConfig, "warmup", -1),
    ],
)
def test_values_out_of_range_are_one_sentence(section: Any, field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"\.{field} must be .*; got {value!r}$"):
        section(**{field: value})


def test_a_used_run_folder_is_refused_and_kept(tiny: Recipe) -> None:
    folder = Path(tiny.run.output)
    folder.mkdir()
    (folder / "thesis.txt").write_text("all of it")
    with pytest.raises(
        FileExistsError, match=r"run is not empty: go on with --resume latest, or give another"
    ):
        train(tiny)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_too_many_bad_samples_end_the_command(
    project: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["train", "my_run:tiny", "--data.train", f"{__name__}:Broken:x"]
    assert cli.main([*argv, "--data.loader.max-bad-fraction", "0.002"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("open-cloc train: ")
    assert error.rstrip("\n").count("\n") <= 1  # and the first bad sample, when it was met
    assert "samples are bad (undecodable picture: " in error
    assert "past max_bad_fraction=0.002; the first one: image of sample 'train-" in error
    assert not any(path.is_dir() and path.name == "model" for path in Path(project.run.output).glob("*"))
    assert cli.main([*argv, "--data.loader.max-bad-fraction", "0.5", "--run.output", "tolerant"]) == 0
    assert log_of("tolerant")[-1]["bad_samples"] > 0


def test_a_run_folder_is_one_runs_alone(tiny: Recipe) -> None:
    """A second run is refused, new or resumed, and touches nothing."""
    folder = Path(tiny.run.output)
    train(with_run(tiny, samples=12), stop_at=3)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with locked(folder):
        for resume in ("auto", "latest", str(folder / "checkpoints" / "step_00000003")):
            with pytest.raises(UserError, match=r"another process works in .*run: wait until it ends"):
                train(tiny, resume=resume)
    with pytest.raises(FileExistsError, match="is not empty"):
        train(tiny)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert train(tiny, resume="latest") == folder / "model"
    assert not list(folder.glob(".*"))


def test_a_folder_that_holds_only_the_lock_of_a_dead_run_is_new(tiny: Recipe) -> None:
    folder = Path(tiny.run.output)
    folder.mkdir()
    (folder / LOCK).touch()
    assert train(with_run(tiny, samples=4)) == folder / "model"


@pytest.mark.parametrize(("warmup", "is_told"), [(0, False), (1, False), (2, True), (100, True)])
def test_a_warmup_that_takes_most_of_the_run_is_told(
    tiny: Recipe, warmup: int, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Of six steps."""
    train(replace(tiny, optim=replace(tiny.optim, warmup=warmup)), stop_at=1)
    assert (f"optim.warmup of {warmup} steps is more than a quarter of the run's 6" in caplog.text) == is_told


def test_a_recipe_that_is_saved_holds_no_secrets(tiny: Recipe) -> None:
    url = "shards:https://me:hunter2@host/{0..9}.tar?sig=hunter2"
    recipe = with_run(replace(tiny, data=replace(tiny.data, train=(url,))), samples=4)
    train(recipe, dataset=open_reader(SCENES))
    saved = (Path(tiny.run.output) / "recipe.json").read_text()
    assert "hunter2" not in saved
    assert json.loads(saved)["data"]["train"] == ["shards:https://***@host/{0..9}.tar"]


def test_broken_entries_of_the_data_are_told_or_end_the_command(
    project: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rows = [annotation([0, 0, 50, 40]), annotation([0, 0, 9, 9], image_id=5)]
    data = write_coco(tmp_path / "data", coco_document(annotations=rows))
    argv = ["train", "my_run:tiny", "--data.train", f"coco:{data}"]
    assert cli.main([*argv, "--data.loader.max-bad-fraction", "0"]) == 2
    assert "1 entry is broken (unknown image_id: 1)" in capsys.readouterr().err
    assert not Path(project.run.output).exists()
    assert cli.main([*argv, "--run.output", "tolerant"]) == 0
    assert f"coco:{data}: 1 entry is broken (unknown image_id: 1)" in caplog.text


def test_masks_in_vain_are_said(tiny: Recipe, caplog: pytest.LogCaptureFixture) -> None:
    """Of data without outlines, and of a Prompter that would not see them."""
    asked = with_loader(tiny, masks=0.5)
    train(asked)
    assert "none of the first 3 batches has an outline; readers with masks= read them" in caplog.text
    blind = replace(asked, model=replace(asked.model, prompter=PrompterConfig()))
    with pytest.raises(UserError, match=r"data\.loader\.masks would train boxes: this Prompter sees"):
        train(with_run(blind, output=f"{tiny.run.output}-blind"))
    sets = with_loader(blind, masks=0, box_sets=0.5)
    with pytest.raises(UserError, match=r"data\.loader\.box_sets would train boxes: this Prompter sees"):
        train(with_run(sets, output=f"{tiny.run.output}-sets"))
