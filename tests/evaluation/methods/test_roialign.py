"""RoIAlign against torchvision's, and in chunks."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import roi_align

from open_cloc.errors import UserError
from open_cloc.evaluation.methods import open_method, roialign
from open_cloc.evaluation.methods.roialign import embed_pooled
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.run import evaluate
from open_cloc.model.cloc import CLOC
from tests.evaluation.tiny_data import NAMES, Samples


def test_pooled_regions_equal_torchvisions_and_the_towers_head(
    model: CLOC, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randint(0, 255, (1, 3, 64, 96), dtype=torch.uint8)
    boxes = torch.tensor([[[0, 0, 0.5, 0.5], [0.2, 0.1, 0.9, 0.7], [0.5, 0, 1, 1]]])
    with torch.no_grad():
        state = model.encode_image(images)
        found = embed_pooled(model, state, boxes)[0]
        feature_map = state.image_tokens.transpose(1, 2).reshape(1, 64, 4, 6)
        pixels = boxes[0] * torch.tensor([96.0, 64, 96, 64])
        pooled = roi_align(feature_map, [pixels], 7, spatial_scale=1 / 16, aligned=True).mean((2, 3))
        visual = model.clip.visual
        features = visual.ln_post(pooled) if visual.final_ln_after_pool else pooled
        torch.testing.assert_close(found, F.normalize(features @ visual.proj, dim=-1), atol=1e-5, rtol=0)
        monkeypatch.setattr(roialign, "most_floats", lambda device: 2 * 49 * 64)
        torch.testing.assert_close(embed_pooled(model, state, boxes)[0], found, atol=1e-5, rtol=0)
        assert embed_pooled(model, state, boxes[:, :0]).shape == (1, 0, 32)


def test_a_box_may_be_pooled_to_one_bin(model: CLOC, samples: Samples) -> None:
    """As FG-CLIP's script does: RoIAlign 1 x 1, sampling_ratio -1, aligned, boxes on the patch grid."""
    images = torch.randint(0, 255, (1, 3, 64, 96), dtype=torch.uint8)
    boxes = torch.tensor([[[0, 0, 0.5, 0.5], [0.2, 0.1, 0.9, 0.7], [0.5, 0, 1, 1]]])
    with torch.no_grad():
        state = model.encode_image(images)
        found = embed_pooled(model, state, boxes, 1)[0]
        feature_map = state.image_tokens.transpose(1, 2).reshape(1, 64, 4, 6)
        cells = boxes[0] * torch.tensor([6.0, 4, 6, 4])
        pooled = roi_align(feature_map, [cells], (1, 1), 1.0, -1, True)[:, :, 0, 0]
        visual = model.clip.visual
        features = visual.ln_post(pooled) if visual.final_ln_after_pool else pooled
    torch.testing.assert_close(found, F.normalize(features @ visual.proj, dim=-1), atol=1e-5, rtol=0)
    task = "zeroshot_region_classification"
    named = evaluate(model, samples, task, method="roialign,size=1")["protocol"]["method"]
    assert named == "roialign,size=1"
    samples.class_names = NAMES
    ruled = evaluate(model, samples, task, EvaluationConfig(protocol="fgclip"), method="roialign")["protocol"]
    assert (ruled["method"], ruled["rules"]["roi_size"]) == ("roialign,size=1", 1)
    for name in ("fgclip-fgovd", "clipself"):
        assert open_method("roialign", model, EvaluationConfig(protocol=name)).describe()["method"] == named
    with pytest.raises(UserError, match="protocol fgclip pools to 1 x 1; leave size=7 out"):
        evaluate(model, samples, task, EvaluationConfig(protocol="fgclip"), method="roialign,size=7")
    with pytest.raises(UserError, match="size must be at least 1"):
        evaluate(model, samples, task, method="roialign,size=-1")
