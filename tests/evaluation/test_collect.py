"""Every region of a data set, in its order, whatever the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_data import Samples
from torch.nn import functional as F

from open_cloc.evaluation.collect import RegionFeatures, collect_regions
from open_cloc.evaluation.methods import open_method
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.inference.predictor import Predictor
from open_cloc.model.cloc import CLOC


def collect(model: CLOC, samples: Samples, method: str, batch_size: int = 32) -> RegionFeatures:
    config = EvaluationConfig(batch_size=batch_size)
    with torch.inference_mode():
        return collect_regions(open_method(method, model, config), samples, config)


@pytest.mark.parametrize("method", ["prompter", "roialign", "crop"])
def test_every_region_is_embedded_in_order_whatever_the_batch(
    model: CLOC, samples: Samples, method: str
) -> None:
    one, eight = (collect(model, samples, method, size) for size in (1, 8))
    assert one.texts == [region.text.lower() for sample in samples for region in sample.regions]
    assert one.image_index.tolist() == [i for i, s in enumerate(samples) for _ in s.regions]
    assert one.num_images == 9
    torch.testing.assert_close(one.features, eight.features, atol=1e-5, rtol=0)
    torch.testing.assert_close(one.features, F.normalize(one.features, dim=-1))


def test_region_features_equal_the_predictors(model: CLOC, samples: Samples) -> None:
    predictor = Predictor(model)
    expected = [
        predictor.set_image(s.pixels()).encode_regions(
            image=None, boxes=[region.box for region in s.regions], normalized=True
        )
        for s in samples
    ]
    features = collect(model, samples, "prompter").features
    np.testing.assert_allclose(features.numpy(), np.concatenate(expected), atol=1e-5)
