"""The elementwise heart of the factored `mean` read-out, in tiles, with its backward pass by hand.

Autograd would keep half a dozen tensors of (B, R, N, H) elements; this keeps none and computes tiles again.
On a CPU a tile stays in the cache, which makes the elementwise passes about three times as fast. Where Triton
runs, it is one kernel (`gelu_sum_triton.py`).

Shapes: B images, R prompts per image, N image tokens, K tokens per prompt, H hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from open_cloc.devices import runs_triton

# Elements of (images, prompts, tokens, hidden) worked on at a time: half of a CPU core's usual cache in
# float32; on a GPU enough to fill it.
TILE_ELEMENTS = {"cpu": 2**17, "other": 2**25}


def gelu_sum(
    residual: Tensor,
    attended: Tensor,
    prompt: Tensor,
    share: Tensor,
    weights: Tensor,
    scale: Tensor,
    bias: Tensor,
    mask: Tensor,
) -> Tensor:
    """`sum_n mask_n gelu(scale_n residual_n + share_n attended_n + sum_k weights_nk prompt_k + bias)`.

    Args:
        residual: (B, N, H).
        attended: (B, N, H).
        prompt: (B, R, K, H).
        share: (B, R, N).
        weights: (B, R, N, K).
        scale: (B, R, N).
        bias: (H,).
        mask: (B, N) bool, True for tokens that count.

    Returns:
        (B, R, H) float32, summed in float32 also under autocast.
    """
    with torch.autocast(residual.device.type, enabled=False):
        inputs = (residual, attended, prompt, share, weights, scale, bias, mask)
        if _exporting:
            return _whole(inputs)
        # One kernel where Triton runs, which knows no float64; else tiles.
        if not runs_triton(residual.device) or _dtype(inputs) == torch.float64:
            return _GeluSum.apply(*inputs)
        from open_cloc.model.gelu_sum_triton import gelu_sum_triton

        return gelu_sum_triton(*inputs)


# torch's own `is_exporting` says so in all compiled code of versions before 2.14.
_exporting = False


@contextmanager
def exporting() -> Iterator[None]:
    """Without tiles: an exported graph takes any number of prompts."""
    global _exporting
    before, _exporting = _exporting, True
    try:
        yield
    finally:
        _exporting = before


def _whole(inputs: tuple[Tensor, ...]) -> Tensor:
    residual, attended, prompt, share, weights, scale, bias, mask = inputs
    inner = scale[..., None] * residual[:, None] + share[..., None] * attended[:, None] + weights @ prompt
    return (F.gelu(inner + bias) * mask[:, None, :, None]).sum(2)  # (B, R, N, H) -> (B, R, H)


class _GeluSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        residual, _, prompt, *_, mask = inputs
        total = prompt.new_zeros(*prompt.shape[:2], prompt.shape[-1], dtype=_dtype(inputs))  # (B, R, H)
        for images, prompts, tokens in _tiles(residual, prompt.shape[1]):
            hidden = F.gelu(_inner(inputs, images, prompts, tokens))
            kept = mask[images, None, None, tokens].to(hidden.dtype)  # (b, 1, 1, n)
            total[images, prompts] += (kept @ hidden)[:, :, 0]
        return total

    @staticmethod
    def backward(ctx: Any, total_grad: Tensor) -> tuple[Tensor | None, ...]:
        # backward() may run inside the caller's autocast, and these sums stay in float32.
        with torch.autocast(total_grad.device.type, enabled=False):
            return (*_gradients(ctx.saved_tensors, total_grad), None)


def _gradients(inputs: tuple[Tensor, ...], total_grad: Tensor) -> tuple[Tensor, ...]:
    """Gradients for all inputs but the mask, from that for the sums (B, R, H)."""
    residual, attended, prompt, share, weights, scale, _, mask = inputs
    d_residual, d_attended, d_prompt, d_share, d_weights, d_scale, d_bias = (
        torch.zeros_like(x, dtype=_dtype(inputs)) for x in inputs[:-1]
    )
    for images, prompts, tokens in _tiles(residual, prompt.shape[1]):
        kept = mask[images, None, tokens].to(share.dtype)  # (b, 1, n)
        upstream = total_grad[images, prompts, None]  # (b, r, 1, H)
        inner = _inner(inputs, images, prompts, tokens)
        d = torch.ops.aten.gelu_backward(upstream.expand_as(inner), inner)  # (b, r, n, H)
        at, of = (images, prompts, tokens), (images, prompts)
        d_scale[at] = kept * torch.linalg.vecdot(d, residual[images, None, tokens].to(d.dtype))
        d_share[at] = kept * torch.linalg.vecdot(d, attended[images, None, tokens].to(d.dtype))
        d_weights[at] = kept[..., None] * (d @ prompt[of].to(d.dtype).transpose(-1, -2))
        d_prompt[of] += (kept[..., None] * weights[at]).transpose(-1, -2).to(d.dtype) @ d
        d_bias += (kept[..., None, :].to(d.dtype) @ d).sum((0, 1, 2))
        _add_weighted(d_residual[images, tokens], kept * scale[at], d)
        _add_weighted(d_attended[images, tokens], kept * share[at], d)
    computed = (d_residual, d_attended, d_prompt, d_share, d_weights, d_scale, d_bias)
    return tuple(g.to(x.dtype) for g, x in zip(computed, inputs))


def _dtype(inputs: tuple[Tensor, ...]) -> torch.dtype:
    """float32, unless somebody computes in float64."""
    return torch.promote_types(torch.float32, inputs[3].dtype)


def _inner(inputs: tuple[Tensor, ...], images: slice, prompts: slice, tokens: slice) -> Tensor:
    """What the GELU gets, for one tile: (b, r, n, H)."""
    residual, attended, prompt, share, weights, scale, bias, _ = inputs
    at = (images, prompts, tokens)
    dtype = _dtype(inputs)
    inner = residual[images, None, tokens].to(dtype) * scale[at][..., None]
    inner.addcmul_(attended[images, None, tokens].to(dtype), share[at][..., None])
    for k in range(prompt.shape[2]):  # rank-one updates are far faster than a product of depth K
        inner.addcmul_(weights[at][..., k, None], prompt[images, prompts, None, k].to(dtype))
    return inner.add_(bias)


def _add_weighted(total: Tensor, weights: Tensor, values: Tensor) -> None:
    """total (b, n, H) += the sum over prompts of weights (b, r, n) times values (b, r, n, H)."""
    for r in range(values.shape[1]):
        total.addcmul_(weights[:, r, :, None], values[:, r])


def _tiles(residual: Tensor, num_prompts: int) -> Iterator[tuple[slice, slice, slice]]:
    """Slices of images, prompts and tokens whose product stays near the tile's size."""
    num_images, num_tokens, hidden = residual.shape
    limit = TILE_ELEMENTS.get(residual.device.type, TILE_ELEMENTS["other"])
    tokens = min(num_tokens, max(1, limit // hidden))
    prompts = min(num_prompts, max(1, limit // (hidden * tokens)))
    images = min(num_images, max(1, limit // max(1, hidden * tokens * prompts)))
    for i in range(0, num_images, max(1, images)):
        for r in range(0, num_prompts, max(1, prompts)):
            for n in range(0, num_tokens, tokens):
                yield slice(i, i + images), slice(r, r + prompts), slice(n, n + tokens)
