"""What version 0.1 wrote is read by this one: models, checkpoints with moments, shards. See fixtures/v0_1."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from open_cloc.config import from_dict
from open_cloc.data.collate import LoaderConfig
from open_cloc.data.readers import open_reader
from open_cloc.inference.predictor import Predictor, load
from open_cloc.model import sharded
from open_cloc.model.create import ModelConfig, build_model
from open_cloc.model.interpolate import interpolate
from open_cloc.model.prompter import Prompter, PrompterConfig
from open_cloc.model.weights import read_config
from open_cloc.training.loop import train
from open_cloc.training.recipe import DataConfig, OptimConfig, Recipe, RunConfig
from open_cloc.training.recipes import scenes_cloc

V0_1 = Path(__file__).parent / "fixtures" / "v0_1"
EXPECTED = json.loads((V0_1 / "expected.json").read_text())
STARTS = json.loads((V0_1 / "starts.json").read_text())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after two steps."""
    folder = tmp_path_factory.mktemp("v0_1")
    with tarfile.open(V0_1 / "run.tar.xz") as packed:
        packed.extractall(folder, filter="data")
    return folder / "run" / "checkpoints" / "step_00000002"


def assert_answers(predictor: Predictor, expected: dict[str, Any], tolerance: float = 1e-5) -> None:
    """As `make.py` asked."""
    pixels = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    predictor.set_image(pixels)
    got = {
        "image_embedding": predictor.encode_image(),
        "text_embeddings": predictor.encode_text(expected["texts"]),
        "region_embeddings": predictor.encode_regions(expected["boxes"]),
    }
    for name, value in got.items():
        np.testing.assert_allclose(value, expected[name], atol=tolerance, err_msg=name)
    for name, candidates in (("head", 0), ("found", 50)):
        found = predictor.ground(expected["texts"], candidates=candidates)
        for (_, box, score), (old_box, old_score) in zip(found, expected[name], strict=True):
            np.testing.assert_allclose(box, old_box, atol=100 * tolerance, err_msg=name)
            assert score == pytest.approx(old_score, abs=tolerance)


def test_a_model_folder_gives_the_answers_that_it_gave() -> None:
    assert_answers(load(V0_1 / "model", "cpu"), EXPECTED["model"])


def test_a_model_folder_is_a_start_for_training() -> None:
    model = build_model(ModelConfig(f"folder:{V0_1 / 'model'}"))
    assert_answers(Predictor(model), EXPECTED["model"])


def test_a_model_folder_mixes_with_one_of_today(tmp_path: Path) -> None:
    load(V0_1 / "model", "cpu").model.save_pretrained(tmp_path / "today")
    interpolate(V0_1 / "model", tmp_path / "today", 0.5, tmp_path / "mixed")
    assert_answers(load(tmp_path / "mixed", "cpu"), EXPECTED["model"])


def test_a_checkpoint_stands_in_for_a_model_folder(checkpoint: Path) -> None:
    assert_answers(load(checkpoint, "cpu"), EXPECTED["checkpoint"])


def test_a_run_goes_on_as_if_never_interrupted(checkpoint: Path, tmp_path: Path) -> None:
    """The third step depends on the moments of the first two, and on the dropout of BERT's config then."""
    config = read_config(checkpoint)
    config["model_cfg"]["text_cfg"]["hf_dropout"] = 0.1
    recipe = Recipe(
        name="v0.1",
        model=ModelConfig(towers=config["model_cfg"], prompter=from_dict(PrompterConfig, config["prompter"])),
        data=DataConfig(
            train=("scenes:train,image_size=32,num_samples=1000",),
            loader=LoaderConfig(num_regions=3, workers=0),
        ),
        optim=OptimConfig(lr=1e-3, warmup=2),
        run=RunConfig(
            samples=12,
            global_batch_size=4,
            output=str(tmp_path / "run"),
            device="cpu",
            log_steps=1,
            report_to=(),
            progress=False,
        ),
    )
    folder = train(recipe, resume=str(checkpoint))
    (line,) = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    step = json.loads(line)
    for name, value in EXPECTED["third_step"].items():
        assert step[name] == pytest.approx(value, rel=1e-4), name
    assert_answers(load(folder, "cpu"), EXPECTED["after_third_step"], 1e-4)


def test_moments_have_the_names_of_today(checkpoint: Path) -> None:
    names = set(sharded.read_shapes(checkpoint))
    assert {
        f"optimizer.prompter.prompts.{kind}" for kind in ("box.corner.exp_avg", "text.project.bias.step")
    } < names
    assert not any("box_prompt" in name or "text_prompt" in name for name in names)
    assert set(sharded.read_tensors(checkpoint)) == names


def test_shards_hold_the_samples_that_they_held() -> None:
    dataset = open_reader(f"shards:{V0_1 / 'shards'}")
    samples = [dataset[i] for i in range(len(dataset))]
    for sample, expected in zip(samples, EXPECTED["shards"], strict=True):
        assert sample.key == expected["key"]
        assert list(sample.captions) == expected["captions"]
        assert [region.text for region in sample.regions] == [r["text"] for r in expected["regions"]]
        np.testing.assert_allclose(
            [region.box for region in sample.regions], [r["box"] for r in expected["regions"]], atol=1e-6
        )
        assert int(sample.pixels().astype(np.int64).sum()) == expected["pixel_sum"]


@pytest.mark.parametrize("name", STARTS)
def test_seeded_models_start_where_they_started(name: str) -> None:
    """The same random numbers in the same places, and none more: the runs in docs/results stay repeatable."""
    expected = STARTS[name]
    torch.manual_seed(0)
    if name == "scenes_cloc":
        state = build_model(scenes_cloc().model).prompter.state_dict()
    else:
        state = Prompter(16, 8, PrompterConfig(**expected["options"])).state_dict()
    sums = [tensor.double().sum().item() for tensor in state.values()]
    assert sums == pytest.approx(list(expected["sums"].values()), abs=1e-6)
    assert torch.rand(()).item() == expected["next"]
