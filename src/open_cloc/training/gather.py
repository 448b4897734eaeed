"""What ranks exchange in a step.

`gather` hands every rank the world's texts, and nothing else of n x D elements moves: each rank's images and
regions meet all texts where they are. With n pairs of width D in the world that is n D words forward and, as
a reduce-scatter, n D words backward.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from open_cloc.samples import Features, World


def gather(features: Features) -> Features:
    """Features whose text side is the world's; the step's only gather.

    Args:
        features: Of this rank's B images, R regions each; B and R are the same on every rank. Any number of
            regions and captions may be masked.

    Returns:
        The argument if there is one process.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return features
    ids = features.region_text_ids
    # One gather for everything that is whole numbers: (B, 1 + R) or, with ids, (B, 1 + 2 R).
    own = [features.caption_mask[:, None].long(), features.region_mask.long()]
    numbers = _all_gather(torch.cat(own if ids is None else [*own, ids], dim=1))
    num_regions = features.region_mask.shape[1]
    return replace(
        features,
        text_features=_Gather.apply(features.text_features),
        caption_mask=numbers[:, 0].bool(),
        region_text_features=_Gather.apply(features.region_text_features),
        region_mask=numbers[:, 1 : 1 + num_regions].bool(),
        region_text_ids=None if ids is None else numbers[:, 1 + num_regions :],
        world=World(first=dist.get_rank() * len(features.boxes), sum=_Sum.apply, max=_max),
    )


class _Gather(torch.autograd.Function):
    """(B, ..., D) of this rank -> (G, ..., D) of all ranks; gradients are summed over ranks.

    Sent in the features' own type, returned in float32 or wider: gradients are not summed in bfloat16.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        ctx.dtype = features.dtype
        return _all_gather(features).to(torch.promote_types(features.dtype, torch.float32))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        share = gradient.new_empty(len(gradient) // dist.get_world_size(), *gradient.shape[1:])
        if share.numel():
            dist.reduce_scatter_tensor(share, gradient.contiguous())
        return share.to(ctx.dtype)


class _Sum(torch.autograd.Function):
    """The sum over ranks. Its gradient, equal on all ranks, goes back `world_size` times (see `World`)."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _all_reduce(tensor, dist.ReduceOp.SUM)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * dist.get_world_size()


def _max(tensor: Tensor) -> Tensor:
    return _all_reduce(tensor.detach(), dist.ReduceOp.MAX)


def _all_gather(tensor: Tensor) -> Tensor:
    gathered = tensor.new_empty(len(tensor) * dist.get_world_size(), *tensor.shape[1:])
    if tensor.numel():
        dist.all_gather_into_tensor(gathered, tensor.contiguous())
    return gathered


def _all_reduce(tensor: Tensor, operation: Any) -> Tensor:
    tensor = tensor.clone(memory_format=torch.contiguous_format)
    if tensor.numel():
        dist.all_reduce(tensor, operation)
    return tensor
