"""Boxes of several pictures at once, against each picture alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from open_cloc.errors import NotFiniteError
from open_cloc.inference.predictor import Predictor
from open_cloc.inference.together import embed_together
from tests.tiny import PROMPTERS, picture, tiny_model


def some_boxes(count: int, seed: int) -> np.ndarray:
    low = np.random.default_rng(seed).uniform(0, 0.5, (count, 2))
    return np.concatenate([low, low + 0.4], 1)


@pytest.mark.parametrize("prompter", PROMPTERS)
def test_any_numbers_of_boxes_of_pictures_of_any_sizes(prompter: str) -> None:
    predictor = Predictor(tiny_model(prompter))
    images = predictor.encode([picture(50, 90), picture(90, 50, seed=1), picture(7, 300, seed=2)])
    asked = [images[0], images[1], images[2], images[0], images[1]]
    boxes = [some_boxes(count, seed) for seed, count in enumerate((3, 0, 4, 1, 17))]
    found = embed_together(asked, boxes)
    for image, own, regions in zip(asked, boxes, found, strict=True):
        alone = image.embed(own, normalized=True)
        assert regions.features.shape == alone.shape
        np.testing.assert_allclose(regions.features.numpy(), alone, atol=1e-5)
        np.testing.assert_array_equal(regions.boxes, own)
    assert embed_together([], []) == []


def test_pictures_with_about_as_many_boxes_share_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(tiny_model())
    images = predictor.encode([picture(seed=seed) for seed in range(4)])
    real, shapes = predictor.model.encode_regions, []
    monkeypatch.setattr(
        predictor.model,
        "encode_regions",
        lambda state, prompts: shapes.append(tuple(prompts["box"].shape)) or real(state, prompts),
    )
    embed_together(images, [some_boxes(count, 0) for count in (20, 17, 300, 31)])
    assert shapes == [(3, 31, 4), (1, 300, 4)]


def test_no_number_is_no_answer() -> None:
    predictor = Predictor(tiny_model())
    images = predictor.encode([picture(), picture(seed=1)])
    with torch.inference_mode():
        images[1].state.prompted.layer.values.fill_(float("nan"))
    with pytest.raises(NotFiniteError):
        embed_together(images, [some_boxes(2, 0)] * 2)
