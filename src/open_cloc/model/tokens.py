"""Tokens of both towers in the shared space, for objectives that look inside images and captions.

Shapes: B images, N image tokens, U texts, T text tokens, C tower width, D shared embedding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from open_clip.transformer import TextTransformer, text_global_pool
from torch import Tensor, nn

from open_cloc.model import towers


class TextTokens(NamedTuple):
    """Texts and their tokens, projected alike.

    Attributes:
        features: (U, D) as `towers.encode_text` gives them.
        tokens: (U, T, D).
        mask: (U, T) True for the text's own tokens: no padding, no start or end mark.
    """

    features: Tensor
    tokens: Tensor
    mask: Tensor


def project_image_tokens(visual: Any, tokens: Tensor) -> Tensor:
    """Image tokens (B, N, C) -> (B, N, D): each through the tower's own pooling and projection, alone."""
    return towers.project_pooled(visual, tokens.flatten(0, 1)[:, None]).unflatten(0, tokens.shape[:2])


def encode_text_tokens(text: Any, token_ids: Tensor) -> TextTokens:
    """Run a text tower once for both products: token ids (U, T) -> features and tokens."""
    if isinstance(text, TextTransformer):
        return _encode_open_clip(text, token_ids)
    padding = text.config.pad_token_id
    attention_mask = (token_ids != padding).long()
    output = text.transformer(input_ids=token_ids, attention_mask=attention_mask)
    pooled = text.pooler(output, attention_mask)
    real = attention_mask.bool()
    inner = real & (attention_mask.cumsum(1) > 1) & (attention_mask.flip(1).cumsum(1).flip(1) > 1)
    return TextTokens(text.proj(pooled), text.proj(output.last_hidden_state), inner)


def _encode_open_clip(text: Any, token_ids: Tensor) -> TextTokens:
    x, attention_mask = text._embeds(token_ids)
    if attention_mask is not None:
        attention_mask = attention_mask[..., : x.shape[1], : x.shape[1]]
    x = text.transformer(x, attn_mask=attention_mask)
    if text.cls_emb is not None:
        pooled = text.ln_final(text_global_pool(x, pool_type="last"))
        tokens = text.ln_final(x[:, : token_ids.shape[1]])
    else:
        tokens = text.ln_final(x)
        pooled = text_global_pool(tokens, token_ids, text.pool_type, eos_token_id=text.eos_id)
    return TextTokens(_project(text, pooled), _project(text, tokens), _own_tokens(text, token_ids))


def _project(text: Any, features: Tensor) -> Tensor:
    projection = text.text_projection
    if projection is None:
        return features
    return projection(features) if isinstance(projection, nn.Linear) else features @ projection


def _own_tokens(text: Any, token_ids: Tensor) -> Tensor:
    """CLIP's texts start with a mark and end with the largest id there is, then padding; others only pad."""
    places = torch.arange(token_ids.shape[1], device=token_ids.device)
    if text.pool_type == "argmax":
        return (places > 0) & (places < token_ids.argmax(1)[:, None])
    return token_ids != text.pad_id
