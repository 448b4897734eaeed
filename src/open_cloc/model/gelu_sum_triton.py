"""`gelu_sum` as one Triton kernel forward and one backward; the PyTorch form beside it is what it must equal.

Nothing of (B, R, N, H) elements is ever in memory: a program keeps one image token's hidden units for a few
prompts in registers. The forward pass reads X and N once for every few prompts and writes the sums, so it is
bound by arithmetic, an error function for each element. Gradients of a token's scalars are sums over the
hidden units, which lie in several programs: each writes its part, and torch adds the parts up.

Shapes: B images, R prompts per image, N image tokens, K tokens per prompt, H hidden width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PROMPTS = 4  # that a program works on together
UNITS = 256  # of the hidden layer that a program works on


@triton.jit
def _forward(
    residual, attended, prompt, share, weights, scale, bias, mask, total,
    num_prompts, num_tokens, width, K: tl.constexpr, PROMPTS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """A program: some hidden units of some prompts of an image, summed over its tokens."""
    image = tl.program_id(2).to(tl.int64)
    h = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    r = tl.program_id(1) * PROMPTS + tl.arange(0, PROMPTS)
    is_unit, is_prompt = h < width, r < num_prompts
    both = is_prompt[:, None] & is_unit[None, :]
    row = image * num_prompts + r
    b = tl.load(bias + h, is_unit, 0.0).to(tl.float32)
    first = prompt + (row * K)[:, None] * width + h[None, :]
    p0 = tl.load(first, both, 0.0).to(tl.float32)
    p1 = p0
    if K == 2:
        p1 = tl.load(first + width, both, 0.0).to(tl.float32)
    sums = tl.zeros((PROMPTS, UNITS), tl.float32)
    for n in range(num_tokens):
        token = image * num_tokens + n
        if tl.load(mask + token) != 0:
            x = tl.load(residual + token * width + h, is_unit, 0.0).to(tl.float32)
            a = tl.load(attended + token * width + h, is_unit, 0.0).to(tl.float32)
            at = row * num_tokens + n
            inner = _inner(x, a, b, p0, p1, first, at, share, weights, scale, is_prompt, both, width, K)
            sums += 0.5 * inner * (1.0 + tl.math.erf(inner * 0.7071067811865476))
    tl.store(total + row[:, None] * width + h[None, :], sums, both)


@triton.jit
def _inner(
    x, a, b, p0, p1, first, at, share, weights, scale, is_prompt, both, width, K: tl.constexpr
):  # fmt: skip
    """What the GELU gets for one image token: (PROMPTS, UNITS).

    Two tokens of a prompt stay in registers; those of longer prompts are read again for each image token.
    """
    r_scale = tl.load(scale + at, is_prompt, 0.0).to(tl.float32)
    r_share = tl.load(share + at, is_prompt, 0.0).to(tl.float32)
    inner = r_scale[:, None] * x[None, :] + r_share[:, None] * a[None, :] + b[None, :]
    if K <= 2:
        inner += tl.load(weights + at * K, is_prompt, 0.0).to(tl.float32)[:, None] * p0
        if K == 2:
            inner += tl.load(weights + at * K + 1, is_prompt, 0.0).to(tl.float32)[:, None] * p1
    else:
        for k in range(K):
            p = tl.load(first + k * width, both, 0.0).to(tl.float32)
            inner += tl.load(weights + at * K + k, is_prompt, 0.0).to(tl.float32)[:, None] * p
    return inner


@triton.jit
def _backward(
    residual, attended, prompt, share, weights, scale, bias, mask, upstream,
    d_residual, d_attended, d_prompt, d_bias, d_token,
    num_images, num_prompts, num_tokens, width,
    K: tl.constexpr, PROMPTS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """A program: some hidden units of an image, for all of its prompts, so that no two add to one place.

    `d_token` is (programs, B, R, N, 2 + K): for scale, share and each weight, what these units have of it.
    """
    block, image = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    h = block * UNITS + tl.arange(0, UNITS)
    is_unit = h < width
    b = tl.load(bias + h, is_unit, 0.0).to(tl.float32)
    own_bias = tl.zeros((UNITS,), tl.float32)
    for start in range(0, num_prompts, PROMPTS):
        r = start + tl.arange(0, PROMPTS)
        is_prompt = r < num_prompts
        both = is_prompt[:, None] & is_unit[None, :]
        row = image * num_prompts + r
        first = prompt + (row * K)[:, None] * width + h[None, :]
        d_first = d_prompt + (row * K)[:, None] * width + h[None, :]
        p0 = tl.load(first, both, 0.0).to(tl.float32)
        p1 = p0
        if K == 2:
            p1 = tl.load(first + width, both, 0.0).to(tl.float32)
        g = tl.load(upstream + row[:, None] * width + h[None, :], both, 0.0).to(tl.float32)
        own_p0 = tl.zeros((PROMPTS, UNITS), tl.float32)
        own_p1 = tl.zeros((PROMPTS, UNITS), tl.float32)
        for n in range(num_tokens):
            token = image * num_tokens + n
            if tl.load(mask + token) != 0:
                x = tl.load(residual + token * width + h, is_unit, 0.0).to(tl.float32)
                a = tl.load(attended + token * width + h, is_unit, 0.0).to(tl.float32)
                at = row * num_tokens + n
                inner = _inner(x, a, b, p0, p1, first, at, share, weights, scale, is_prompt, both, width, K)
                density = 0.3989422804014327 * tl.exp(-0.5 * inner * inner)
                d = g * (0.5 * (1.0 + tl.math.erf(inner * 0.7071067811865476)) + inner * density)
                own_bias += tl.sum(d, 0)
                out = d_token + (block * num_images * num_prompts * num_tokens + at) * (2 + K)
                tl.store(out, tl.sum(d * x[None, :], 1), is_prompt)
                tl.store(out + 1, tl.sum(d * a[None, :], 1), is_prompt)
                if K <= 2:
                    tl.store(out + 2, tl.sum(d * p0, 1), is_prompt)
                    own_p0 += tl.load(weights + at * K, is_prompt, 0.0).to(tl.float32)[:, None] * d
                    if K == 2:
                        tl.store(out + 3, tl.sum(d * p1, 1), is_prompt)
                        own_p1 += tl.load(weights + at * K + 1, is_prompt, 0.0).to(tl.float32)[:, None] * d
                else:
                    _pull_long_prompt(d, first, d_first, out + 2, weights + at * K, is_prompt, both, width, K)
                place = token * width + h
                _pull_token(d, scale + at, d_residual + place, is_prompt, is_unit, start)
                _pull_token(d, share + at, d_attended + place, is_prompt, is_unit, start)
        if K <= 2:
            tl.store(d_first, own_p0, both)
            if K == 2:
                tl.store(d_first + width, own_p1, both)
        tl.debug_barrier()  # the next prompts add to what these have written
    tl.store(d_bias + image * width + h, own_bias, is_unit)


@triton.jit
def _pull_long_prompt(d, first, d_first, d_weights, weights, is_prompt, both, width, K: tl.constexpr):
    """Gradients of prompts of more than two tokens, and of their weights, from one image token."""
    for k in range(K):
        p = tl.load(first + k * width, both, 0.0).to(tl.float32)
        tl.store(d_weights + k, tl.sum(d * p, 1), is_prompt)
        w = tl.load(weights + k, is_prompt, 0.0).to(tl.float32)
        tl.store(d_first + k * width, tl.load(d_first + k * width, both, 0.0) + w[:, None] * d, both)


@triton.jit
def _pull_token(d, factor, place, is_prompt, is_unit, start):
    """Gradient of an image token's hidden units from some prompts, added to that from those before."""
    own = tl.sum(tl.load(factor, is_prompt, 0.0).to(tl.float32)[:, None] * d, 0)
    if start > 0:
        own += tl.load(place, is_unit, 0.0)
    tl.store(place, own, is_unit)


