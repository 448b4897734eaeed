"""Phrases that are too long, and embeddings that are remembered."""

from __future__ import annotations

import torch

from open_cloc.labelling.detectors.texts import TextCache, drop_first_words


def test_the_text_cache_is_bounded() -> None:
    asked = []

    def encode(text: str) -> torch.Tensor:
        asked.append(text)
        return torch.tensor([float(len(text))])

    cache = TextCache(encode, capacity=2)
    assert cache.get(["a", "bb", "a"]).tolist() == [[1.0], [2.0], [1.0]]
    assert cache.get(["ccc", "a"]).tolist() == [[3.0], [1.0]]  # bb was asked longest ago
    cache.get(["bb"])
    assert asked == ["a", "bb", "ccc", "bb"]


def test_a_single_word_that_is_too_long_is_cut_by_the_tokenizer() -> None:
    assert drop_first_words("b cc", "a {}", len, 6) == ("a b cc", False)
    assert drop_first_words("b cc", "a {}", len, 5) == ("a cc", True)
    assert drop_first_words("b cc", "a {}", len, 3) == ("a cc", True)
    assert drop_first_words(" ", "a {}", len, 3) == ("a ", False)
