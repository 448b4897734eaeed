"""Texts to token ids, no longer than the text tower needs them.

Shapes: U texts, T text tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from open_cloc.config import convert
from open_cloc.errors import UserError, first_line
from open_cloc.model.foreign import open_safely
from open_cloc.texts import TextCleaning

CACHED_TEXTS = 2**13  # a few megabytes of token ids
MARKS = 8  # tokens of a text that stand for none of its characters, at most

CLEANING = TextCleaning()


class TextTokenizer:
    """Texts -> (U, T) token ids, cut to the longest text where the text tower allows it exactly.

    Every text of a model comes through here, so here it is cleaned.

    Small to pickle: a spawned loader worker gets the text tower's config, not the model, and reads the
    vocabulary itself. Region phrases come back in every batch, so token ids are kept for a while.

    Attributes:
        pad_id: The token that may be cut, or None where the text tower needs its whole context.
        vocab_size: Tokens that the text tower knows; 0 where that is not known.
        clean: What a text becomes first; for those who must know which texts are the same.
        raw: open_clip's tokenizer.
    """

    def __init__(
        self,
        model_cfg: Mapping[str, Any],
        pad_id: int | None,
        vocab_size: int = 0,
        cleaning: TextCleaning = CLEANING,
    ) -> None:
        self.model_cfg = {"text_cfg": model_cfg["text_cfg"]}
        self.pad_id, self.vocab_size, self.clean = pad_id, vocab_size, cleaning
        self.raw: Any = build_tokenizer(self.model_cfg)
        self._rows: dict[str, Tensor] = {}

    def full(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (U, context length) token ids, padded."""
        return self.raw(list(map(self.clean, texts)))

    def __call__(self, texts: list[str]) -> Tensor:
        texts = list(map(self.clean, texts))
        if len(self._rows) > CACHED_TEXTS:
            self._rows.clear()
        new = [text for text in dict.fromkeys(texts) if text not in self._rows]
        if new:
            self._rows.update(zip(new, self._token_ids(new)))
        if not texts:
            return torch.zeros(0, 1, dtype=torch.int64)
        return trim_padding(torch.stack([self._rows[text] for text in texts]), self.pad_id)

    def _token_ids(self, texts: list[str]) -> Tensor:
        """Texts -> (U, T) token ids, all of which the text tower knows.

        Raises:
            UserError: If the tokenizer fails, or is another tower's.
        """
        try:
            token_ids = self.raw(texts)
        # Tokenizers are what a folder's files make of them, and fail when they are used.
        except Exception as error:
            raise UserError(
                f"this model's tokenizer cannot read {texts[0]!r:.60}: {first_line(error)}"
            ) from error
        largest = token_ids.amax(1)
        if self.vocab_size and int(largest.max()) >= self.vocab_size:
            text = texts[int(largest.argmax())]
            raise UserError(
                f"the text {text!r:.60} has token {int(largest.max())} by this model's tokenizer, and its "
                f"text tower knows {self.vocab_size}"
            )
        return token_ids

    @property
    def context_length(self) -> int:
        """Most tokens of a text that the text tower reads, start and end included."""
        return self.raw.context_length

    def num_tokens(self, text: str) -> int:
        """Tokens of a text, start and end included, before it is cut."""
        text = self.raw.clean_fn(self.clean(text))
        library = getattr(self.raw, "tokenizer", None)  # Hugging Face's; open_clip's own has none
        if library is not None:
            return len(library(text, verbose=False)["input_ids"])
        return len(self.raw.encode(text)) + 2

    def cut(self, texts: Sequence[str]) -> list[str]:
        """Those of some texts that are longer than the text tower reads: it does not see their ends."""
        most = self.context_length
        # No token has less than a byte, but for a few marks: most texts need not be looked at.
        long = [text for text in texts if len(text.encode("utf-8", "replace")) + MARKS > most]
        return [text for text in long if self.num_tokens(text) > most]

    def lengths(self, token_ids: Tensor) -> Tensor:
        """How many tokens of each row (U, T) the text tower needs: (U,); all, where cutting is not exact."""
        if self.pad_id is None:
            return torch.full(token_ids.shape[:1], token_ids.shape[1])
        places = torch.arange(1, token_ids.shape[1] + 1)
        return ((token_ids != self.pad_id) * places).amax(1).clamp(min=1)

    def __reduce__(self) -> tuple[type[TextTokenizer], tuple[Any, ...]]:
        return TextTokenizer, (self.model_cfg, self.pad_id, self.vocab_size, self.clean)


def trim_padding(token_ids: Tensor, pad_id: int | None) -> Tensor:
    """Cut (U, T) token ids to the longest text; a `pad_id` of None leaves them whole."""
    if pad_id is None:
        return token_ids
    used = (token_ids != pad_id).any(dim=0).nonzero()
    longest = int(used[-1]) + 1 if len(used) else 1
    return token_ids[:, :longest]


# What a config may say of its tokenizer; all else would go on to libraries that open files or run code.
TOKENIZER_OPTIONS: Mapping[str, Any] = {
    "clean": Literal["lower", "whitespace", "canonicalize"],
    "strip_sep_token": bool,
    "language": str,
}
TOKENIZER_MODES = (None, "", "clips")


def check_tokenizer(text_cfg: Mapping[str, Any]) -> None:
    """Refuse options of a tokenizer that are not known to be harmless.

    Raises:
        UserError: Names the option.
    """
    for name, value in (text_cfg.get("tokenizer_kwargs") or {}).items():
        if name not in TOKENIZER_OPTIONS:
            known = ", ".join(TOKENIZER_OPTIONS)
            raise UserError(f"tokenizer_kwargs of a model take no {name!r}; expected {known}")
        convert(TOKENIZER_OPTIONS[name], value, f"tokenizer_kwargs.{name}")
    if text_cfg.get("tokenizer_mode") not in TOKENIZER_MODES:
        raise UserError(f"unknown tokenizer_mode {text_cfg['tokenizer_mode']!r:.60}; expected clips or none")


def build_tokenizer(model_cfg: Mapping[str, Any]) -> Callable[[list[str]], Tensor]:
    """open_clip's tokenizer for a model config: texts -> (U, T) padded to the context length.

    Raises:
        MissingFileError: If a Hugging Face tokenizer is neither a local folder nor cached.
        UserError: If it would run code of its folder, or an option is not a tokenizer's.
    """
    from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer

    cfg = model_cfg["text_cfg"]
    check_tokenizer(cfg)
    options = {"context_length": cfg.get("context_length", DEFAULT_CONTEXT_LENGTH)}
    options |= cfg.get("tokenizer_kwargs") or {}
    name = cfg.get("hf_tokenizer_name")
    if not name:
        try:
            return copy(_clip_tokenizer(**options))
        except TypeError as error:
            raise UserError(f"tokenizer_kwargs do not fit open_clip's own tokenizer: {error}") from error
    return open_safely(HFTokenizer, name, tokenizer_mode=cfg.get("tokenizer_mode"), **options)


@lru_cache(maxsize=4)
def _clip_tokenizer(**options: Any) -> Any:
    """open_clip's own; its vocabulary takes a tenth of a second to read."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(**options)
