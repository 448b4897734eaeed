"""Phrases that are too long, and embeddings that are remembered."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from open_cloc.labelling.detectors.texts import TextCache, drop_first_words


def test_the_text_cache_is_bounded() -> None:
    asked = []

    def encode(texts: Sequence[str]) -> torch.Tensor:
        asked.extend(texts)
        return torch.tensor([[float(len(text))] for text in texts])

    cache = TextCache(encode, capacity=2)
    assert cache.get(["a", "bb", "a"]).tolist() == [[1.0], [2.0], [1.0]]
    assert cache.get(["ccc", "a"]).tolist() == [[3.0], [1.0]]  # bb was asked longest ago
    cache.get(["bb"])
    assert asked == ["a", "bb", "ccc", "bb"]
    assert cache.num_encoded == 4


def test_every_pass_of_texts_is_as_large() -> None:
    passes = []

    def encode(texts: Sequence[str]) -> torch.Tensor:
        passes.append(list(texts))
        return torch.tensor([[float(len(text))] for text in texts])

    cache = TextCache(encode, at_once=3, capacity=3)
    found = cache.get(["a", "bb", "a", "ccc", "dddd"])  # more than it keeps
    assert found.flatten().tolist() == [1, 2, 1, 3, 4]
    assert passes == [["a", "bb", "ccc"], ["dddd", "dddd", "dddd"]]
    assert cache.get(["dddd", "bb"]).flatten().tolist() == [4, 2]
    assert len(passes) == 2


def test_a_single_word_that_is_too_long_is_cut_by_the_tokenizer() -> None:
    assert drop_first_words("b cc", "a {}", len, 6) == ("a b cc", False)
    assert drop_first_words("b cc", "a {}", len, 5) == ("a cc", True)
    assert drop_first_words("b cc", "a {}", len, 3) == ("a cc", True)
    assert drop_first_words(" ", "a {}", len, 3) == ("a ", False)
