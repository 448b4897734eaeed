"""The last block of a ViT taken apart, for each kind of block whose parts are known.

Shapes: B images, T tokens with the class token and others before the patches, C tower width, H heads,
c width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from open_clip.transformer import ResidualAttentionBlock
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat
from timm.models import beit, eva
from timm.models.vision_transformer import Block, ParallelScalingBlock, ResPostBlock
from torch import Tensor, nn
from torch.nn import functional as F

from open_cloc.errors import UserError


class Parts(NamedTuple):
    """The last block of a ViT, and what comes behind it.

    Attributes:
        block: The module.
        queries_keys_values: What comes in (B, T, C), and the block's rotary positions or None -> queries,
            keys and values (B, H, T, c) as attention compares and mixes them, normed and turned.
        project: Mixed values (B, T, H c) and what came in -> what attention adds to it, (B, T, C).
        rest: What came in and what attention adds -> what the block gives.
        norm: Of the tower, behind the block.
        prefix: Tokens before the patches.
        is_biased: Attention adds a table of relative places to queries times keys.
    """

    block: Any
    queries_keys_values: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor]]
    project: Callable[[Tensor, Tensor], Tensor]
    rest: Callable[[Tensor, Tensor], Tensor]
    norm: Any
    prefix: int
    is_biased: bool = False


def parts_of(visual: Any) -> Parts:
    """The parts of an image tower's last block.

    Raises:
        UserError: If it is no ViT whose blocks are known.
    """
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
    if blocks is not None and type(blocks[-1]) is ResidualAttentionBlock:
        return _of_open_clip(visual, blocks[-1])
    trunk = getattr(visual, "trunk", None)
    blocks = getattr(trunk, "blocks", None)
    block = blocks[-1] if isinstance(blocks, (nn.ModuleList, nn.Sequential)) and len(blocks) else None
    if type(block) is ParallelScalingBlock:
        return _of_parallel(trunk, block)
    attention = getattr(block, "attn", None)
    if type(block) in HALVES and type(attention) in ATTENTIONS:
        return _of_timm(trunk, block, attention)
    kind = type(trunk if trunk is not None else visual).__name__
    of = f" of {type(block).__name__}s" if block is not None else ""
    raise UserError(f"tokens can be read otherwise of a plain ViT alone; this image tower is a {kind}{of}")


def _of_open_clip(visual: Any, block: Any) -> Parts:
    attention = block.attn

    def split(x: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        joined = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
        return _three(joined, attention.num_heads)

    def rest(x: Tensor, added: Tensor) -> Tensor:
        x = x + added
        return x + block.ls_2(block.mlp(block.ln_2(x)))

    return Parts(
        block,
        split,
        lambda mixed, x: block.ls_1(attention.out_proj(mixed)),
        rest,
        nn.Identity() if visual.final_ln_after_pool else visual.ln_post,
        1,
    )


def _of_timm(trunk: Any, block: Any, attention: Any) -> Parts:
    """Of blocks in two halves, each with its norm before or behind it."""
    before_1, behind_1, before_2, behind_2 = HALVES[type(block)](block)

    def rest(x: Tensor, added: Tensor) -> Tensor:
        x = x + added
        return x + behind_2(block.mlp(before_2(x)))

    def project(mixed: Tensor, x: Tensor) -> Tensor:
        mixed = getattr(attention, "norm", nn.Identity())(mixed)
        if getattr(attention, "gate", None) is not None:
            mixed = mixed * attention.gate(before_1(x)).sigmoid()
        return behind_1(attention.proj(mixed))

    biased = getattr(attention, "relative_position_bias_table", None) is not None
    return Parts(
        block,
        lambda x, rope: _rotated(attention, ATTENTIONS[type(attention)](attention, before_1(x)), rope),
        project,
        rest,
        trunk.norm,
        trunk.num_prefix_tokens,
        biased or getattr(trunk, "rel_pos_bias", None) is not None,
    )


def _of_parallel(trunk: Any, block: Any) -> Parts:
    """Of blocks whose MLP stands beside attention: both read what comes in, and add to it."""
    width, fused = block.num_heads * block.head_dim, block.out_proj

    def split(x: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        joined = block.in_proj(block.in_norm(x))[..., block.in_split[0] :]
        queries, keys, values = _three(joined, block.num_heads)
        return block.q_norm(queries), block.k_norm(keys), values

    def project(mixed: Tensor, x: Tensor) -> Tensor:
        if fused is None:
            return block.ls(block.attn_out_proj(mixed))
        return block.ls(F.linear(mixed, fused.weight[:, :width], fused.bias))

    def rest(x: Tensor, added: Tensor) -> Tensor:
        hidden = block.in_proj(block.in_norm(x))[..., : block.in_split[0]]
        hidden = block.mlp_act(hidden if block.mlp_bias is None else hidden + block.mlp_bias)
        if fused is None:
            return x + added + block.ls(block.mlp_out_proj(hidden))
        return x + added + block.ls(F.linear(hidden, fused.weight[:, width:]))

    return Parts(block, split, project, rest, trunk.norm, trunk.num_prefix_tokens)


def _fused(attention: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _three(attention.qkv(x), attention.num_heads)


def _biased(attention: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of BEiT and EVA: keys have no bias, and those of queries and values lie beside the matrix."""
    if attention.q_bias is None:
        return _fused(attention, x)
    bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    return _three(F.linear(x, attention.qkv.weight, bias), attention.num_heads)


