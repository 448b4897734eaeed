"""Distillation from cut-outs: the loss, where places lie, and a run that learns from pictures alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from open_cloc.canvas import CanvasConfig, Geometry
from open_cloc.data.augment import AugmentConfig
from open_cloc.data.collate import LoaderConfig
from open_cloc.data.loader import RegionLoader
from open_cloc.data.readers import open_reader
from open_cloc.data.wants import make_views
from open_cloc.errors import UserError
from open_cloc.model.create import ModelConfig, build_model
from open_cloc.model.prompter import PrompterConfig
from open_cloc.objectives import Objectives, Term
from open_cloc.objectives.distill import Distill
from open_cloc.samples import Features, ViewConfig, Wants
from open_cloc.training.loop import build_objectives, train
from open_cloc.training.recipe import DataConfig, OptimConfig, Recipe, RunConfig


def test_the_loss_is_one_minus_the_mean_cosine() -> None:
    draw = torch.Generator().manual_seed(0)
    places, crops = torch.randn(2, 3, 5, 8, generator=draw)
    features = Features(
        views={"crops": Features(place_features=places)},
        teacher=Features(views={"crops": Features(image_features=crops)}),
    )
    expected = [
        1 - float(a @ b / a.norm() / b.norm()) for a, b in zip(places.flatten(0, 1), crops.flatten(0, 1))
    ]
    assert Distill()(features).item() == pytest.approx(sum(expected) / len(expected), abs=1e-6)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("mode", ["longest", "squash"])
def test_a_place_is_where_the_crop_lies(flipped: bool, mode: Any) -> None:
    """The crop's pixels are found again on the canvas, at the place."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 100, 3), dtype=np.uint8)
    canvas = CanvasConfig((100, 100), resize_mode=mode)
    geometry = Geometry.fit((60, 100), (100, 100), mode)
    geometry = geometry.flip() if flipped else geometry
    view = make_views(
        pixels, np.zeros((0, 4)), canvas, geometry, AugmentConfig(), {"crops": ViewConfig(6, 100)}, rng
    )["crops"]
    drawn = geometry.draw(pixels, canvas.fill)
    for place, picture, content in zip(view.places, view.images, view.content_boxes):
        x1, y1, x2, y2 = np.round(place * 100).astype(int)
        a, b, c, d = np.round(content * 100).astype(int)
        there = drawn[y1:y2, x1:x2][:, :: -1 if flipped else 1]
        cut = np.asarray(Image.fromarray(picture[b:d, a:c]).resize(there.shape[1::-1]))
        assert np.corrcoef(there.ravel(), cut.ravel())[0, 1] > 0.5


@pytest.fixture
def recipe(tiny_model_cfg: dict[str, Any], tmp_path: Path) -> Recipe:
    """A folder of pictures without a text, and a model of 64 pixels."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for number in range(12):
        blocks = rng.integers(0, 256, (5, 7, 3))
        pixels = np.kron(blocks, np.ones((16, 16, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number}.png")
    return Recipe(
        name="tiny",
        model=ModelConfig(
            towers=tiny_model_cfg,
            prompter=PrompterConfig(
                readout="prompt", box_prior=True, box_content="none", pooled_residual=True
            ),
        ),
        data=DataConfig(
            train=(f"folder:{tmp_path / 'pictures'}",), loader=LoaderConfig(num_regions=0, workers=0)
        ),
        objectives=(Term("distill", options={"image_size": 64, "crops": 4}),),
        optim=OptimConfig(lr=1e-3, warmup=2),
        run=RunConfig(
            samples=160,
            global_batch_size=8,
            output=str(tmp_path / "run"),
            log_steps=1,
            report_to=(),
            progress=False,
        ),
    )


def test_features_are_those_of_boxes_and_of_pictures(recipe: Recipe) -> None:
    model = build_model(recipe.model).eval()
    objectives = build_objectives(recipe, model)
    dataset = open_reader(recipe.data.train[0])
    loader = RegionLoader(
        dataset, model.preprocess, model.tokenize, recipe.data.loader, batch_size=3, num_samples=3,
        wants=Wants(objectives.roles, objectives.views),
    )  # fmt: skip
    batch = next(iter(loader))
    with torch.no_grad():
        features = model(batch, {"views.crops.place_features", "views.crops.image_features"})
        state = model.encode_image(batch.images, batch.content_boxes)
        places = model.encode_regions(state, {"box": batch.views["crops"].places})
        pictures = batch.views["crops"].images.flatten(0, 1)
        whole = model.encode_image(pictures).image_features.unflatten(0, (3, 4))
    torch.testing.assert_close(features.views["crops"].place_features, places)
    torch.testing.assert_close(features.views["crops"].image_features, whole, atol=1e-5, rtol=0)


def test_it_learns_from_pictures_alone(recipe: Recipe, tmp_path: Path) -> None:
    import json

    train(recipe)
    losses = [
        json.loads(line)["distill"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    ]
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])


def test_crops_of_the_whole_are_refused(recipe: Recipe) -> None:
    loader = replace(recipe.data.loader, augment=AugmentConfig(min_crop_scale=0.5))
    with pytest.raises(UserError, match="min_crop_scale must be 1 where an objective needs views"):
        train(replace(recipe, data=replace(recipe.data, loader=loader)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crops": 0}, "at least one crop"),
        ({"image_size": -4}, "image_size must be at least 0"),
        ({"min_scale": 0.9}, "min_scale <= max_scale"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Objectives((Term("distill", options=options),))


def test_crops_are_as_large_as_the_models_canvas_unless_told(recipe: Recipe) -> None:
    told = replace(recipe, objectives=(Term("distill", options={"crops": 2}),))
    model = build_model(told.model)
    assert Distill().views["crops"].canvas_hw(model.preprocess.image_size) == (64, 64)
    train(replace(told, run=replace(told.run, samples=8)))


def test_points_that_nothing_asks_for_are_refused(recipe: Recipe) -> None:
    loader = replace(recipe.data.loader, points=0.5)
    with pytest.raises(UserError, match="no objective of this run has regions"):
        train(replace(recipe, data=replace(recipe.data, loader=loader)))


def test_it_needs_a_teacher_that_stays() -> None:
    objectives = Objectives((Term("distill"),))
    assert objectives.teacher_momentum == 1.0
    assert objectives.views == {"crops": ViewConfig(8, 0, 0.01, 0.6)}
