"""Texts of like length go together: what is cut off, and that no split would cost less."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from open_cloc.model import text_buckets
from open_cloc.model.cloc import CLOC
from open_cloc.model.text_buckets import ON_ACCELERATORS, Bucket, Passes, fill, passes_on, split_by_length
from open_cloc.samples import RegionBatch
from tests.text_lengths import CONTEXT, batches_of_lengths

ON_CPU = passes_on(torch.device("cpu"))
RULES = [ON_CPU, ON_ACCELERATORS, Passes(3, tokens=4, least_texts=2)]


def _cost(lengths: list[int], cuts: tuple[int, ...], passes: Passes) -> int:
    """Tokens after padding if sorted texts are cut at these places."""
    ends = [0, *cuts, len(lengths)]
    return sum(
        passes.texts(b - a) * passes.length(lengths[b - 1], CONTEXT)
        for a, b in itertools.pairwise(ends)
        if b > a
    )


@pytest.mark.parametrize("passes", RULES, ids=str)
@pytest.mark.parametrize("seed", range(20))
def test_no_split_is_cheaper(seed: int, passes: Passes) -> None:
    draw = random.Random(seed)
    lengths = sorted(draw.randint(2, 19) for _ in range(draw.randint(1, 12)))
    buckets = split_by_length(lengths, passes, CONTEXT)
    assert len(buckets) == passes.count
    assert sum(bucket.real for bucket in buckets) == len(lengths)
    start = 0
    for count, _, length in buckets:
        assert start < len(lengths)  # an empty bucket has a text behind it, which stands in for its pass
        assert all(own <= length for own in lengths[start : start + count])
        start += count
    rounded = [passes.length(length, CONTEXT) for length in lengths]
    # Texts of one length stay together.
    places = [0, *(i for i in range(1, len(lengths)) if rounded[i - 1] < rounded[i]), len(lengths)]
    every = itertools.combinations_with_replacement(places, passes.count - 1)
    cost = sum(texts * length for count, texts, length in buckets if count)
    assert cost == min(_cost(lengths, cuts, passes) for cuts in every)


def test_no_text_at_all() -> None:
    assert split_by_length([], ON_CPU, CONTEXT) == (Bucket(0, 0, 1),) * 4


def test_shapes_of_a_pass() -> None:
    on_gpus = ON_ACCELERATORS
    assert [on_gpus.length(n, CONTEXT) for n in (1, 8, 9, 73, 77)] == [8, 8, 16, 77, 77]
    assert [on_gpus.texts(n) for n in (0, 1, 32, 33, 129, 256, 257, 700)] == [
        32,
        32,
        32,
        64,
        192,
        256,
        384,
        768,
    ]
    assert [ON_CPU.length(n, CONTEXT) for n in (1, 9)] == [1, 9]
    assert [ON_CPU.texts(n) for n in (0, 1, 700)] == [0, 1, 700]
    texts = torch.tensor([[5, 6, 7], [5, 7, 0]])
    assert fill(texts, Bucket(2, 4, 4), 0).tolist() == [
        [5, 6, 7, 0],
        [5, 7, 0, 0],
        [5, 6, 7, 0],
        [5, 6, 7, 0],
    ]
    assert fill(texts, Bucket(0, 0, 1), 0).tolist() == [[5]]
    assert fill(texts, Bucket(1, 1, 8), None).tolist() == [[5, 6, 7]]


def test_few_shapes_occur(tiny_model_cfg: dict[str, Any]) -> None:
    """In 500 batches."""
    shapes = {
        bucket[1:]
        for lengths in batches_of_lengths(tiny_model_cfg)
        for bucket in split_by_length(lengths, ON_ACCELERATORS, CONTEXT)
    }
    assert len(shapes) <= 12, sorted(shapes)


@pytest.mark.parametrize("passes", RULES, ids=str)
@pytest.mark.parametrize("num_texts", [1, 3, 9])
def test_buckets_change_no_feature(
    tiny_model_cfg: dict[str, Any], num_texts: int, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the text tower makes as many passes as ever."""
    monkeypatch.setitem(text_buckets.BY_DEVICE, "cpu", passes)
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
    made = []
    model.clip.text.transformer.register_forward_hook(lambda *_: made.append(1))
    together, apart = model(batch), model(replace(batch, text_lengths=lengths))
    assert len(made) == 1 + passes.count
    for name in ("text_features", "region_text_features", "pred_boxes"):
        torch.testing.assert_close(getattr(apart, name), getattr(together, name), rtol=1e-5, atol=1e-6)
    apart.region_text_features.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
