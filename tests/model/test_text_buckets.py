"""Texts of like length go together: what is cut off, and that no split would cost less."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from open_cloc.model.cloc import CLOC
from open_cloc.model.text_buckets import NUM_BUCKETS, split_by_length
from open_cloc.samples import RegionBatch


def _cost(lengths: list[int], cuts: tuple[int, ...]) -> int:
    """Tokens after padding if sorted texts are cut at these places."""
    ends = [0, *cuts, len(lengths)]
    return sum((b - a) * lengths[b - 1] for a, b in itertools.pairwise(ends) if b > a)


@pytest.mark.parametrize("seed", range(20))
def test_no_split_is_cheaper(seed: int) -> None:
    draw = random.Random(seed)
    lengths = sorted(draw.randint(2, 9) for _ in range(draw.randint(1, 12)))
    buckets = split_by_length(lengths)
    assert len(buckets) == NUM_BUCKETS
    assert sum(count for count, _ in buckets) == len(lengths)
    start = 0
    for count, length in buckets:
        assert start < len(lengths)  # an empty bucket has a text behind it, which stands in for its pass
        assert all(own <= length for own in lengths[start : start + count])
        start += count
    every = itertools.combinations_with_replacement(range(len(lengths) + 1), NUM_BUCKETS - 1)
    assert sum(count * length for count, length in buckets) == min(_cost(lengths, cuts) for cuts in every)


def test_no_text_at_all() -> None:
    assert split_by_length([]) == ((0, 1),) * NUM_BUCKETS


@pytest.mark.parametrize("num_texts", [1, 3, 9])
def test_buckets_change_no_feature(tiny_model_cfg: dict[str, Any], num_texts: int) -> None:
    """And the text tower makes as many passes as ever."""
    model = CLOC(tiny_model_cfg).eval()
    texts = model.tokenize(
        ["a dog", "a cat", "it", *(f"a {'very ' * n}old tree" for n in range(6))][:num_texts]
    )
    order = model.tokenize.lengths(texts).argsort()
    lengths = tuple(model.tokenize.lengths(texts)[order].tolist())
    assert len(set(lengths)) > 1 or num_texts == 1
    batch = RegionBatch(
        images=torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8),
        content_boxes=torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2),
        texts=texts[order],
        caption_index=torch.tensor([0, num_texts - 1]),
        boxes=torch.tensor([[[0.1, 0.1, 0.6, 0.9]] * num_texts] * 2),
        region_text_index=torch.arange(num_texts).expand(2, -1),
        region_mask=torch.ones(2, num_texts, dtype=torch.bool),
    )
    passes = []
    model.clip.text.transformer.register_forward_hook(lambda *_: passes.append(1))
    together, apart = model(batch), model(replace(batch, text_lengths=lengths))
    assert len(passes) == 1 + NUM_BUCKETS
    for name in ("text_features", "region_text_features", "pred_boxes"):
        torch.testing.assert_close(getattr(apart, name), getattr(together, name), rtol=1e-5, atol=1e-6)
    apart.region_text_features.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