def _separate(attention: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of three matrices; several heads of queries may share one of keys and values."""
    heads = attention.num_heads
    fewer = getattr(attention, "num_kv_heads", heads)
    queries = attention.q_proj(x).unflatten(-1, (heads, -1)).transpose(1, 2)
    keys, values = (
        part(x).unflatten(-1, (fewer, -1)).transpose(1, 2).repeat_interleave(heads // fewer, dim=1)
        for part in (attention.k_proj, attention.v_proj)
    )
    return queries, keys, values


def _eva(attention: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _separate(attention, x) if attention.qkv is None else _biased(attention, x)


def _rope(attention: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _separate(attention, x) if attention.qkv is None else _fused(attention, x)


def _rotated(
    attention: Any, parts: tuple[Tensor, Tensor, Tensor], rope: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys after their norms, turned by the places of their patches."""
    queries, keys, values = parts
    if hasattr(attention, "q_norm"):
        queries, keys = attention.q_norm(queries), attention.k_norm(keys)
    if rope is None:
        return queries, keys, values
    prefix, half = attention.num_prefix_tokens, getattr(attention, "rotate_half", False)
    queries, keys = (
        torch.cat([x[:, :, :prefix], apply_rot_embed_cat(x[:, :, prefix:], rope, half=half)], 2).type_as(
            values
        )
        for x in (queries, keys)
    )
    return queries, keys, values


def _three(joined: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T, 3 H c) -> three of (B, H, T, c)."""
    queries, keys, values = joined.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return queries, keys, values


def _scaled(gamma: Tensor | None) -> Callable[[Tensor], Tensor]:
    return lambda x: x if gamma is None else gamma * x


# How each kind of attention makes queries, keys and values of (B, T, C).
ATTENTIONS: dict[type[nn.Module], Callable[[Any, Tensor], tuple[Tensor, Tensor, Tensor]]] = {
    Attention: _fused,
    AttentionRope: _rope,
    eva.EvaAttention: _eva,
    beit.Attention: _biased,
}
# What stands before and behind attention, and before and behind the MLP.
HALVES: dict[type[nn.Module], Callable[[Any], tuple[Any, Any, Any, Any]]] = {
    Block: lambda b: (b.norm1, b.ls1, b.norm2, b.ls2),
    ResPostBlock: lambda b: (nn.Identity(), b.norm1, nn.Identity(), b.norm2),
    eva.EvaBlock: lambda b: (b.norm1, _scaled(b.gamma_1), b.norm2, _scaled(b.gamma_2)),
    eva.EvaBlockPostNorm: lambda b: (nn.Identity(), b.norm1, nn.Identity(), b.norm2),
    beit.Block: lambda b: (b.norm1, _scaled(b.gamma_1), b.norm2, _scaled(b.gamma_2)),
}
