"""Embeddings in chunks, and the RoIAlign that needs no Prompter."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import roi_align

from open_cloc.model import embed
from open_cloc.model.embed import embed_regions, embed_texts
from tests.tiny import tiny_model


def test_many_texts_in_chunks_equal_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    texts = [f"{'very ' * (i % 5)}small dog {i}" for i in range(9)]
    with torch.no_grad():
        whole = embed_texts(model, texts)
        monkeypatch.setattr(embed, "TEXTS_PER_CHUNK", 2)
        torch.testing.assert_close(embed_texts(model, texts), whole, atol=1e-5, rtol=0)
        assert embed_texts(model, []).shape == (0, 32)


def test_roialign_regions_equal_torchvision_and_the_towers_head() -> None:
    model = tiny_model()
    images = torch.randint(0, 255, (1, 3, 64, 96), dtype=torch.uint8)
    boxes = torch.tensor([[[0, 0, 0.5, 0.5], [0.2, 0.1, 0.9, 0.7]]])
    with torch.no_grad():
        state = model.encode_image(images)
        found = F.normalize(model.pool_regions(state, boxes), dim=-1)[0]
        feature_map = state.image_tokens.transpose(1, 2).reshape(1, 64, 4, 6)
        pixels = boxes[0] * torch.tensor([96.0, 64, 96, 64])
        pooled = roi_align(feature_map, [pixels], 7, spatial_scale=1 / 16, aligned=True).mean((2, 3))
        visual = model.clip.visual
        features = visual.ln_post(pooled) if visual.final_ln_after_pool else pooled
        torch.testing.assert_close(found, F.normalize(features @ visual.proj, dim=-1), atol=1e-5, rtol=0)


def test_several_kinds_in_chunks_follow_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    state = model.encode_image(torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8))
    boxes = torch.tensor([[0, 0, 0.5, 0.5], [0.2, 0.1, 0.9, 0.7]]).expand(2, 2, 4)
    masks = torch.rand(2, 3, 64, 64) > 0.5
    with torch.no_grad():
        whole = embed_regions(model, state, {"mask": masks, "box": boxes})
        assert whole.shape == (2, 5, 32)
        torch.testing.assert_close(whole[:, 3:], embed_regions(model, state, {"box": boxes}))
        monkeypatch.setattr(embed, "most_floats", lambda device: 1)  # a chunk per prompt
        chunked = embed_regions(model, state, {"mask": masks, "box": boxes})
        torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=0)
        assert embed_regions(model, state, {}).shape == (2, 0, 32)
