"""Crops against whole images that were cut by hand."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from tiny_data import Samples

from open_cloc.evaluation.collect import collect_regions
from open_cloc.evaluation.methods import open_method
from open_cloc.evaluation.methods.crop import cut_out
from open_cloc.evaluation.options import EvaluationConfig
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
