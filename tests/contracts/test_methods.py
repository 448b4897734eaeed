"""Whatever the method: unit rows for texts, pictures and boxes, and no batch that changes them."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from open_cloc.canvas import CanvasConfig
from open_cloc.errors import UserError
from open_cloc.evaluation.batches import EvaluationBatch, evaluation_batches
from open_cloc.evaluation.method import GroundingMethod, Method
from open_cloc.evaluation.methods import METHODS, open_method
from open_cloc.masks import Mask
from open_cloc.model.cloc import CLOC
from open_cloc.samples import Region, RegionSample

TEXTS = ["a red dog", "two cats"]
PHRASES: list[list[str]] = [["a red dog", "two cats"], []]

# Methods that bring their own model, and the fixture that makes its folder.
# Methods that know regions by their outlines, which the data must have.
BY_OUTLINE = ("mask_pool",)
OWN_MODELS = {"hf_clip": "hf_clip", "fgclip": "fgclip", "tipsv2": "tipsv2", "owlv2": "owlv2"}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest, tiny_model_cfg: dict[str, Any]) -> Method:
    if request.param in OWN_MODELS:
        folder = request.getfixturevalue(OWN_MODELS[request.param])
        return open_method(f"{request.param}:{folder}", device="cpu")
    return open_method(request.param, CLOC(tiny_model_cfg, preprocess=CanvasConfig((64, 64))).eval())


@pytest.fixture
def samples() -> list[RegionSample]:
    """A picture with three regions, and one without."""
    rng = np.random.default_rng(0)
    boxes = [(0.1, 0.2, 0.5, 0.9), (0.0, 0.0, 1.0, 1.0), (0.6, 0.1, 0.9, 0.3)]
    outlines = [Mask.of(rng.random((40, 70)) < 0.2) for _ in boxes]
    regions = tuple(Region(box, TEXTS[i % 2], mask=outlines[i]) for i, box in enumerate(boxes))
    pictures = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((40, 70), (50, 50))]
    return [RegionSample("a", pictures[0], regions=regions), RegionSample("b", pictures[1])]


def batch_of(method: Method, samples: list[RegionSample]) -> EvaluationBatch:
    (batch,) = evaluation_batches(samples, method.canvas, batch_size=len(samples))
    return batch


def assert_unit_rows(rows: Tensor, count: int) -> None:
    assert rows.shape[0] == count
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(count))


def test_it_says_what_it_is(method: Method) -> None:
    described = method.describe()
    assert {"method", "model", "pretrained", "precision", "device"} <= set(described)
    assert re.split("[:,]", described["method"])[0] in METHODS
    assert json.loads(json.dumps(described, allow_nan=False)) == json.loads(json.dumps(described))


@torch.inference_mode()
def test_rows_have_unit_length(method: Method, samples: list[RegionSample]) -> None:
    batch = batch_of(method, samples)
    texts = method.embed_texts(TEXTS)
    assert_unit_rows(texts, 2)
    assert_unit_rows(method.embed_images(batch), 2)
    regions = method.embed_regions(batch, batch.boxes)
    assert_unit_rows(regions, 3)
    assert texts.shape == regions[:2].shape
    bare = batch_of(method, samples[1:])
    assert method.embed_regions(bare, bare.boxes).shape == (0, texts.shape[1])


@torch.inference_mode()
def test_boxes_need_not_be_the_samples_own(method: Method, samples: list[RegionSample]) -> None:
    batch = batch_of(method, samples)
    own = method.embed_regions(batch, batch.boxes)
    if method.describe()["method"] in BY_OUTLINE:
        with pytest.raises(UserError, match="other boxes have none"):
            method.embed_regions(batch, [batch.boxes[0][::-1], batch.boxes[1]])
        return
    other = method.embed_regions(batch, [batch.boxes[0][::-1], np.array([[0.2, 0.2, 0.8, 0.8]])])
    assert_unit_rows(other, 4)
    torch.testing.assert_close(other[:3].flip(0), own, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_a_batch_of_two_equals_each_alone(method: Method, samples: list[RegionSample]) -> None:
    together, alone = batch_of(method, samples), [batch_of(method, [sample]) for sample in samples]
    for embed in (method.embed_images, lambda batch: method.embed_regions(batch, batch.boxes)):
        torch.testing.assert_close(embed(together), torch.cat(list(map(embed, alone))), atol=1e-5, rtol=0)
    separate = torch.cat([method.embed_texts([text]) for text in TEXTS])
    torch.testing.assert_close(method.embed_texts(TEXTS), separate, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_a_method_that_grounds_gives_boxes_of_the_picture(
    method: Method, samples: list[RegionSample]
) -> None:
    if not isinstance(method, GroundingMethod):
        pytest.skip("finds no boxes")
    assert method.describe_grounding()["method"] in METHODS
    boxes, scores, further = method.ground(batch_of(method, samples), PHRASES)
    assert boxes.shape == (2, 4)
    assert ((boxes >= -1e-6) & (boxes <= 1 + 1e-6)).all()
    assert (boxes[:, 2:] >= boxes[:, :2]).all()
    assert scores.shape == (2,)
    assert (scores.abs() <= 1 + 1e-6).all()
    if further is not None:
        assert (further.shape[0], further.shape[2]) == (2, 4)
        known = further[~further.isnan().any(-1)]
        assert ((known >= -1e-6) & (known <= 1 + 1e-6)).all()
    nothing = method.ground(batch_of(method, samples[1:]), [[]])
    assert (nothing.boxes.shape, nothing.scores.shape) == ((0, 4), (0,))
