"""Both kinds of text towers: open_clip's transformer, and any Hugging Face encoder that open_clip knows.

Shapes: U texts, T text tokens, D shared embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import text_global_pool
from torch import Tensor, nn

from open_cloc.model.towers.tower import TextTokens
from open_cloc.packing import unpack


class OpenClipTextTower:
    """Adapter of `open_clip.transformer.TextTransformer`."""

    def __init__(self, text: Any) -> None:
        self.text = text

    @property
    def padding_id(self) -> int | None:
        """Padding is without effect in causal towers that pool at the end-of-text token.

        Others (SigLIP attends to its padding) need the whole context.
        """
        text = self.text
        exact = text.attn_mask is not None and text.pool_type in ("argmax", "eos") and text.cls_emb is None
        return text.pad_id if exact else None

    def encode(self, token_ids: Tensor) -> Tensor:
        return self._project(self._pool(self._run(token_ids), token_ids))

    @property
    def packs(self) -> bool:
        return self.padding_id is not None

    def encode_packed(self, token_ids: Tensor, rows: Tensor) -> Tensor:
        text, packed = self.text, unpack(rows, *token_ids.shape)
        dtype = text.transformer.get_cast_dtype()
        x = text.token_embedding(token_ids.flatten()[packed.source]).to(dtype)  # (P, L, width)
        x = x + text.positional_embedding[packed.position].to(dtype)
        x = text.transformer(x, attn_mask=own_text_mask(packed.text, text.heads, x.dtype))
        x = text.ln_final(x).flatten(0, 1)[packed.first + self._last(token_ids)]
        return self._project(x)

    def _last(self, token_ids: Tensor) -> Tensor:
        """(U,) the place of the end-of-text token, at which features are pooled."""
        if self.text.pool_type == "argmax":
            return token_ids.argmax(1)
        return (token_ids == self.text.eos_id).int().argmax(1)

    def encode_tokens(self, token_ids: Tensor) -> TextTokens:
        x = self._run(token_ids)
        # A class token stands last.
        tokens = self.text.ln_final(x[:, : token_ids.shape[1]])
        features = self._project(self._pool(x, token_ids))
        return TextTokens(features, self._project(tokens), self._own_tokens(token_ids))

    def _run(self, token_ids: Tensor) -> Tensor:
        x, mask = self.text._embeds(token_ids)
        if mask is not None:
            mask = mask[..., : x.shape[1], : x.shape[1]]
        return self.text.transformer(x, attn_mask=mask)

    def _pool(self, x: Tensor, token_ids: Tensor) -> Tensor:
        text = self.text
        if text.cls_emb is not None:
            return text.ln_final(text_global_pool(x, pool_type="last"))
        return text_global_pool(text.ln_final(x), token_ids, text.pool_type, eos_token_id=text.eos_id)

    def _project(self, features: Tensor) -> Tensor:
        projection = self.text.text_projection
        if projection is None:
            return features
        return projection(features) if isinstance(projection, nn.Linear) else features @ projection

    def _own_tokens(self, token_ids: Tensor) -> Tensor:
        """CLIP's texts start with a mark and end with the largest id, then padding; others only pad."""
        places = torch.arange(token_ids.shape[1], device=token_ids.device)
        if self.text.pool_type == "argmax":
            return (places > 0) & (places < token_ids.argmax(1)[:, None])
        return token_ids != self.text.pad_id

    def set_grad_checkpointing(self, enable: bool) -> None:
        self.text.set_grad_checkpointing(enable)


class HuggingFaceTextTower:
    """Adapter of `open_clip.hf_model.HFTextEncoder`, which masks padding: it may always be cut."""

    def __init__(self, text: Any) -> None:
        self.text = text

    @property
    def padding_id(self) -> int | None:
        return self.text.config.pad_token_id

    def encode(self, token_ids: Tensor) -> Tensor:
        return self.text(token_ids)

    @property
    def packs(self) -> bool:
        return False  # their masks know padding and nothing else

    def encode_packed(self, token_ids: Tensor, rows: Tensor) -> Tensor:
        raise NotImplementedError

    def encode_tokens(self, token_ids: Tensor) -> TextTokens:
        text = self.text
        attention_mask = (token_ids != text.config.pad_token_id).long()
        output = text.transformer(input_ids=token_ids, attention_mask=attention_mask)
        features = text.proj(text.pooler(output, attention_mask))
        return TextTokens(features, text.proj(output.last_hidden_state), _inner(attention_mask))

    def set_grad_checkpointing(self, enable: bool) -> None:
        # open_clip's wrapper can only switch it on; transformers 5 has renamed the switch.
        tower, verb = self.text.transformer, "enable" if enable else "disable"
        old, new = f"gradient_checkpointing_{verb}", f"activation_checkpointing_{verb}"
        getattr(tower, new if hasattr(tower, new) else old)()


def own_text_mask(text: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """What is added to attention so that a token sees its own text up to itself: (P * heads, L, L).

    Args:
        text: (P, L) the text of each token; what belongs to none sees others of its kind.
        heads: Of the attention, each with a mask of its own as `nn.MultiheadAttention` wants them.
        dtype: Of the result.
    """
    seen = (text[:, :, None] == text[:, None, :]).tril()  # (P, L, L)
    mask = torch.zeros(seen.shape, dtype=dtype, device=text.device).masked_fill(~seen, -torch.inf)
    return mask[:, None].expand(-1, heads, -1, -1).flatten(0, 1)


def _inner(attention_mask: Tensor) -> Tensor:
    """(U, T) True for the tokens between the first and the last that are no padding."""
    not_first = attention_mask.cumsum(1) > 1
    not_last = attention_mask.flip(1).cumsum(1).flip(1) > 1
    return attention_mask.bool() & not_first & not_last
