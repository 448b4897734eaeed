"""Packed texts are the texts."""

from __future__ import annotations

import pickle

import pytest

from open_cloc.texts import PackedTexts


@pytest.mark.parametrize("texts", [[], [""], ["a", "", "ein Mädchen", "日本", "\ud800", "x" * 1000]])
def test_packed_texts_are_the_texts(texts: list[str]) -> None:
    packed = PackedTexts(texts)
    assert len(packed) == len(texts)
    assert list(packed) == texts  # type: ignore[call-overload]
    assert list(pickle.loads(pickle.dumps(packed))) == texts
    for outside in (-1, len(texts)):
        with pytest.raises(IndexError):
            packed[outside]
