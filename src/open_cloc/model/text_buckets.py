"""Texts of like length go through the text tower together, so that little padding is computed.

Exact wherever a text tower's `padding_id` says that padding never reaches a feature.

What is cheapest differs by device. A CPU computes tokens: many passes, each just as long as it must be. A GPU
starts kernels, and its attention is planned anew for each new shape: few passes, of shapes from a small set.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Passes:
    """How a batch's texts are cut into passes.

    Attributes:
        count: Passes, whatever the batch holds: ranks that shard the text tower must make equally many.
        tokens: The length of a text is a multiple of it, or the context.
        least_texts: Of fewer texts a pass is filled up to so many, and beyond that to a multiple of a quarter
            of the power of two above; 1 leaves numbers as they are.
    """

    count: int
    tokens: int = 1
    least_texts: int = 1

    def texts(self, count: int) -> int:
        """Texts of a pass that holds so many real ones."""
        if self.least_texts == 1:
            return count
        step = max(self.least_texts, 1 << max(0, count - 1).bit_length() >> 2)
        return max(1, -(-count // step)) * step

    def length(self, length: int, context: int) -> int:
        """Tokens of a pass whose longest text has so many."""
        return max(length, min(context, -(-length // self.tokens) * self.tokens))


BY_DEVICE = {"cpu": Passes(4)}
ON_ACCELERATORS = Passes(2, tokens=8, least_texts=32)


def passes_on(device: torch.device) -> Passes:
    """How texts are cut on a device."""
    return BY_DEVICE.get(device.type, ON_ACCELERATORS)


class Bucket(NamedTuple):
    """Texts of one pass.

    Attributes:
        real: How many texts it has.
        texts: How many it is filled up to.
        length: Tokens of each.
    """

    real: int
    texts: int
    length: int


def split_by_length(lengths: Sequence[int], passes: Passes, context: int) -> tuple[Bucket, ...]:
    """Cut texts, sorted by length, into buckets with the fewest tokens after padding.

    Args:
        lengths: Tokens of each text, ascending.
        passes: How many buckets, and what their shapes may be.
        context: Most tokens that the text tower reads.

    Returns:
        `passes.count` buckets in the texts' order; the first ones may be empty.
    """
    counts = Counter(passes.length(length, context) for length in lengths)
    return _cheapest(tuple(counts), tuple(counts.values()), passes)


@lru_cache(maxsize=16)
def _cheapest(lengths: tuple[int, ...], counts: tuple[int, ...], passes: Passes) -> tuple[Bucket, ...]:
    """Dynamic programming over the distinct lengths: what the first i of them cost at least in k buckets."""
    upto = [0]
    for count in counts:
        upto.append(upto[-1] + count)
    empty = Bucket(0, passes.texts(0), passes.tokens)
    nothing: tuple[Bucket, ...] = ()
    best = [(0.0, nothing)] + [(math.inf, nothing)] * len(lengths)
    for _ in range(passes.count):
        extended = [(best[0][0], (*best[0][1], empty))]
        for i in range(1, len(best)):
            length = lengths[i - 1]
            choices = ((best[j][0] + _texts(passes, upto[i] - upto[j]) * length, j) for j in range(i + 1))
            cost, j = min(choices)
            count = upto[i] - upto[j]
            extended.append((cost, (*best[j][1], Bucket(count, passes.texts(count), length))))
        best = extended
    return best[-1][1]


def _texts(passes: Passes, count: int) -> int:
    return passes.texts(count) if count else 0


def fill(token_ids: Tensor, bucket: Bucket, pad_id: int | None) -> Tensor:
    """A bucket's texts with as many copies of the first, and as much padding, as its shape asks for.

    Copies, not blanks: a text without a token is no number in towers that mask padding.

    Args:
        token_ids: (U, T), the bucket's texts first; at least one.
        bucket: What of them is wanted.
        pad_id: The token that texts are padded with; None where they have their whole length.

    Returns:
        (`bucket.texts`, `bucket.length`); at least one text.
    """
    own = token_ids[: max(1, bucket.real), : bucket.length]
    if own.shape[1] < bucket.length and pad_id is not None:
        own = F.pad(own, (0, bucket.length - own.shape[1]), value=pad_id)
    missing = bucket.texts - len(own)
    return torch.cat([own, own[:1].expand(missing, -1)]) if missing > 0 else own
