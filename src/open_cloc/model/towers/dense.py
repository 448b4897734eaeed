"""Image tokens that keep their place: the last block of any ViT read in another way, without training.

The last block of a CLIP mixes all tokens into what the class token needs, and a token says less of its own
place than before. Three ways round it are common:

- `value`: the block's values alone, through its output projection (MaskCLIP, arXiv 2112.01071);
- `value_block`: values in place of what attention mixes, and the block's other parts as they are (TIPS);
- `csa`: attention of tokens to what has like queries, and like keys, in place of queries to keys (SCLIP,
  arXiv 2312.01597).

Shapes: B images, N image tokens, P tokens before them (the class token), C tower width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from open_clip.transformer import ResidualAttentionBlock
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor
from torch.nn import functional as F

from open_cloc.errors import UserError

Readout = Literal["last", "value", "value_block", "csa"]


class _Last(NamedTuple):
    """The last block of a ViT, and what comes behind it.

    Attributes:
        block: The module.
        norm_1: Before attention.
        queries_keys_values: Tokens (B, P + N, C) -> (3, B, H, P + N, C / H).
        project: After attention, with its scale.
        rest: The second half of the block: norm, MLP and scale, added to what comes in.
        norm: Of the tower, behind the block.
        prefix: P.
    """

    block: Any
    norm_1: Any
    queries_keys_values: Callable[[Tensor], Tensor]
    project: Callable[[Tensor], Tensor]
    rest: Callable[[Tensor], Tensor]
    norm: Any
    prefix: int


class Caught:
    """What came into the last block; empty until the tower has run."""

    def __init__(self, last: _Last) -> None:
        self._last = last
        self._x: list[Tensor] = []

    def tokens(self, readout: Readout) -> Tensor:
        """The tokens read so: (B, N, C), after the tower's last norm where that stands before its pooling."""
        last, x = self._last, self._x[-1]
        queries, keys, values = last.queries_keys_values(last.norm_1(x))
        if readout == "csa":
            values = (_alike(queries) + _alike(keys)) @ values  # (B, H, P + N, P + N) @ (B, H, P + N, c)
        projected = last.project(_joined(values))
        x = projected if readout == "value" else last.rest(x + projected)
        return last.norm(x)[:, last.prefix :]


@contextmanager
def last_block(visual: Any) -> Iterator[Caught]:
    """Keep what comes into the last block while a tower runs.

    Args:
        visual: An image tower of open_clip.

    Raises:
        UserError: If it is no ViT whose blocks are known.
    """
    last = _last_of(visual)
    caught = Caught(last)
    hook = last.block.register_forward_pre_hook(lambda module, given: caught._x.append(given[0]))
    try:
        yield caught
    finally:
        hook.remove()


def _last_of(visual: Any) -> _Last:
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
    if blocks is not None and type(blocks[-1]) is ResidualAttentionBlock:
        return _of_open_clip(visual, blocks[-1])
    trunk = getattr(visual, "trunk", None)
    blocks = getattr(trunk, "blocks", None)
    if blocks is not None and type(blocks[-1]) is Block and type(blocks[-1].attn) is Attention:
        return _of_timm(trunk, blocks[-1])
    kind = type(trunk if trunk is not None else visual).__name__
    raise UserError(f"tokens can be read otherwise of a plain ViT alone; this image tower is a {kind}")


def _of_open_clip(visual: Any, block: Any) -> _Last:
    attention = block.attn

    def split(x: Tensor) -> Tensor:
        joined = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
        return _split(joined, attention.num_heads)

    after_pool = visual.final_ln_after_pool
    return _Last(
        block,
        block.ln_1,
        split,
        lambda x: block.ls_1(attention.out_proj(x)),
        lambda x: x + block.ls_2(block.mlp(block.ln_2(x))),
        torch.nn.Identity() if after_pool else visual.ln_post,
        1,
    )


def _of_timm(trunk: Any, block: Any) -> _Last:
    attention = block.attn

    def split(x: Tensor) -> Tensor:
        queries, keys, values = _split(attention.qkv(x), attention.num_heads)
        return torch.stack([attention.q_norm(queries), attention.k_norm(keys), values])

    return _Last(
        block,
        block.norm1,
        split,
        lambda x: block.ls1(attention.proj(attention.norm(x))),
        lambda x: x + block.ls2(block.mlp(block.norm2(x))),
        trunk.norm,
        trunk.num_prefix_tokens,
    )


def _split(joined: Tensor, heads: int) -> Tensor:
    """(B, T, 3 C) -> (3, B, H, T, C / H)."""
    images, tokens, width = joined.shape
    return joined.reshape(images, tokens, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)


def _joined(heads: Tensor) -> Tensor:
    """(B, H, T, C / H) -> (B, T, C)."""
    return heads.transpose(1, 2).flatten(2)


def _alike(x: Tensor) -> Tensor:
    """How much tokens (B, H, T, c) attend to what is like themselves: (B, H, T, T)."""
    return (x @ x.transpose(-2, -1) * x.shape[-1] ** -0.5).softmax(-1)
