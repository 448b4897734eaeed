"""Both kinds of text towers: open_clip's transformer, and any Hugging Face encoder that open_clip knows.

Shapes: U texts, T text tokens, D shared embedding.
"""

from __future__ import annotations

from typing import Any

from open_clip.transformer import text_global_pool
from torch import Tensor, nn


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
        text = self.text
        x, mask = text._embeds(token_ids)
        if mask is not None:
            mask = mask[..., : x.shape[1], : x.shape[1]]
        return self._project(self._pool(text.transformer(x, attn_mask=mask), token_ids))

    def _pool(self, x: Tensor, token_ids: Tensor) -> Tensor:
        text = self.text
        if text.cls_emb is not None:
            return text.ln_final(text_global_pool(x, pool_type="last"))
        return text_global_pool(text.ln_final(x), token_ids, text.pool_type, eos_token_id=text.eos_id)

    def _project(self, pooled: Tensor) -> Tensor:
        projection = self.text.text_projection
        if projection is None:
            return pooled
        return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection

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

    def set_grad_checkpointing(self, enable: bool) -> None:
        # open_clip's wrapper can only switch it on; transformers 5 has renamed the switch.
        tower, verb = self.text.transformer, "enable" if enable else "disable"
        old, new = f"gradient_checkpointing_{verb}", f"activation_checkpointing_{verb}"
        getattr(tower, new if hasattr(tower, new) else old)()
