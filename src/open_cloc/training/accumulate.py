"""Gradient accumulation that is right for contrastive losses (GradCache).

A contrastive loss compares every image of a batch with every text, so the loss of a part is no part of the
loss. Here the features of all parts are computed without a graph, the loss is taken once on all of them, and
each part is then computed again with a graph, to carry its features' gradients on to the weights. Of m parts
only the last is computed once, so the price is (m - 1) / m of a forward pass; memory is one part's. The
gradients are the whole batch's, `logit_scale`'s included.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from open_cloc.samples import Features, RegionBatch

NOT_PER_IMAGE = ("texts", "text_lengths", "bad")  # fields of RegionBatch
SCALARS = ("logit_scale", "logit_bias")  # fields of Features
PER_TEXT = ("texts", "text_lengths")


def split_batch(batch: RegionBatch, parts: int) -> list[RegionBatch]:
    """Cut a batch into equal parts, each with the texts that its own images need.

    Args:
        batch: On the CPU, where finding a part's texts costs nothing.
        parts: Divides the number of images.
    """
    if parts == 1:
        return [batch]
    size = len(batch.images) // parts
    return [_cut(batch, slice(start, start + size)) for start in range(0, len(batch.images), size)]


def _cut(batch: RegionBatch, rows: slice) -> RegionBatch:
    per_image: dict[str, Any] = {
        f.name: value[rows]
        for f in fields(batch)
        if f.name not in NOT_PER_IMAGE and (value := getattr(batch, f.name)) is not None
    }
    captions, regions = per_image["caption_index"], per_image["region_text_index"]
    # Their order is kept: texts are sorted by length. Missing captions read row 0, hence the clamp.
    used, place = torch.unique(torch.cat([captions, regions.flatten()]).clamp(min=0), return_inverse=True)
    per_image["caption_index"] = torch.where(captions < 0, captions, place[: len(captions)])
    per_image["region_text_index"] = place[len(captions) :].view_as(regions)
    lengths = tuple(batch.text_lengths[row] for row in used.tolist()) if batch.text_lengths else ()
    return replace(batch, **per_image, texts=batch.texts[used], text_lengths=lengths)


def seed_step(seed: int, step: int, rank: int, part: int = 0) -> None:
    """Make random numbers (dropout, dropped layers) a function of their place in the run.

    So a part's second pass repeats its first, and a resumed run needs no saved random state.
    """
    drawn = np.random.SeedSequence([seed, step, rank, part]).generate_state(1, np.uint64)
    torch.manual_seed(int(drawn[0] >> np.uint64(1)))


@dataclass
class Forward:
    """The forward pass of one step, whole or in parts.

    Attributes:
        network: The model, or what spreads it over ranks.
        parts: The batch, on the model's device.
        bf16: Autocast to bfloat16.
        place: (seed, step, rank), which fix the random numbers.
        kept: The last part's features with their graph, which need no second pass.
    """

    network: nn.Module
    parts: list[RegionBatch]
    bf16: bool
    place: tuple[int, int, int]
    kept: Features | None = None

    def features(self) -> Features:
        """Features of the whole batch: with their graph for one part, else leaves that collect gradients."""
        if len(self.parts) == 1:
            return self._run(0)
        *others, last = range(len(self.parts))
        with torch.no_grad():
            made = [self._run(part) for part in others]
        with self._without_reduction():
            self.kept = self._run(last)
        return _as_leaves(_join([*made, self.kept]))

    def backward(self, leaves: Features) -> None:
        """After the loss's backward pass: carry the leaves' gradients on to the weights, part by part."""
        if len(self.parts) == 1:
            return
        assert self.kept is not None
        *others, last = range(len(self.parts))
        with self._without_reduction():
            self._carry(leaves, self.kept, last)
        self.kept = None  # its graph is gone before the next one is made
        for part in others:
            if part < others[-1]:
                with self._without_reduction():
                    self._carry(leaves, self._run(part), part)
            else:
                self._carry(leaves, self._run(part), part, with_scalars=True)

    def _carry(self, leaves: Features, made: Features, part: int, *, with_scalars: bool = False) -> None:
        size = len(self.parts[0].images)
        rows = slice(part * size, (part + 1) * size)
        outputs, gradients = [], []
        for name, output in _learning(made, with_scalars=with_scalars).items():
            gradient = getattr(leaves, name).grad
            if gradient is not None:
                outputs.append(output)
                gradients.append(gradient if name in SCALARS else gradient[rows])
        torch.autograd.backward(outputs, gradients)

    def _run(self, part: int) -> Features:
        seed_step(*self.place, part)
        batch = self.parts[part]
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=self.bf16):
            return self.network(batch)

    def _without_reduction(self) -> Any:
        """DDP sums the parts' gradients on each rank, then reduces them once with the last part's.

        FSDP reduces each part's: keeping them whole until the last would take the memory that it saves.
        """
        return self.network.no_sync() if isinstance(self.network, DistributedDataParallel) else nullcontext()


def _join(made: list[Features]) -> Features:
    """Parts' features one below the other; the scale and the bias are the same in all."""
    joined: dict[str, Any] = {
        f.name: torch.cat([getattr(part, f.name) for part in made])
        for f in fields(Features)
        if f.name not in SCALARS and isinstance(getattr(made[0], f.name), Tensor)
    }
    return replace(made[0], **joined)


def _as_leaves(features: Features) -> Features:
    leaves: dict[str, Any] = {
        f.name: value.detach().requires_grad_()
        for f in fields(features)
        if isinstance(value := getattr(features, f.name), Tensor) and value.is_floating_point()
    }
    return replace(features, **leaves)


def _learning(features: Features, *, with_scalars: bool) -> dict[str, Tensor]:
    """The features that depend on weights; scale and bias in one part only, or they would count m times."""
    return {
        f.name: value
        for f in fields(features)
        if isinstance(value := getattr(features, f.name), Tensor)
        and value.requires_grad
        and (with_scalars or f.name not in SCALARS)
    }
