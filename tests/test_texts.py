"""Packed texts are the texts, and a cache encodes none of them twice."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from open_cloc.texts import PackedTexts, TextCache


@pytest.mark.parametrize("texts", [[], [""], ["a", "", "ein Mädchen", "日本", "\ud800", "x" * 1000]])
def test_packed_texts_are_the_texts(texts: list[str]) -> None:
    packed = PackedTexts(texts)
    assert len(packed) == len(texts)
    assert list(packed) == texts  # type: ignore[call-overload]
    assert list(pickle.loads(pickle.dumps(packed))) == texts
    for outside in (-1, len(texts)):
        with pytest.raises(IndexError):
            packed[outside]


def counted(calls: list[list[str]]) -> Callable[[list[str]], list[str]]:
    """An encoder that notes what it is asked."""

    def encode(texts: list[str]) -> list[str]:
        calls.append(texts)
        return [text.upper() for text in texts]

    return encode


def test_a_cache_encodes_each_text_once_and_keeps_the_order() -> None:
    calls: list[list[str]] = []
    cache = TextCache(counted(calls))
    assert cache(["b", "a", "b"]) == ["B", "A", "B"]
    assert cache(["a", "c", "b"]) == ["A", "C", "B"]
    assert calls == [["b", "a"], ["c"]]
    assert cache.num_encoded == 3
    assert cache([]) == []


def test_a_cache_forgets_what_was_not_asked_for_longest() -> None:
    calls: list[list[str]] = []
    cache = TextCache(counted(calls), max_known=2)
    cache(["a", "b"])
    cache(["a"])
    cache(["c"])
    cache(["a"])
    assert calls == [["a", "b"], ["c"]]
    cache(["b"])
    assert calls[-1] == ["b"]
    assert cache(["x", "y", "z"]) == ["X", "Y", "Z"]  # longer than what is kept
    cache(["y", "z"])
    assert calls[-1] == ["x", "y", "z"]


def test_threads_share_a_cache() -> None:
    calls: list[list[str]] = []
    cache = TextCache(counted(calls), max_known=50)
    names = [str(i) for i in range(100)]
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda start: cache(names[start : start + 20]), list(range(80)) * 5):
            assert found == [name.upper() for name in found]
    assert cache.num_encoded == sum(map(len, calls))


def test_an_encoder_that_leaves_texts_out_is_noticed() -> None:
    with pytest.raises(ValueError, match="shorter"):
        TextCache(lambda texts: texts[1:])(["a", "b"])
