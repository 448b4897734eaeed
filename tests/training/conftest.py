"""Fixtures of the tests of training."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_recipes import SCENES

from open_cloc.data.collate import LoaderConfig
from open_cloc.model.create import ModelConfig
from open_cloc.model.prompter import PrompterConfig
from open_cloc.model.towers.build import build_clip
from open_cloc.training.recipe import DataConfig, OptimConfig, Recipe, RunConfig


@pytest.fixture
def tiny(tiny_model_cfg: dict[str, Any], tmp_path: Path) -> Recipe:
    """Six steps of four generated scenes of 32 pixels, with dropout."""
    tiny_model_cfg["vision_cfg"] |= {"image_size": 32, "patch_size": 8}
    prompter = PrompterConfig(readout="prompt", box_prior=True, dropout=0.2)
    return Recipe(
        name="tiny",
        model=ModelConfig(towers=tiny_model_cfg, prompter=prompter),
        data=DataConfig(train=(SCENES,), loader=LoaderConfig(num_regions=3, workers=0)),
        optim=OptimConfig(lr=1e-3, warmup=2),
        run=RunConfig(
            samples=24,
            global_batch_size=4,
            output=str(tmp_path / "run"),
            device="cpu",
            save_steps=3,
            log_steps=1,
            report_to=(),
            progress=False,
        ),
    )


@pytest.fixture
def project(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recipe]:
    """A working directory with a recipe and a reader of its own."""
    (tmp_path / "tiny.json").write_text(json.dumps(asdict(tiny)))
    (tmp_path / "my_run.py").write_text(RECIPE_MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tiny
    sys.modules.pop("my_run", None)


@pytest.fixture
def pretrained(tiny_model_cfg: dict[str, Any], tmp_path: Path) -> Path:
    """A folder in open_clip's layout with random weights."""
    tiny_model_cfg["vision_cfg"] |= {"image_size": 32, "patch_size": 8}
    folder = tmp_path / "pretrained"
    folder.mkdir()
    config = {"model_cfg": tiny_model_cfg, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(build_clip(tiny_model_cfg).state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder


RECIPE_MODULE = '''
import time
from open_cloc.config import from_dict
from open_cloc.data.readers import open_reader
from open_cloc.training.recipe import Recipe
import json, pathlib


def tiny():
    """Test."""
    return from_dict(Recipe, json.loads(pathlib.Path("tiny.json").read_text()))


class SlowScenes:
    def __init__(self, path):
        self.scenes = open_reader("scenes:train,image_size=32,num_samples=1000")

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, index):
        time.sleep(0.005)
        return self.scenes[index]


def wrong():
    return "no recipe"
'''
