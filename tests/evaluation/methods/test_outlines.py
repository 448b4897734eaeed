"""Regions by their outlines: mask pooling against a slow reference, and the Prompter by masks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_data import Samples
from torch.nn import functional as F

from open_cloc.canvas import CanvasConfig
from open_cloc.errors import UserError
from open_cloc.evaluation.batches import evaluation_batches
from open_cloc.evaluation.methods import open_method
from open_cloc.evaluation.run import evaluate
from open_cloc.inference.predictor import Predictor
from open_cloc.masks import Mask
from open_cloc.model.cloc import CLOC


def outlined(samples: Samples) -> Samples:
    """The samples with an outline for each region: the upper left half of its box."""
    made = Samples()
    for sample in samples:
        height, width = sample.pixels().shape[:2]
        y, x = (np.mgrid[:height, :width] + 0.5) / np.array([height, width])[:, None, None]
        regions = []
        for region in sample.regions:
            x1, y1, x2, y2 = region.box
            inside = (x > x1) & (x < x2) & (y > y1) & (y < y2)
            half = (x - x1) / (x2 - x1) + (y - y1) / (y2 - y1) < 1
            regions.append(replace(region, mask=Mask.of(inside & half)))
        made.append(replace(sample, regions=tuple(regions)))
    return made


@torch.inference_mode()
def test_mask_pooling_is_the_mean_under_the_outline(model: CLOC, samples: Samples) -> None:
    method = open_method("mask_pool", model)
    (batch,) = evaluation_batches(outlined(samples), method.canvas, batch_size=9)
    found = method.embed_regions(batch, batch.boxes)
    state = model.encode_image(batch.images, batch.content_boxes)
    rows, columns = state.grid_size
    expected = []
    for number, (sample, geometry) in enumerate(zip(batch.samples, batch.geometries)):
        for region in sample.regions:
            assert region.mask is not None
            canvas = torch.from_numpy(geometry.masks_to_canvas(region.mask.pixels()[None])[0])
            share = canvas.reshape(rows, 64 // rows, columns, 64 // columns).mean((1, 3)).reshape(-1)
            token = (share[:, None] * state.image_tokens[number]).sum(0) / share.sum()
            visual = model.clip.visual
            expected.append((visual.ln_post(token) if visual.final_ln_after_pool else token) @ visual.proj)
    torch.testing.assert_close(found, F.normalize(torch.stack(expected), dim=-1), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_the_prompter_by_outlines_that_fill_boxes_is_the_prompter_by_boxes(
    model: CLOC, samples: Samples
) -> None:
    """On a grid that the boxes fit, which the canvas' cells fit too."""
    box, other = (0.25, 0.25, 0.75, 1.0), (0.0, 0.5, 0.5, 0.75)
    filled = []
    for x1, y1, x2, y2 in (box, other):
        pixels = np.zeros((16, 16), bool)
        pixels[int(16 * y1) : int(16 * y2), int(16 * x1) : int(16 * x2)] = True
        filled.append(Mask.of(pixels))
    square = next(sample for sample in samples if sample.pixels().shape[:2] == (64, 64) and sample.regions)
    regions = tuple(replace(square.regions[0], box=own, mask=mask) for own, mask in zip((box, other), filled))
    data = Samples([replace(square, regions=regions)])
    by_box, by_mask = open_method("prompter", model), open_method("prompter,prompt=mask", model)
    (batch,) = evaluation_batches(data, by_box.canvas)
    expected, found = (method.embed_regions(batch, batch.boxes) for method in (by_box, by_mask))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert by_mask.describe()["method"] == "prompter,prompt=mask"


@pytest.mark.parametrize("method", ["mask_pool", "prompter,prompt=mask"])
def test_regions_without_outlines_are_refused(model: CLOC, samples: Samples, method: str) -> None:
    with pytest.raises(UserError, match=r"region 0 of sample 's1' has no outline; readers with masks=true"):
        evaluate(model, samples, "zeroshot_region_classification", method=method)
    found = evaluate(model, outlined(samples), "zeroshot_region_classification", method=method)
    assert found["protocol"]["method"] == method
    by_boxes = evaluate(model, samples, "zeroshot_region_classification")
    assert found["metrics"] != by_boxes["metrics"]


def test_a_prompter_that_knows_corners_alone_is_not_asked_by_outlines(
    tiny_model_cfg: dict[str, Any], samples: Samples
) -> None:
    """The paper's: a mask would be read as its box, and measured under another name."""
    paper = CLOC(tiny_model_cfg, preprocess=CanvasConfig((64, 64))).eval()
    with pytest.raises(
        UserError,
        match="would measure boxes: this Prompter sees outlines and several boxes as the box around",
    ):
        open_method("prompter,prompt=mask", paper)
    image = Predictor(paper).encode(samples[1].pixels())
    with pytest.warns(UserWarning, match="masks are read as boxes"):
        image.embed(masks=np.ones((1, *image.size_hw), bool))


@torch.inference_mode()
def test_an_outline_without_a_pixel_is_its_box(model: CLOC, samples: Samples) -> None:
    empty = Samples()
    for sample in samples:
        none = Mask.of(np.zeros(sample.pixels().shape[:2], bool))
        empty.append(replace(sample, regions=tuple(replace(r, mask=none) for r in sample.regions)))
    method = open_method("mask_pool", model)
    (batch,) = evaluation_batches(empty, method.canvas, batch_size=9)
    rows = method.embed_regions(batch, batch.boxes)
    assert rows.isfinite().all()
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(len(rows)))
