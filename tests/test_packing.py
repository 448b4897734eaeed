"""Packed texts: every token stands once, none sees another text, and few shapes occur."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transformer import TextTransformer
from torch import Tensor

from open_cloc.model.cloc import CLOC
from open_cloc.model.towers.text_tower import OpenClipTextTower
from open_cloc.packing import ROW, pack_texts, unpack
from open_cloc.samples import RegionBatch
from open_cloc.training.accumulate import split_batch
from tests.text_lengths import CONTEXT, batches_of_lengths


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 200), max_size=60))
def test_every_token_stands_once_and_in_order(lengths: list[int]) -> None:
    width = 210
    rows = pack_texts(lengths, width)
    assert rows.shape[1] % ROW == 0
    assert rows.shape[0] >= 1
    assert int((rows >= 0).sum()) == sum(lengths)
    packing = unpack(rows, len(lengths), width)
    assert ((packing.text == len(lengths)) == (rows < 0)).all()
    source, position = packing.source.flatten(), packing.position.flatten()
    for text, (first, length) in enumerate(zip(packing.first.tolist(), lengths)):
        own = slice(first, first + length)
        assert source[own].tolist() == list(range(text * width, text * width + length))
        assert position[own].tolist() == list(range(length))
        assert set(packing.text.flatten()[own].tolist()) == {text}
        assert first // packing.source.shape[1] == (first + length - 1) // packing.source.shape[1]


def test_hardly_any_place_is_empty() -> None:
    draw = random.Random(0)
    lengths = sorted(draw.choice((draw.randint(4, 14), draw.randint(10, 49))) for _ in range(900))
    packing = pack_texts(lengths, CONTEXT)
    assert sum(lengths) > 0.93 * packing.numel()


TOWERS = [
    {},
    {"block_type": "custom"},
    {"pool_type": "eos", "eos_id": 499},
    {"proj_bias": True},
    {"proj_type": "none"},
    {"ls_init_value": 0.1},
]


@pytest.mark.parametrize("options", TOWERS, ids=str)
def test_a_text_gets_the_features_and_gradients_it_gets_alone(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    text = TextTransformer(vocab_size=500, width=32, heads=4, layers=2, output_dim=16, **options).double()
    tower = OpenClipTextTower(text)
    assert tower.packs
    lengths = [3, 4, 9, 9, 20, 41, 77]
    ids = torch.zeros(len(lengths), CONTEXT, dtype=torch.int64)
    for row, length in zip(ids, lengths):
        row[:length] = torch.randint(1, 498, (length,))
        row[length - 1] = 499
    packing = pack_texts(lengths, CONTEXT)
    whole, packed = tower.encode(ids), tower.encode_packed(ids, packing)
    torch.testing.assert_close(packed, whole, rtol=1e-5, atol=1e-6)
    upstream = torch.randn_like(whole)
    learning = [p for p in text.parameters() if p.requires_grad]
    made = [torch.autograd.grad((made * upstream).sum(), learning) for made in (packed, whole)]
    torch.testing.assert_close(made[0], made[1])


def test_neighbours_in_a_row_change_nothing() -> None:
    torch.manual_seed(0)
    tower = OpenClipTextTower(TextTransformer(vocab_size=500, width=32, heads=4, layers=2, output_dim=16))
    ids = torch.randint(1, 498, (4, 12))
    ids[:, -1] = 499
    packing = pack_texts([12] * 4, 12)
    assert packing.shape == (1, ROW)
    others = ids.clone()
    others[1:, :-1] = torch.randint(1, 498, (3, 11))
    first, again = (tower.encode_packed(x, packing)[0] for x in (ids, others))
    assert torch.equal(first, again)


def test_towers_whose_texts_see_padding_are_not_packed() -> None:
    for options in ({"no_causal_mask": True}, {"embed_cls": True}, {"pool_type": "last"}):
        assert not OpenClipTextTower(TextTransformer(width=32, heads=4, layers=1, **options)).packs


def batch_of(texts: Tensor, lengths: tuple[int, ...]) -> RegionBatch:
    count = len(lengths)
    return RegionBatch(
        images=torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8),
        content_boxes=torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2),
        texts=texts,
        caption_index=torch.tensor([0, count - 1]),
        boxes=torch.tensor([[[0.1, 0.1, 0.6, 0.9]] * count] * 2),
        region_text_index=torch.arange(count).expand(2, -1),
        region_mask=torch.ones(2, count, dtype=torch.bool),
        text_lengths=lengths,
        packing=pack_texts(lengths, texts.shape[1]),
    )


def test_a_model_makes_one_pass_and_parts_of_a_batch_are_packed_anew(tiny_model_cfg: dict[str, Any]) -> None:
    model = CLOC(tiny_model_cfg).eval()
    texts = model.tokenize(["a dog", "it", *(f"a {'very ' * n}old tree" for n in range(5))])
    order = model.tokenize.lengths(texts).argsort()
    batch = batch_of(texts[order], tuple(model.tokenize.lengths(texts)[order].tolist()))
    made: list[int] = []
    model.clip.text.transformer.register_forward_hook(lambda *_: made.append(1))
    packed = model(batch)
    assert len(made) == 1
    whole = model(replace(batch, packing=None, text_lengths=()))
    for name in ("text_features", "region_text_features", "pred_boxes"):
        torch.testing.assert_close(getattr(packed, name), getattr(whole, name), rtol=1e-5, atol=1e-6)
    for number, part in enumerate(split_batch(batch, 2)):
        own = model(part).region_text_features
        torch.testing.assert_close(own[0], packed.region_text_features[number], rtol=1e-5, atol=1e-6)


def test_few_shapes_occur(tiny_model_cfg: dict[str, Any]) -> None:
    """In 500 batches."""
    shapes = {tuple(pack_texts(lengths, CONTEXT).shape) for lengths in batches_of_lengths(tiny_model_cfg)}
    assert len(shapes) <= 12, sorted(shapes)
