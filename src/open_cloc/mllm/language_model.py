"""Causal language models of transformers: opened without their code, and looked at before they are taught."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from open_cloc.errors import MissingFileError, UserError, first_line
from open_cloc.model.foreign import quietly


def check_language_model(lm: Any, tokenizer: Any) -> int:
    """The width of a language model's embeddings, if it can be taught to see.

    Raises:
        UserError: If it cannot: says why.
    """
    try:
        table = lm.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        table = None
    weight = getattr(table, "weight", None)
    if weight is None or weight.ndim != 2:
        raise UserError(f"the language model {type(lm).__name__} has no input embeddings to put a picture in")
    if "inputs_embeds" not in inspect.signature(lm.forward).parameters:
        raise UserError(f"the language model {type(lm).__name__} reads no embeddings (inputs_embeds)")
    if tokenizer.eos_token_id is None:
        raise UserError("the language model's tokenizer has no end-of-text token: answers would never end")
    return weight.shape[1]


def most_tokens(lm: Any) -> int:
    """The tokens that a language model reads at most, as far as its config says so."""
    return getattr(lm.config, "max_position_embeddings", None) or sys.maxsize


def require_room(lm: Any, num_tokens: int) -> None:
    """Refuse a picture and a question that leave no room for an answer.

    Raises:
        UserError: If there are as many tokens as the language model reads, or more.
    """
    most = most_tokens(lm)
    if num_tokens >= most:
        raise UserError(
            f"a picture and its question take {num_tokens} tokens; the language model reads {most}, of which "
            "an answer needs some"
        )


def name_of_cache(lm: Any) -> str:
    """What a language model calls its keys and values: that has changed in transformers 5.2x."""
    return "cache" if "cache" in inspect.signature(lm.forward).parameters else "past_key_values"


def open_language_model(name: str | Path, dtype: Any = "auto") -> tuple[Any, Any]:
    """A causal language model of transformers and its tokenizer; safetensors only, and none of their code.

    Args:
        name: A folder, or a hub id.
        dtype: Of its weights, torch's; `auto` takes that in which they were saved.

    Raises:
        MissingFileError: If there is none.
        UserError: If it cannot be opened, or lacks weights.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with quietly():
            lm, told = AutoModelForCausalLM.from_pretrained(
                name, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except OSError as error:
        raise MissingFileError(f"no language model at {name}: {first_line(error)}") from error
    # transformers raises half a dozen types for folders that it cannot read.
    except Exception as error:
        raise UserError(f"the language model {name} cannot be opened: {first_line(error)}") from error
    _refuse_untrained(told, name)
    return lm.eval(), tokenizer


def _refuse_untrained(told: Mapping[str, Any], name: str | Path) -> None:
    """transformers fills in what a file lacks with random numbers, and only warns."""
    for kind in ("missing_keys", "mismatched_keys"):
        found = sorted(map(str, told.get(kind) or ()))
        if found:
            raise UserError(f"the language model {name} is of another shape than its config: {found[0]}")
