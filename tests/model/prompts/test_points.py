"""Points and sets of boxes as prompts: where they lie, and what they are of boxes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from open_cloc.canvas import CanvasConfig, Geometry
from open_cloc.data.collate import LoaderConfig
from open_cloc.data.loader import RegionLoader
from open_cloc.data.prompts import draw_points
from open_cloc.data.readers import open_reader
from open_cloc.errors import UserError
from open_cloc.inference.predictor import Predictor
from open_cloc.masks import Mask
from open_cloc.model.cloc import CLOC
from open_cloc.model.prompter import PrompterConfig
from open_cloc.model.prompts.points import hit_cells
from open_cloc.samples import Region

WHOLE = Geometry.fit((64, 64), (64, 64))
PRIOR = PrompterConfig(readout="prompt", box_prior=True, box_content="none", pooled_residual=True)


@pytest.fixture
def model(tiny_model_cfg: dict[str, Any]) -> CLOC:
    made = CLOC(tiny_model_cfg, PRIOR, CanvasConfig((64, 64))).eval()
    with torch.no_grad():
        for parameter in made.prompter.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def test_a_point_lies_in_one_cell_edges_included() -> None:
    points = torch.tensor([[[[0.0, 0.0]], [[1.0, 1.0]], [[0.5, 0.24]], [[0.49, 0.26]]]])
    cells = hit_cells(points, (4, 2))
    assert cells.sum(-1).tolist() == [[1, 1, 1, 1]]
    assert cells.argmax(-1).tolist() == [[0, 7, 1, 2]]
    both = hit_cells(torch.tensor([[[[0.1, 0.1], [0.9, 0.9]]]]), (4, 2))
    assert both.nonzero()[:, 2].tolist() == [0, 7]


@torch.inference_mode()
def test_points_pool_the_tokens_that_they_hit(model: CLOC) -> None:
    state = model.encode_image(torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8))
    with torch.no_grad():
        model.prompter.project.weight.zero_()
    points = torch.tensor([[[[0.1, 0.1], [0.6, 0.4]], [[0.9, 0.9], [0.9, 0.9]]]])
    found = model.encode_regions(state, {"points": points})[0]
    tokens = state.image_tokens[0].unflatten(0, (4, 4))
    expected = [(tokens[0, 0] + tokens[1, 2]) / 2, tokens[3, 3]]
    torch.testing.assert_close(
        found, model.prompter.project_pooled(torch.stack(expected)), atol=1e-4, rtol=1e-4
    )


@torch.inference_mode()
def test_one_box_alone_is_that_box_and_a_repeated_one_adds_nothing(model: CLOC) -> None:
    state = model.encode_image(torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8))
    boxes = torch.tensor([[[0.1, 0.2, 0.5, 0.6], [0.4, 0.0, 1.0, 0.9]]])
    alone = model.encode_regions(state, {"box": boxes})
    for sets in (boxes[:, :, None], boxes[:, :, None].expand(-1, -1, 3, -1)):
        torch.testing.assert_close(model.encode_regions(state, {"boxes": sets}), alone, atol=1e-6, rtol=0)
    two = torch.tensor([[[[0.0, 0.0, 0.2, 0.2], [0.8, 0.8, 1.0, 1.0]]]])
    around = model.encode_regions(state, {"box": torch.tensor([[[0.0, 0.0, 1.0, 1.0]]])})
    assert (model.encode_regions(state, {"boxes": two}) - around).norm() > 0.01 * around.norm()


def test_users_ask_by_points_and_by_sets_of_boxes(model: CLOC) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    image = Predictor(model).encode(pixels)
    found = image.embed(points=[[[20, 10]], [[70, 30]]])
    assert found.shape == (2, 32)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    same = image.embed(points=[[[0.25, 0.25]], [[0.875, 0.75]]], normalized=True)
    np.testing.assert_allclose(found, same, atol=1e-5)
    one = image.embed([[10, 5, 30, 20]])
    np.testing.assert_allclose(image.embed([[[10, 5, 30, 20]]]), one, atol=1e-5)
    sets = image.embed([[[10, 5, 20, 15], [50, 20, 30, 15]]], box_format="xywh")
    assert sets.shape == (1, 32)
    ragged = image.embed(points=[[[20, 10]], [[70, 30], [10, 12]]])
    even = image.embed(points=[[[20, 10], [20, 10]], [[70, 30], [10, 12]]])
    np.testing.assert_array_equal(ragged, even)
    assert image.embed([[[10, 5, 20, 15]], [[1, 1, 9, 9], [50, 20, 60, 30]]]).shape == (2, 32)
    assert image.embed(points=[]).shape == image.embed(boxes=[]).shape == (0, 32)
    (named,) = image.classify(["a", "dog"], points=[[[20, 10], [40, 30]]])
    assert named.box == pytest.approx((20, 10, 40, 30))
    (named,) = image.classify(["a", "dog"], [[[10, 5, 30, 20], [50, 20, 80, 35]]])
    assert named.box == pytest.approx((10, 5, 80, 35))
    assert image.embed(points=np.zeros((0, 1, 2))).shape == (0, 32)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"points": [[1, 2]]}, r"points must be \(R, P, 2\)"),
        ({"points": [[[1, 2, 3]]]}, r"points must be \(R, P, 2\)"),
        ({"points": [[[90, 2]]]}, r"lie in the picture; got \(90, 2\) in row 0"),
        ({"points": [[[1, 1]], [[float("nan"), 2]]]}, "in row 1"),
        ({"points": [[[1, 1]], []]}, r"got \(0,\) in row 1"),
        ({"boxes": np.zeros((1, 0, 4))}, "P boxes of each of R regions"),
        ({"points": [[[1, 1]]], "boxes": [[1, 1, 2, 2]]}, "boxes, masks or points, not several"),
        ({"boxes": [[[1, 1, 90, 2]]]}, "90"),
    ],
)
def test_points_that_are_none_are_refused(model: CLOC, given: dict[str, Any], message: str) -> None:
    image = Predictor(model).encode(np.zeros((40, 80, 3), np.uint8))
    with pytest.raises(UserError, match=message):
        image.embed(**given)


def test_drawn_points_lie_in_their_boxes() -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.5, (2000, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.1, 0.5, (2000, 2))], 1)
    regions = [Region(tuple(box), "a thing") for box in boxes.tolist()]
    chosen = rng.random(2000) < 0.3
    points = draw_points(regions, boxes, WHOLE, chosen, rng)
    asked = ~np.isnan(points[:, 0, 0])
    assert (asked == chosen).all()
    assert (np.isnan(points[..., 0]) == ~asked[:, None]).all()
    own = points[asked]
    assert (own >= boxes[asked, None, :2] - 1e-6).all()
    assert (own <= boxes[asked, None, 2:] + 1e-6).all()
    distinct = [len(np.unique(row, axis=0)) for row in own]
    assert set(distinct) == {1, 2, 3}
    assert draw_points([], boxes[:0], WHOLE, chosen[:0], rng).shape == (0, 3, 2)


def test_drawn_points_lie_under_the_outline() -> None:
    """A ring: the middle of its box is not on it."""
    y, x = np.mgrid[-1:1:100j, -1:1:200j]
    ring = (np.hypot(x, y) < 0.9) & (np.hypot(x, y) > 0.6)
    box = np.array([[0.05, 0.05, 0.95, 0.95]])
    region = Region((0.05, 0.05, 0.95, 0.95), "a ring", mask=Mask.of(ring))
    geometry = Geometry.fit((100, 200), (64, 64), "squash")
    points = draw_points(
        [region] * 200, box.repeat(200, 0), geometry, np.ones(200, bool), np.random.default_rng(0)
    )
    radius = np.hypot(*(2 * points.reshape(-1, 2) - 1).T)
    assert radius.min() > 0.5
    assert radius.max() < 1
    hidden = replace(region, mask=Mask.of(np.zeros((100, 200), bool)))
    (around,) = draw_points([hidden], box, geometry, np.ones(1, bool), np.random.default_rng(0))
    assert ((around > 0.25) & (around < 0.75)).all()


def test_training_asks_for_some_regions_by_points(model: CLOC) -> None:
    data = open_reader("scenes:train,image_size=64,num_samples=16")
    plain = LoaderConfig(num_regions=3, workers=0)

    def batch_of(config: LoaderConfig) -> Any:
        loader = RegionLoader(data, model.preprocess, model.tokenize, config, batch_size=8, num_samples=8)
        return next(iter(loader))

    assert batch_of(plain).points is None
    batch = batch_of(LoaderConfig(num_regions=3, workers=0, points=0.5))
    assert batch.points.shape == (8, 3, 3, 2)
    asked = ~batch.points[..., 0, 0].isnan()
    assert asked.any()
    assert not (asked & ~batch.region_mask).any()
    with torch.no_grad():
        features = model(batch, {"region_features"}).region_features
        state = model.encode_image(batch.images, batch.content_boxes)
        by_boxes = model.encode_regions(state, {"box": batch.boxes})
        by_points = model.encode_regions(state, {"points": batch.points.nan_to_num(0.5)})
    torch.testing.assert_close(features[asked], by_points[asked])
    torch.testing.assert_close(features[~asked], by_boxes[~asked])
    with pytest.raises(UserError, match=r"loader points must lie in \[0, 1\]; got 2"):
        LoaderConfig(points=2)
