"""Crops against whole images that were cut by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from tiny_data import Samples

from open_cloc.errors import UserError
from open_cloc.evaluation.collect import collect_images, collect_regions
from open_cloc.evaluation.methods import open_method
from open_cloc.evaluation.methods.blur import blurred
from open_cloc.evaluation.methods.crop import cut_out
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.run import evaluate
from open_cloc.inference.predictor import Predictor
from open_cloc.model.cloc import CLOC
from open_cloc.samples import RegionSample


def test_crops_equal_whole_images_cut_by_hand(model: CLOC, samples: Samples) -> None:
    predictor = Predictor(model)
    expected = []
    for sample in samples:
        height, width = sample.pixels().shape[:2]
        for region in sample.regions:
            x1, y1, x2, y2 = np.round(np.array(region.box) * [width, height, width, height]).astype(int)
            cut = Image.fromarray(sample.pixels()).crop((x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)))
            expected.append(predictor.encode_image(cut))
    config = EvaluationConfig(batch_size=4)
    with torch.inference_mode():
        features = collect_regions(open_method("crop", model, config), samples, config).features
    np.testing.assert_allclose(features.numpy(), np.stack(expected), atol=1e-5)


def test_a_crop_has_at_least_one_pixel_and_a_picture_without_boxes_is_not_read() -> None:
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    samples = [RegionSample("a", pixels), RegionSample("b", b"no picture")]
    (crop,) = cut_out(samples, [np.array([[0.99, 0.5, 1.0, 0.51]]), np.zeros((0, 4))])
    np.testing.assert_array_equal(crop, pixels[2:3, 4:5])


def test_context_is_cut_out_too_as_far_as_there_is_a_picture() -> None:
    pixels = np.arange(3 * 40 * 80, dtype=np.uint32).astype(np.uint8).reshape(40, 80, 3)
    box = np.array([[0.25, 0.5, 0.5, 0.75]])  # x 20..40, y 20..30
    (crop,) = cut_out([RegionSample("a", pixels)], [box], context=0.5)
    np.testing.assert_array_equal(crop, pixels[15:35, 10:50])
    (crop,) = cut_out([RegionSample("a", pixels)], [box], context=1.5)
    np.testing.assert_array_equal(crop, pixels[5:40, 0:70])


def test_what_is_outside_of_a_box_is_blurred() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    box = np.array([[0.25, 0.5, 0.5, 0.75], [0, 0, 1, 1]])
    shown, whole = blurred([RegionSample("a", pixels)], [box], radius=3)
    expected = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(3))).copy()
    expected[20:30, 20:40] = pixels[20:30, 20:40]
    np.testing.assert_array_equal(shown, expected)
    np.testing.assert_array_equal(whole, pixels)


def test_a_whole_picture_stands_for_each_of_its_boxes(model: CLOC, samples: Samples) -> None:
    method = open_method("whole", model)
    with torch.inference_mode():
        regions = collect_regions(method, samples, EvaluationConfig())
        images = collect_images(method, samples, EvaluationConfig())
    assert torch.equal(regions.features, images.features[regions.image_index])


@pytest.mark.parametrize(
    ("spec", "told"),
    [("crop,context=-1", "context"), ("crop,context=1e9", "context"), ("blur,radius=0", "radius")],
)
def test_options_that_make_no_sense(model: CLOC, spec: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        open_method(spec, model)


@pytest.mark.parametrize("spec", ["crop,context=0.5", "blur", "whole"])
def test_the_result_says_how(model: CLOC, samples: Samples, spec: str) -> None:
    result = evaluate(model, samples, "zeroshot_region_classification", method=spec)
    assert result["protocol"]["method"].startswith(spec)
