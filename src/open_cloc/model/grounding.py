"""From a phrase to its box: the box head's answer, and candidate boxes ranked by their own region embeddings.

The box head learns last, while region embeddings match phrases early. So a grid of boxes is embedded once per
image, each phrase takes the best of them, and looks around those in ever finer steps for a better one.

Shapes: B images, P phrases per image, K boxes of the grid, M boxes in the running of one phrase, D shared
embedding.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from open_cloc.model.cloc import CLOC, ImageState
from open_cloc.model.embed import embed_regions

CANDIDATES = 600  # default size of the grid, at most
SIZES = (0.16, 0.22, 0.31, 0.44, 0.62, 0.86)  # square root of a candidate's area, relative to the picture
ASPECTS = (0.5, 1.0, 2.0)  # width over height, relative to the picture's
TOP = 4  # boxes per phrase that stay in the running
STEPS = (0.16, 0.08, 0.04)  # how far a side moves in each round, relative to the box
# What a round tries with each box, in steps: one side in or out, the whole box moved, grown or shrunk.
SIDES = [[0, 0, 0, 0]] + [[sign * (i == j) for j in range(4)] for i in range(4) for sign in (-1, 1)]
MOVES = [
    *SIDES,
    *([s, 0, s, 0] for s in (-1, 1)),
    *([0, s, 0, s] for s in (-1, 1)),
    *([s, s, -s, -s] for s in (-1, 1)),
]


class GroundedBoxes(NamedTuple):
    """Where the phrases are.

    Attributes:
        boxes: (B, P, 4) normalised `xyxy` of the canvas, inside the picture.
        scores: (B, P) cosine similarity of each box's own region embedding and its phrase.
    """

    boxes: Tensor
    scores: Tensor


def ground_phrases(
    model: CLOC,
    state: ImageState,
    text_features: Tensor,
    content_boxes: Tensor,
    candidates: int = CANDIDATES,
) -> GroundedBoxes:
    """Find the box of each phrase.

    Args:
        model: In eval mode.
        state: Of B images.
        text_features: (B, P, D) of unit length.
        content_boxes: (B, 4) normalised `xyxy` of the pictures inside their canvases; no box leaves them.
        candidates: Size of the grid of boxes that competes with the box head's, at most; 0 takes the box
            head's answer as it is.

    Raises:
        ValueError: If `candidates` is negative.
    """
    if candidates < 0:
        raise ValueError(f"candidates must be at least 0; got {candidates}")
    low, high = content_boxes[:, None, :2], content_boxes[:, None, 2:]  # (B, 1, 2)
    head = _inside(model.ground(state, text_features).float(), low, high)[:, :, None]  # (B, P, 1, 4)
    running = _Running(head, _match(model, state, head, text_features))
    if candidates:
        grid = _place(candidate_grid(candidates).to(head), low, high)  # (B, K, 4)
        scores = text_features @ embed_regions(model, state, grid).transpose(1, 2)  # (B, P, K)
        grid = grid[:, None].expand(-1, scores.shape[1], -1, -1)  # (B, P, K, 4)
        running = running.best(grid, scores, TOP)
        for step in STEPS:
            moved = _inside(_moved(running.boxes, step), low[:, None], high[:, None])
            running = running.best(moved, _match(model, state, moved, text_features), TOP)
    return GroundedBoxes(running.boxes[:, :, 0], running.scores[:, :, 0])


class _Running(NamedTuple):
    """Boxes (B, P, M, 4) and scores (B, P, M) of those still in the running, best first."""

    boxes: Tensor
    scores: Tensor

    def best(self, boxes: Tensor, scores: Tensor, count: int) -> _Running:
        """The best of these and others."""
        boxes, scores = torch.cat([self.boxes, boxes], dim=2), torch.cat([self.scores, scores], dim=2)
        scores, order = scores.sort(dim=2, descending=True, stable=True)
        order = order[:, :, :count, None].expand(-1, -1, -1, 4)
        return _Running(boxes.gather(2, order), scores[:, :, :count])


@lru_cache(maxsize=8)
def candidate_grid(limit: int) -> Tensor:
    """Boxes of several sizes and shapes all over the unit square, the same stride relative to each.

    Args:
        limit: Most boxes; the finest stride that keeps within it is taken.

    Returns:
        (K, 4) normalised `xyxy`, K <= limit, largest boxes first.
    """
    stride = next(s for s in torch.arange(0.05, 64, 0.01).tolist() if _grid_size(s) <= limit or s > 63)
    boxes = [box for size in reversed(SIZES) for aspect in ASPECTS for box in _sliding(size, aspect, stride)]
    return torch.tensor(boxes[:limit], dtype=torch.float32)


def _grid_size(stride: float) -> int:
    return sum(len(_sliding(size, aspect, stride)) for size in SIZES for aspect in ASPECTS)


def _sliding(size: float, aspect: float, stride: float) -> list[tuple[float, float, float, float]]:
    """Boxes of one size and shape, their positions evenly spread from edge to edge."""
    width, height = min(1.0, size * math.sqrt(aspect)), min(1.0, size / math.sqrt(aspect))
    columns, rows = (math.ceil((1 - side) / (stride * side)) + 1 for side in (width, height))
    xs = [(1 - width) * (i / max(columns - 1, 1) if columns > 1 else 0.5) for i in range(columns)]
    ys = [(1 - height) * (i / max(rows - 1, 1) if rows > 1 else 0.5) for i in range(rows)]
    return [(x, y, x + width, y + height) for y in ys for x in xs]


def _place(boxes: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Boxes (K, 4) of the unit square -> (B, K, 4) in the same place of each picture."""
    return boxes * (high - low).repeat(1, 1, 2) + low.repeat(1, 1, 2)


def _inside(boxes: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Clip boxes to the picture on the canvas."""
    return torch.cat([torch.clamp(boxes[..., i : i + 2], low, high) for i in (0, 2)], dim=-1)


def _moved(boxes: Tensor, step: float) -> Tensor:
    """Boxes (B, P, M, 4) -> (B, P, M * len(MOVES), 4), each moved in all ways that a round tries."""
    sides = (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 1, 2)  # (B, P, M, 4)
    moves = step * boxes.new_tensor(MOVES)  # (len(MOVES), 4)
    return (boxes[..., None, :] + moves * sides[..., None, :]).flatten(2, 3)


def _match(model: CLOC, state: ImageState, boxes: Tensor, text_features: Tensor) -> Tensor:
    """Cosine of boxes (B, P, M, 4) with their phrases (B, P, D) -> (B, P, M)."""
    regions = embed_regions(model, state, boxes.flatten(1, 2)).unflatten(1, boxes.shape[1:3])  # (B, P, M, D)
    return torch.einsum("bpmd,bpd->bpm", regions, text_features)
