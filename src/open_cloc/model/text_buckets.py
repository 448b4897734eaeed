"""Texts of like length go through the text tower together, so that little padding is computed.

Exact wherever a text tower's `padding_id` says that padding never reaches a feature.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

# Always as many passes, whatever the batch holds: ranks that shard the text tower must make equally many.
NUM_BUCKETS = 4

# (number of texts, tokens to keep of each) per bucket.
Buckets = tuple[tuple[int, int], ...]


def split_by_length(lengths: Sequence[int]) -> Buckets:
    """Cut texts, sorted by length, into buckets with the fewest tokens after padding.

    Args:
        lengths: Tokens of each text, ascending.

    Returns:
        (number of texts, tokens to keep of each) per bucket, `NUM_BUCKETS` of them in the texts' order; the
        first ones may be empty.
    """
    counts = Counter(lengths)
    return _cheapest(tuple(counts), tuple(counts.values()))


@lru_cache(maxsize=16)
def _cheapest(lengths: tuple[int, ...], counts: tuple[int, ...]) -> Buckets:
    """Dynamic programming over the distinct lengths: what the first i of them cost at least in k buckets."""
    upto = [0]
    for count in counts:
        upto.append(upto[-1] + count)
    nothing: Buckets = ()
    best = [(0.0, nothing)] + [(math.inf, nothing)] * len(lengths)
    for _ in range(NUM_BUCKETS):
        extended = [(best[0][0], (*best[0][1], (0, 1)))]  # a bucket may stay empty
        for i in range(1, len(best)):
            length = lengths[i - 1]
            choices = ((best[j][0] + (upto[i] - upto[j]) * length, j) for j in range(i + 1))
            cost, j = min(choices)
            extended.append((cost, (*best[j][1], (upto[i] - upto[j], length))))
        best = extended
    return best[-1][1]
