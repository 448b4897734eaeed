"""RoIAlign against torchvision's, and in chunks."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import roi_align

from open_cloc.evaluation.methods import roialign
from open_cloc.evaluation.methods.roialign import embed_pooled
from open_cloc.model.cloc import CLOC


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
