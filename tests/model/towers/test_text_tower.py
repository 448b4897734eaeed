"""Text towers: features equal open_clip's, with and without padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from open_cloc.model.towers import text_tower_of
from open_cloc.model.towers.build import build_clip
from open_cloc.model.towers.tokenizer import build_tokenizer, trim_padding
from tests.model.towers.tower_cases import SMALL_TEXT, TEXTS, VIT, build

TEXT_TOWERS: dict[str, tuple[dict[str, Any], bool]] = {  # options, whether padding may be cut
    "clip": ({}, True),
    "eos": ({"pool_type": "eos", "eos_id": 49407}, True),
    "linear_projection": ({"proj_bias": True}, True),
    "no_projection": ({"proj_type": "none", "width": 24, "heads": 2}, True),
    "siglip": ({"no_causal_mask": True, "pool_type": "last", "proj_bias": True}, False),
    "bidirectional": ({"no_causal_mask": True}, False),
    "causal_last": ({"pool_type": "last"}, False),
    "class_token": ({"embed_cls": True}, False),
}


@pytest.mark.parametrize("name", TEXT_TOWERS)
@torch.no_grad()
def test_open_clip_text_features_are_equal(name: str) -> None:
    options, may_cut = TEXT_TOWERS[name]
    cfg = {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": {**SMALL_TEXT, "context_length": 16, **options}}
    clip = build(cfg)
    whole = build_tokenizer(cfg)(TEXTS)
    assert whole.shape == (3, 16)
    cut = trim_padding(whole, text_tower_of(clip.text).padding_id)
    assert (cut.shape[1] < 16) is may_cut
    expected = clip.encode_text(whole)
    torch.testing.assert_close(text_tower_of(clip.text).encode(whole), expected)
    torch.testing.assert_close(text_tower_of(clip.text).encode(cut), expected, rtol=1e-4, atol=1e-5)


def test_cutting_keeps_the_longest_text(tiny_model_cfg: dict[str, Any]) -> None:
    text = build_clip(tiny_model_cfg).text
    ids = torch.tensor([[5, 6, 0, 0, 0], [5, 7, 8, 6, 0]])
    assert trim_padding(ids, text_tower_of(text).padding_id).tolist() == [[5, 6, 0, 0], [5, 7, 8, 6]]
    assert trim_padding(torch.zeros(2, 5, dtype=torch.long), 0).shape == (2, 1)
