"""Gradient accumulation that is right for contrastive losses (GradCache).

A contrastive loss compares every image of a batch with every text, so the loss of a part is no part of the
loss. Here the features of all parts are computed without a graph, the loss is taken once on all of them, and
each part is then computed again with a graph, to carry its features' gradients on to the weights. Of m parts
only the last is computed once, so the price is (m - 1) / m of a forward pass; memory is one part's. The
gradients are the whole batch's, `logit_scale`'s included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from open_cloc.objectives.teacher import Teacher
from open_cloc.packing import pack_texts
from open_cloc.precision import Precision, autocast
from open_cloc.samples import Features, RegionBatch, map_tensors
from open_cloc.training.gather import Begun

NOT_PER_IMAGE = ("texts", "text_lengths", "packing", "bad")  # fields of RegionBatch
SCALARS = ("logit_scale", "logit_bias")  # fields of Features


def split_batch(batch: RegionBatch, parts: int) -> list[RegionBatch]:
    """Cut a batch into equal parts, each with the texts that its own images need.

    Args:
        batch: A batch on the CPU, where finding a part's texts costs nothing.
        parts: Divides the number of images.
    """
    if parts == 1:
        return [batch]
    size = len(batch.images) // parts
    return [_cut(batch, slice(start, start + size)) for start in range(0, len(batch.images), size)]


def _cut(batch: RegionBatch, rows: slice) -> RegionBatch:
    per_image: dict[str, Any] = {
        f.name: map_tensors(getattr(batch, f.name), lambda tensor: tensor[rows])
        for f in fields(batch)
        if f.name not in (*NOT_PER_IMAGE, "keys")
    }
    indices = [per_image["caption_index"], per_image["region_text_index"], *per_image["role_index"].values()]
    # Their order is kept: texts are sorted by length. Missing texts read row 0, hence the clamp.
    flat = torch.cat([index.flatten() for index in indices])
    used, place = torch.unique(flat.clamp(min=0), return_inverse=True)
    moved = torch.where(flat < 0, flat, place).split([index.numel() for index in indices])
    captions, regions, *roles = (new.view_as(old) for new, old in zip(moved, indices))
    per_image |= {"caption_index": captions, "region_text_index": regions}
    per_image["role_index"] = dict(zip(per_image["role_index"], roles))
    lengths = tuple(batch.text_lengths[row] for row in used.tolist()) if batch.text_lengths else ()
    packing = pack_texts(lengths, batch.texts.shape[1]) if batch.packing is not None else None
    per_image |= {"keys": batch.keys[rows], "texts": batch.texts[used]}
    return replace(batch, **per_image, text_lengths=lengths, packing=packing)


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
        needs: Paths of `Features` that the model computes.
        teacher: Computes its own of them, where there is one.
        precision: How its products are computed.
        place: (seed, step, rank), which fix the random numbers.
        kept: The last part's features with their graph, which need no second pass.
    """

    network: nn.Module
    parts: list[RegionBatch]
    needs: frozenset[str]
    teacher: Teacher | None
    precision: Precision
    place: tuple[int, int, int]
    kept: Features | None = None

    def features(self, begun: Begun | None = None) -> Features:
        """Features of the whole batch: with their graph for one part, else leaves that collect gradients.

        Args:
            begun: Takes the texts of a batch in one part as soon as they are encoded.
        """
        return self._with_teacher(self._student_features(begun))

    def _student_features(self, begun: Begun | None) -> Features:
        if len(self.parts) == 1:
            return self._run(0, begun)
        *others, last = range(len(self.parts))
        with torch.no_grad():
            made = [self._run(part) for part in others]
        with self._without_reduction():
            self.kept = self._run(last)
        return _as_leaves(_join([*made, self.kept]))

    def _with_teacher(self, features: Features) -> Features:
        if self.teacher is None:
            return features
        with self._autocast():
            made = [self.teacher(part, self.needs) for part in self.parts]
        return replace(features, teacher=_join(made))

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
        outputs, gradients, given = [], [], leaves.tensors()
        for name, output in _learning(made, with_scalars=with_scalars).items():
            gradient = given[name].grad
            if gradient is not None:
                outputs.append(output)
                # A part's caption tokens may be fewer than those of the longest part.
                own = gradient if name in SCALARS else gradient[rows]
                gradients.append(own[:, : output.shape[1]] if output.ndim > 1 else own)
        torch.autograd.backward(outputs, gradients)

    def _run(self, part: int, begun: Begun | None = None) -> Features:
        seed_step(*self.place, part)
        with self._autocast():
            return self.network(self.parts[part], self.needs, begun.begin if begun else None)

    def _autocast(self) -> torch.autocast:
        return autocast(self.precision, self.parts[0].images.device)

    def _without_reduction(self) -> Any:
        """DDP sums the parts' gradients on each rank, then reduces them once with the last part's.

        FSDP reduces each part's: keeping them whole until the last would take the memory that it saves.
        """
        return self.network.no_sync() if isinstance(self.network, DistributedDataParallel) else nullcontext()


def _join(made: list[Features]) -> Features:
    """Parts' features one below the other; the scale and the bias are the same in all."""
    parts = [features.tensors() for features in made]
    return made[0].put(
        {
            path: torch.cat([_as_long(part, path, parts) for part in parts])
            for path in parts[0]
            if path not in SCALARS
        }
    )


def _as_long(part: Mapping[str, Tensor], path: str, parts: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Caption tokens (B, T, ...), as many as a part's longest, padded to the longest of all parts."""
    tensor = part[path]
    if not path.rpartition(".")[2].startswith("text_token"):
        return tensor
    longest = max(other[path].shape[1] for other in parts)
    room = tensor.new_zeros(len(tensor), longest - tensor.shape[1], *tensor.shape[2:])
    return torch.cat([tensor, room], dim=1)


def _as_leaves(features: Features) -> Features:
    return features.put(
        {p: t.detach().requires_grad_() for p, t in features.tensors().items() if t.is_floating_point()}
    )


def _learning(features: Features, *, with_scalars: bool) -> dict[str, Tensor]:
    """The features that depend on weights; scale and bias in one part only, or they would count m times."""
    return {
        path: tensor
        for path, tensor in features.tensors().items()
        if tensor.requires_grad and (with_scalars or path not in SCALARS)
    }
