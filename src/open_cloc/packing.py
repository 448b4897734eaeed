"""Texts of a batch in rows of one length, several behind each other, so that hardly any padding is computed.

A text sees itself alone: attention is masked to it, and its positions start anew. So a text gets the features
that it would get by itself, and a batch makes one pass of a shape from a small set.

Shapes: U texts, T tokens of the longest, P rows, L tokens of a row.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ROW = (
    80  # tokens of a row, or a multiple of it where a text is longer: attention's kernels like multiples of 8
)
NOTHING = -1


def pack_texts(lengths: Sequence[int], width: int) -> Tensor:
    """Pack texts, the longest first, each into a row's rest or a new row; the same for the same lengths.

    Args:
        lengths: Tokens of each text that count, at least 1.
        width: T, columns of the texts' token ids.

    Returns:
        (P, L) int32, which of the U * T tokens stands at each place, -1 where none does. One small tensor, as
        each that a worker hands over costs time.
    """
    length = ROW * -(-max(lengths, default=1) // ROW)
    places, num_rows = _fill_rows(lengths, length)
    num_rows = _rounded(num_rows)
    counts = np.asarray(lengths, dtype=np.int64)
    text = np.repeat(np.arange(len(counts)), counts)  # of each token
    position = np.arange(len(text)) - np.repeat(counts.cumsum() - counts, counts)
    rows = np.full(num_rows * length, NOTHING, dtype=np.int32)
    rows[np.asarray(places, dtype=np.int64)[text] + position] = text * width + position
    return torch.from_numpy(rows).view(num_rows, length)


@dataclass(frozen=True)
class Packed:
    """What packed rows say of texts.

    Attributes:
        source: (P, L) int64 which of the U * T tokens stands at each place; any where none does.
        position: (P, L) its place in its text; 0 where there is none.
        text: (P, L) its text; U where there is none.
        first: (U,) the place of each text's first token among P * L.
    """

    source: Tensor
    position: Tensor
    text: Tensor
    first: Tensor


def unpack(rows: Tensor, count: int, width: int) -> Packed:
    """Read rows of `pack_texts` on their device; (U, T) is the shape of the token ids."""
    is_token = rows >= 0
    source = rows.clamp(min=0).long()
    position = source % width
    text = torch.where(is_token, source // width, count)
    starting = torch.where(is_token & (position == 0), text, count).flatten()
    places = torch.arange(len(starting), device=rows.device)
    first = torch.zeros(count + 1, dtype=torch.int64, device=rows.device).scatter_(0, starting, places)
    return Packed(source, position, text, first[:count])


def _fill_rows(lengths: Sequence[int], length: int) -> tuple[list[int], int]:
    """The place of each text's first token, and how many rows there are."""
    waiting: dict[int, list[int]] = defaultdict(list)
    for index in range(len(lengths) - 1, -1, -1):
        waiting[lengths[index]].append(index)
    sizes, places, row = sorted(waiting), [0] * len(lengths), 0
    while sizes:
        room = length
        while fitting := bisect_right(sizes, room):
            size = sizes[fitting - 1]
            places[waiting[size].pop()] = row * length + length - room
            room -= size
            if not waiting[size]:
                del sizes[fitting - 1]
        row += 1
    return places, row


def _rounded(rows: int) -> int:
    """A multiple of a sixteenth of the power of two below, so that few shapes occur in a run; at least 1."""
    step = max(1, 1 << max(0, rows.bit_length() - 1) >> 4)
    return max(1, -(-rows // step)) * step
