"""A tiny language model made here, with a word for each token: for tests, guides and comparisons offline."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from open_cloc.errors import UserError

PAD, START, END, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"


@dataclass(frozen=True)
class SmallLM:
    """Size of a Llama that is trained from scratch.

    Attributes:
        layers: Transformer layers.
        width: Width of embeddings and layers, a multiple of `heads`.
        heads: Attention heads.
        mlp: Hidden width of the layers' MLPs.
    """

    layers: int = 4
    width: int = 192
    heads: int = 4
    mlp: int = 512

    def __post_init__(self) -> None:
        if min(self.layers, self.width, self.heads, self.mlp) < 1 or self.width % (2 * self.heads):
            raise UserError(
                f"a small language model needs a width that is a multiple of twice its heads; got {self}"
            )


def word_tokenizer(texts: Iterable[str]) -> Any:
    """A tokenizer with a token for each word of some texts and each punctuation mark; all else is unknown."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    words = {word for text in texts for word, _ in split.pre_tokenize_str(text)}
    vocabulary = {word: number for number, word in enumerate([PAD, START, END, UNKNOWN, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = split
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=START, eos_token=END, unk_token=UNKNOWN
    )


def small_language_model(texts: Iterable[str], size: SmallLM, seed: int = 0) -> tuple[Any, Any]:
    """An untrained Llama and its tokenizer; equal for equal texts, size and seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = word_tokenizer(texts)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=2048,
        initializer_range=size.width**-0.5,  # its own 0.02 is for widths in thousands: attention starts dead
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config), tokenizer
