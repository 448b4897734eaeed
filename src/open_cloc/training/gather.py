"""What ranks exchange in a step.

`gather` hands every rank what the run's objectives want of the world. For the paper's that is all texts, and
nothing else of n x D elements moves: each rank's images and regions meet all texts where they are. With n
pairs of width D in the world that is n D words forward and, as a reduce-scatter, n D words backward.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from open_cloc.samples import Features, World

# What the paper's terms meet of the world: every text, and which regions there are.
PAPER_GATHERED = frozenset(
    {"text_features", "caption_mask", "region_text_features", "region_mask", "region_text_ids"}
)

# Of those, what is there before the pictures are encoded.
TEXTS = ("text_features", "region_text_features")


def gather(features: Features, paths: Collection[str] = PAPER_GATHERED) -> Features:
    """As `gather_with_notes`, where ranks have nothing else to tell each other."""
    return gather_with_notes(features, paths, torch.zeros(0, dtype=torch.int64))[0]


def gather_with_notes(
    features: Features, paths: Collection[str], notes: Tensor, begun: Begun | None = None
) -> tuple[Features, Tensor]:
    """Features of which some are the world's; the step's only gather.

    Args:
        features: Features of this rank's B images, R regions each; B and R are the same on every rank. Any
            number of regions and captions may be masked.
        paths: Names of what must be the world's. Caption tokens are padded to the longest of all ranks.
        notes: Whole numbers that travel with the masks; on the CPU.
        begun: What is on its way already.

    Returns:
        The features, and the notes' sums over ranks. Both arguments if there is one process.
    """
    if is_alone():
        return features, notes
    own = {path: _one_length(path, t) for path, t in features.tensors().items() if path in paths}
    whole = {path: tensor for path, tensor in own.items() if not tensor.is_floating_point()}
    made: dict[str, Tensor] = {
        path: _Gather.apply(tensor, begun.take(path) if begun else None)
        for path, tensor in own.items()
        if path not in whole
    }
    count = len(next(iter(own.values()))) if own else 0
    world = World(dist.get_rank() * count, count, _Sum.apply, _max)
    numbers, summed = _gather_whole_numbers(whole, notes.to(_device(features), non_blocking=True), count)
    return replace(features.put(made | numbers), world=world, gathered=frozenset(own)), summed


def _device(features: Features) -> torch.device:
    return next(iter(features.tensors().values())).device


def _one_length(path: str, tensor: Tensor) -> Tensor:
    """Caption tokens (B, T, ...) padded to the longest T of all ranks; anything else as it is."""
    if not path.rpartition(".")[2].startswith("text_token"):
        return tensor
    longest = int(_max(torch.tensor(tensor.shape[1], device=tensor.device)))
    room = tensor.new_zeros(len(tensor), longest - tensor.shape[1], *tensor.shape[2:])
    return torch.cat([tensor, room], dim=1)


def _gather_whole_numbers(
    own: dict[str, Tensor], notes: Tensor, count: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Masks and ids of all ranks and the sums of their notes, by one collective for all of them."""
    rows = notes.new_zeros(max(1, count), len(notes))
    rows[0] = notes
    columns = [
        tensor.flatten(1).long() if tensor.ndim > 1 else tensor[:, None].long()
        for tensor in (*own.values(), rows)
    ]
    *parts, told = _all_gather(torch.cat(columns, dim=1)).split([part.shape[1] for part in columns], dim=1)
    made = {
        path: part.reshape(len(part), *tensor.shape[1:]).to(tensor.dtype)
        for part, (path, tensor) in zip(parts, own.items())
    }
    return made, told.sum(0)


class Begun:
    """Gathers of text features, begun while the image tower runs.

    Args:
        paths: Names of what must be the world's.
    """

    def __init__(self, paths: Collection[str]) -> None:
        self.paths = [path for path in TEXTS if path in paths]
        self._coming: dict[str, tuple[Tensor, Tensor, Any]] = {}

    def begin(self, features: Features) -> None:
        """Called by the model when its texts are encoded."""
        if not is_alone():
            self._coming = {path: self._send(*features.take(path)) for path in self.paths}

    @staticmethod
    def _send(tensor: Tensor) -> tuple[Tensor, Tensor, Any]:
        own = tensor.detach().contiguous()
        room = own.new_empty(len(own) * dist.get_world_size(), *own.shape[1:])
        return own, room, dist.all_gather_into_tensor(room, own, async_op=True) if own.numel() else None

    def take(self, path: str) -> Tensor | None:
        """(G, ..., D) what was begun under this name; None if nothing was."""
        if path not in self._coming:
            return None
        _, gathered, work = self._coming.pop(path)
        if work is not None:
            work.wait()
        return gathered


def is_alone() -> bool:
    """Whether there is one process."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1


class _Gather(torch.autograd.Function):
    """(B, ..., D) of this rank -> (G, ..., D) of all ranks; gradients are summed over ranks.

    Sent in the features' own type, returned in float32 or wider: gradients are not summed in bfloat16.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, begun: Tensor | None) -> Tensor:
        ctx.dtype = features.dtype
        gathered = _all_gather(features) if begun is None else begun
        return gathered.to(torch.promote_types(features.dtype, torch.float32))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        share = gradient.new_empty(len(gradient) // dist.get_world_size(), *gradient.shape[1:])
        if share.numel():
            dist.reduce_scatter_tensor(share, gradient.contiguous())
        return share.to(ctx.dtype), None


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
