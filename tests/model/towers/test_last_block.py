"""Tokens read otherwise of timm's kinds of ViTs, against timm's own blocks with their attention exchanged.

In float64: the foreign block runs as it is, but that what it calls for attention answers slowly and plainly.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from timm.layers import Attention, LayerNorm
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import (
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import Tensor, nn

import open_cloc
from open_cloc.errors import UserError
from open_cloc.evaluation.run import evaluate
from open_cloc.model.towers.dense import Readout, last_block
from open_cloc.model.towers.timm import TimmTower
from tests.evaluation.tiny_data import make_samples

SIZE: dict[str, Any] = {"img_size": 48, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 4}
ROTARY: dict[str, Any] = {"use_rot_pos_emb": True, "ref_feat_shape": (4, 4)}
# CLIPSelf's own backbone: three matrices, keys without a bias, a norm within attention, SwiGLU with another.
EVA02 = ROTARY | {
    "qkv_fused": False,
    "swiglu_mlp": True,
    "scale_mlp": True,
    "scale_attn_inner": True,
    "mlp_ratio": 8 / 3,
}
DINOV3: dict[str, Any] = {
    "qkv_bias": False,
    "init_values": 0.3,
    "rope_type": "dinov3",
    "rope_rotate_half": True,
    "use_rot_pos_emb": True,
    "use_abs_pos_emb": False,
    "num_reg_tokens": 4,
    "norm_layer": partial(LayerNorm, eps=1e-5),
}


def gated(**size: Any) -> VisionTransformer:
    """No network of timm's is so, but its attention can be."""
    made = VisionTransformer(**size)
    made.blocks[-1].attn = Attention(32, num_heads=4, qkv_bias=True, gated=True)
    return made


TRUNKS: dict[str, Any] = {
    "EVA": partial(Eva, init_values=0.3),
    "EVA02": partial(Eva, **EVA02),
    "EVA02 with a norm behind its halves": partial(Eva, **EVA02, use_post_norm=True),
    "DINOv3": partial(Eva, **DINOV3),
    "rotary, with shared keys": partial(Eva, **ROTARY, attn_type="rope", qkv_fused=False, num_kv_heads=2),
    "rotary, fused": partial(Eva, **ROTARY, attn_type="rope", qk_norm=True),
    "rotary, mixed": partial(Eva, use_rot_pos_emb=True, rope_type="mixed"),
    "gated": gated,
    "norms behind the halves": partial(VisionTransformer, block_fn=ResPostBlock, init_values=0.4),
    "MLP beside attention": partial(VisionTransformer, block_fn=ParallelScalingBlock, qkv_bias=True),
    "MLP beside attention, fused": partial(
        VisionTransformer, block_fn=partial(ParallelScalingBlock, fuse_out_proj=True), qkv_bias=False,
        init_values=0.4, qk_norm=True,
    ),
    "BEiT": partial(Beit, init_values=0.3, use_rel_pos_bias=True, use_abs_pos_emb=False),
    "BEiT with one table": partial(Beit, use_shared_rel_pos_bias=True),
}  # fmt: skip


class Tower(nn.Module):
    """What open_clip wraps a network of timm in."""

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.trunk, self.head = trunk, nn.Identity()


@pytest.fixture(params=TRUNKS)
def visual(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    tower = Tower(TRUNKS[request.param](**SIZE, num_classes=0)).double().eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return tower


def slowly(readout: Readout) -> Any:
    """What stands in for torch's attention: queries, keys and values (B, H, T, c) -> mixed values."""

    def attend(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        mixed = v.clone()
        if readout == "csa":
            for image, head, token in np.ndindex(*v.shape[:3]):
                weights = torch.zeros(v.shape[2], dtype=v.dtype)
                for x in (q[image, head], k[image, head]):
                    scores = (x @ x[token] / x.shape[1] ** 0.5).exp()
                    weights += scores / scores.sum()
                mixed[image, head, token] = weights @ v[image, head]
        return mixed

    return attend


def attention_alone(block: Any, x: Tensor, rope: Tensor | None) -> Tensor:
    """What a block's attention adds, by the block's own modules."""
    given = {} if rope is None else {"rope": rope}
    kind = type(block).__name__
    if kind == "ParallelScalingBlock":  # without its other branch
        hook = block.mlp_act.register_forward_hook(lambda module, given, made: torch.zeros_like(made))
        added = block(x) - x
        hook.remove()
        return added if block.mlp_out_proj is None else added - block.ls(block.mlp_out_proj.bias)
    if kind in ("ResPostBlock", "EvaBlockPostNorm"):
        return block.norm1(block.attn(x, **given))
    added = block.attn(block.norm1(x), **given)
    gamma = getattr(block, "gamma_1", None)
    return added if gamma is None else gamma * added


@torch.inference_mode()
@pytest.mark.parametrize("readout", ["value", "value_block", "csa"])
def test_tokens_are_those_of_the_block_with_another_attention(
    visual: Any, readout: Readout, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk, pixels = visual.trunk, torch.randn(2, 3, 48, 48, dtype=torch.float64)
    with last_block(visual) as caught:
        output = TimmTower(visual).encode(pixels)
        if readout == "csa" and isinstance(trunk, Beit):
            with pytest.raises(UserError, match="csa has no place for the table of relative places"):
                caught.tokens(readout)
            return
        found = caught.tokens(readout)
    assert found.shape == output.image_tokens.shape == (2, 9, 32)
    assert not torch.allclose(found, output.image_tokens, atol=1e-2)
    x, rope = caught._came[0]
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", slowly(readout))
    block = trunk.blocks[-1]
    whole = block(x) if rope is None else block(x, rope=rope)
    expected = attention_alone(block, x, rope) if readout == "value" else whole
    torch.testing.assert_close(found, trunk.norm(expected)[:, trunk.num_prefix_tokens :], atol=1e-10, rtol=0)


@torch.inference_mode()
def test_the_parts_of_the_block_are_the_block(visual: Any) -> None:
    """Put together in the usual way they give the tower's own tokens."""
    with last_block(visual) as caught:
        output = TimmTower(visual).encode(torch.randn(2, 3, 48, 48, dtype=torch.float64))
    last, (x, rope) = caught._last, caught._came[0]
    q, k, v = last.queries_keys_values(x, rope)
    if last.is_biased:
        return
    mixed = ((q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
    tokens = last.norm(last.rest(x, last.project(mixed, x)))[:, last.prefix :]
    torch.testing.assert_close(tokens, output.image_tokens, atol=1e-10, rtol=0)


def test_blocks_that_are_not_known_are_named() -> None:
    odd = Tower(VisionTransformer(**SIZE, num_classes=0, block_fn=ParallelThingsBlock))
    told = "of a plain ViT alone; this image tower is a VisionTransformer of ParallelThingsBlocks"
    with pytest.raises(UserError, match=told), last_block(odd):
        pass


@pytest.mark.parametrize("method", ["roialign,tokens=value", "roialign,tokens=csa"])
def test_an_eva02_of_open_clip_is_measured(method: str) -> None:
    """The way that EVA02-B-16 takes, in its smallest network."""
    vision = {"image_size": 64, "timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token"}
    cfg = {
        "embed_dim": 24,
        "vision_cfg": vision | {"timm_proj": "linear"},
        "text_cfg": {"width": 32, "heads": 2, "layers": 1, "context_length": 8},
    }
    made = open_cloc.create_model(cfg, device="cpu").eval()
    result = evaluate(made, make_samples(), "zeroshot_region_classification", method=method)
    assert result["protocol"]["tokens"] == method.partition("tokens=")[2]
