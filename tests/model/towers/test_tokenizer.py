"""How long texts are to a model, before its context cuts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from open_cloc.model.towers.tokenizer import TextTokenizer

HOME = {"context_length": 8}


def tokenizers(text_tower: Path) -> list[TextTokenizer]:
    """open_clip's own, and one of Hugging Face."""
    own: dict[str, Any] = {"text_cfg": HOME}
    other: dict[str, Any] = {"text_cfg": HOME | {"hf_tokenizer_name": str(text_tower)}}
    return [TextTokenizer(own, 0), TextTokenizer(other, 0)]


def test_tokens_are_counted_before_they_are_cut(text_tower: Path) -> None:
    for tokenize in tokenizers(text_tower):
        assert tokenize.context_length == 8
        assert tokenize.num_tokens("a dog") == 4  # start and end too
        assert tokenize.num_tokens("a dog " * 10) == 22
        for words in range(1, 9):
            text = " ".join(["dog"] * words)
            used = int(tokenize.lengths(tokenize.full([text]))[0])
            assert used == min(8, tokenize.num_tokens(text))


@pytest.mark.parametrize("words", [5, 6, 7, 50])
def test_what_is_cut(text_tower: Path, words: int) -> None:
    text = " ".join(["dog"] * words)
    for tokenize in tokenizers(text_tower):
        assert tokenize.cut(["a cat", text]) == ([text] if words > 6 else [])
