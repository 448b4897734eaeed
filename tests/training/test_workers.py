"""The tokenizer in the loader's workers."""

from __future__ import annotations

import multiprocessing
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_recipes import SCENES, joined
from torch.utils.data import DataLoader

from open_cloc.data import workers
from open_cloc.data.loader import RegionLoader
from open_cloc.data.readers import open_reader
from open_cloc.model.create import build_model
from open_cloc.model.towers import tokenizer
from open_cloc.training.recipe import Recipe


def test_the_tokenizer_is_small_to_pickle(tiny: Recipe, text_tower: Path) -> None:
    texts = ["a dog", "two cats on a mat", "a dog"]
    for config in (tiny.model, joined(tiny, "test_vit", text_tower).model):
        model = build_model(config)
        pickled = pickle.dumps(model.tokenize)
        assert len(pickled) < 2000
        assert torch.equal(pickle.loads(pickled)(texts), model.tokenize(texts))
        whole = model.tokenizer(texts)
        assert torch.equal(model.tokenize(texts), whole[:, : model.tokenize(texts).shape[1]])
        assert model.tokenize([]).shape == (0, 1)


def test_the_tokenizer_forgets(tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "CACHED_TEXTS", 3)
    tokenize = build_model(tiny.model).tokenize
    for number in range(20):
        texts = [f"a dog {number}", "a cat", f"{number} dogs"]
        assert torch.equal(tokenize(texts), tokenizer.trim_padding(tokenize.full(texts), tokenize.pad_id))
    assert len(tokenize._rows) <= 6


def test_workers_can_be_spawned(tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(tiny.model)
    config = replace(tiny.data.loader, workers=1)
    loader = RegionLoader(
        open_reader(SCENES), model.preprocess, model.tokenize, config, batch_size=4, num_samples=4
    )
    assert len(pickle.dumps(loader._batches)) < 10_000
    forked = next(iter(loader))
    spawned = partial(DataLoader, multiprocessing_context=multiprocessing.get_context("spawn"))
    monkeypatch.setattr(workers, "DataLoader", spawned)
    batch = next(iter(loader))
    assert torch.equal(batch.texts, forked.texts)
    assert torch.equal(batch.images, forked.images)
