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
UNITS = 128  # of the hidden layer that a program works on
WARPS = 1  # that share them: sums over units then stay within a warp


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
            sums += inner * _normal(inner)[0]
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
def _normal(x):
    """The normal distribution's share below x, to 1e-7, and its density there.

    Abramowitz and Stegun 7.1.26: half as many instructions as the library's error function, which bounded
    the kernel, and the exponential serves the density too.
    """
    t = 1.0 / (1.0 + 0.23164189 * tl.abs(x))
    e = tl.exp(-0.5 * x * x)
    beyond = t * (
        0.127414796 + t * (-0.142248368 + t * (0.7107068705 + t * (-0.7265760135 + t * 0.5307027145)))
    )
    beyond = beyond * e
    return tl.where(x > 0, 1.0 - beyond, beyond), 0.3989422804014327 * e


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
                share_below, density = _normal(inner)
                d = g * (share_below + inner * density)
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


@torch.library.custom_op("open_cloc::gelu_sum", mutates_args=())
def gelu_sum_triton(
    residual: Tensor,
    attended: Tensor,
    prompt: Tensor,
    share: Tensor,
    weights: Tensor,
    scale: Tensor,
    bias: Tensor,
    mask: Tensor,
) -> Tensor:
    """Arguments and result as those of `gelu_sum`; sums in float32.

    An operation of torch's own, so that compiled code calls it as it is and fuses what stands around it.
    """
    inputs = [x.contiguous() for x in (residual, attended, prompt, share, weights, scale, bias)]
    (num_images, num_tokens, width), (num_prompts, num_keys) = residual.shape, prompt.shape[1:3]
    total = residual.new_empty(num_images, num_prompts, width, dtype=torch.float32)
    if total.numel():
        grid = (triton.cdiv(width, UNITS), triton.cdiv(num_prompts, PROMPTS), num_images)
        sizes = (num_prompts, num_tokens, width, num_keys, PROMPTS, UNITS)
        _forward[grid](*inputs, mask.to(torch.int8), total, *sizes, num_warps=WARPS)
    return total


@torch.library.custom_op("open_cloc::gelu_sum_gradients", mutates_args=())
def _gradients(
    residual: Tensor,
    attended: Tensor,
    prompt: Tensor,
    share: Tensor,
    weights: Tensor,
    scale: Tensor,
    bias: Tensor,
    mask: Tensor,
    upstream: Tensor,
) -> list[Tensor]:
    """Gradients of all inputs but the mask, in their order."""
    inputs = [x.contiguous() for x in (residual, attended, prompt, share, weights, scale, bias)]
    (num_images, num_tokens, width), (num_prompts, num_keys) = residual.shape, prompt.shape[1:3]
    blocks = triton.cdiv(width, UNITS)

    def zeros(*shape: int) -> Tensor:
        return residual.new_zeros(shape, dtype=torch.float32)

    # Where few prompts are one turn of the kernel, nothing is added to what it has written.
    in_turns = torch.float32 if num_prompts > PROMPTS else residual.dtype
    d_residual, d_attended = (residual.new_zeros(residual.shape, dtype=in_turns) for _ in range(2))
    d_prompt, d_bias = zeros(*prompt.shape), zeros(num_images, width)
    d_token = zeros(blocks, num_images, num_prompts, num_tokens, 2 + num_keys)
    if num_images and num_prompts:
        sizes = (num_images, num_prompts, num_tokens, width, num_keys, PROMPTS, UNITS)
        outputs = (d_residual, d_attended, d_prompt, d_bias, d_token)
        _backward[(blocks, num_images)](
            *inputs, mask.to(torch.int8), upstream.contiguous(), *outputs, *sizes, num_warps=WARPS
        )
    d_token = d_token.sum(0)  # (B, R, N, 2 + K)
    parts = (d_token[..., 0], d_token[..., 1], d_token[..., 2:])
    d_scale, d_share, d_weights = (part.clone(memory_format=torch.contiguous_format) for part in parts)
    made = (d_residual, d_attended, d_prompt, d_share, d_weights, d_scale, d_bias.sum(0))
    return [gradient.to(x.dtype) for gradient, x in zip(made, inputs)]


@gelu_sum_triton.register_fake
def _(residual: Tensor, attended: Tensor, prompt: Tensor, *rest: Tensor) -> Tensor:
    return residual.new_empty(residual.shape[0], prompt.shape[1], residual.shape[2], dtype=torch.float32)


@_gradients.register_fake
def _(*inputs: Tensor) -> list[Tensor]:
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs[:7]]


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    return (*_gradients(*ctx.saved_tensors, upstream), None)


gelu_sum_triton.register_autograd(_differentiate, setup_context=_keep)