class GeluSumTriton(torch.autograd.Function):
    """Arguments and result as those of `gelu_sum`; sums in float32."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        residual, attended, prompt, share, weights, scale, bias, mask = (x.contiguous() for x in inputs)
        (num_images, num_tokens, width), num_prompts = residual.shape, prompt.shape[1]
        total = residual.new_empty(num_images, num_prompts, width, dtype=torch.float32)
        own = (residual, attended, prompt, share, weights, scale, bias, mask.to(torch.int8))
        ctx.save_for_backward(*own)
        if total.numel():
            grid = (triton.cdiv(width, UNITS), triton.cdiv(num_prompts, PROMPTS), num_images)
            sizes = (num_prompts, num_tokens, width, prompt.shape[2], PROMPTS, UNITS)
            _forward[grid](*own, total, *sizes)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        own = ctx.saved_tensors
        residual, _, prompt, *_ = own
        (num_images, num_tokens, width), num_prompts = residual.shape, prompt.shape[1]
        num_keys, blocks = prompt.shape[2], triton.cdiv(width, UNITS)

        def zeros(*shape: int) -> Tensor:
            return residual.new_zeros(shape, dtype=torch.float32)

        d_residual, d_attended = zeros(*residual.shape), zeros(*residual.shape)
        d_prompt, d_bias = zeros(*prompt.shape), zeros(num_images, width)
        d_token = zeros(blocks, num_images, num_prompts, num_tokens, 2 + num_keys)
        if num_images and num_prompts:
            sizes = (num_images, num_prompts, num_tokens, width, num_keys, PROMPTS, UNITS)
            outputs = (d_residual, d_attended, d_prompt, d_bias, d_token)
            _backward[(blocks, num_images)](*own, upstream[0].contiguous(), *outputs, *sizes)
        d_scale, d_share, *_ = (summed := d_token.sum(0)).unbind(-1)
        d_weights = summed[..., 2:]
        made = (d_residual, d_attended, d_prompt, d_share, d_weights, d_scale, d_bias.sum(0))
        return (*(gradient.to(x.dtype) for gradient, x in zip(made, own)), None)
