"""From a phrase to its box: the box head's answer, or candidate boxes ranked by their own region embeddings.

The box head learns last, while region embeddings match phrases early. So a grid of boxes is embedded once for
an image, each phrase takes the mean of the best ones that agree with each other, and again of boxes near it,
and last of that and the box head's. The single best match is usually a tight piece of the thing: hence the
mean, and a slight preference for larger boxes. `docs/log/` has the numbers.

Shapes: B images, P phrases per image, K candidate boxes, D shared embedding.
"""

from __future__ import annotations

import itertools
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import nms

from open_cloc.boxes import iou
from open_cloc.errors import UserError
from open_cloc.model.cloc import CLOC, ImageState
from open_cloc.model.embed import embed_regions

# Labels name it: it changes wherever the same model would find other boxes.
VERSION = "ranked/2"

# Most boxes of the grid, by default.
CANDIDATES = 600

# Square roots of the candidates' areas, relative to the picture.
SIZES = (0.16, 0.22, 0.31, 0.44, 0.62, 0.86)

# Width over height of the candidates, relative to the picture's.
ASPECTS = (0.5, 1.0, 2.0)

# What a box e times as large gains, in units of the grid's spread of scores.
AREA_WEIGHT = 0.07

# Overlap with the best box that gives another one a vote.
MIN_IOU = 0.25

# Of the three votes: on the grid, on the close-up, and with the box head; same units.
TEMPERATURES = (0.1, 0.05, 0.1)

# Overlap above which a next best box is another look at a better one.
APART = 0.5

# How far the sides move in the close-up, relative to the box.
CLOSE_UP = 0.25

# Every way to move the four sides in, out or not at all.
MOVES = tuple(itertools.product((-1, 0, 1), repeat=4))


class GroundedBoxes(NamedTuple):
    """Where the phrases are.

    Attributes:
        boxes: (B, P, 4) normalised `xyxy` of the canvas, inside the picture.
        scores: (B, P) cosine similarity of each box's own region embedding and its phrase.
        further: (B, P, F, 4) other boxes of the grid, best first, NaN where there are fewer; None where none
            are asked for.
    """

    boxes: Tensor
    scores: Tensor
    further: Tensor | None = None


def ground_phrases(
    model: CLOC,
    state: ImageState,
    text_features: Tensor,
    content_boxes: Tensor,
    candidates: int = CANDIDATES,
    further: int = 0,
) -> GroundedBoxes:
    """Find the box of each phrase.

    Args:
        model: A model in eval mode.
        state: Encoded images, B of them.
        text_features: (B, P, D) embeddings of the phrases, of unit length.
        content_boxes: (B, 4) normalised `xyxy` of the pictures inside their canvases; no box leaves its own.
        candidates: Size of the grid of boxes that competes with the box head's, at most; 0 takes the box
            head's answer as it is.
        further: Next best boxes to give, F, where candidates are ranked. None of them overlaps the answer, or
            a better one, by more than a half.

    Raises:
        UserError: If `candidates` is negative.
    """
    if candidates < 0:
        raise UserError(f"candidates must be at least 0; got {candidates}")
    low, high = content_boxes[:, None, :2], content_boxes[:, None, 2:]  # (B, 1, 2)
    boxes = _inside(model.ground(state, text_features).float(), low, high)  # (B, P, 4)
    others = None
    if candidates:
        boxes, grid, ranks = _search(model, state, text_features, boxes, (low, high), candidates)
        others = _next_best(boxes, grid, ranks, further) if further else None
    return GroundedBoxes(boxes, _match(model, state, boxes[:, :, None], text_features)[..., 0], others)


def _search(
    model: CLOC,
    state: ImageState,
    text_features: Tensor,
    head_boxes: Tensor,
    content: tuple[Tensor, Tensor],
    candidates: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The box on which a grid, the box head's box and a close-up agree, within (low, high).

    Returns:
        (B, P, 4) these boxes, (B, K, 4) the grid and (B, P, K) its ranks.
    """
    grid = _place(candidate_grid(candidates).to(head_boxes), *content)  # (B, K, 4)
    regions = embed_regions(model, state, {"box": grid})  # (B, K, D)
    with _full_precision(regions):
        scores = text_features @ regions.transpose(1, 2)  # (B, P, K)
    middle = scores.median(-1, keepdim=True).values
    spread = (scores.amax(-1, keepdim=True) - middle).clamp(min=1e-6)  # cosines differ from model to model
    head_boxes = head_boxes[:, :, None]  # (B, P, 1, 4)
    of_phrases = grid[:, None].expand(-1, scores.shape[1], -1, -1)
    boxes = torch.cat([head_boxes, of_phrases], dim=2)  # (B, P, 1 + K, 4)
    scores = torch.cat([_match(model, state, head_boxes, text_features), scores], dim=2)
    ranks = _rank(boxes, (scores - middle) / spread)  # (B, P, 1 + K)
    best = _vote(boxes, ranks, TEMPERATURES[0])
    near = _inside(_around(best), *(corner[:, None] for corner in content))  # (B, P, 81, 4)
    scores = _match(model, state, near, text_features)
    found = _vote(near, _rank(near, (scores - middle) / spread), TEMPERATURES[1])
    # The box head errs in other ways than the search does: where they agree, their mean is better than both.
    boxes = torch.cat([head_boxes, found[:, :, None]], dim=2)
    scores = _match(model, state, boxes, text_features)
    return _vote(boxes, _rank(boxes, (scores - middle) / spread), TEMPERATURES[2]), grid, ranks[..., 1:]


def _next_best(boxes: Tensor, grid: Tensor, ranks: Tensor, count: int) -> Tensor:
    """Of the grid (B, K, 4), for each phrase the F best beside its own box (B, P, 4): (B, P, F, 4)."""
    found = boxes.new_full((*boxes.shape[:2], count, 4), torch.nan)
    for image, phrase in itertools.product(range(boxes.shape[0]), range(boxes.shape[1])):
        rivals = torch.cat([boxes[image, phrase, None], grid[image]])  # (1 + K, 4)
        order = torch.cat([ranks.new_tensor([torch.inf]), ranks[image, phrase]])
        kept = nms(rivals.float(), order.float(), APART)[1 : 1 + count]  # the first is the answer itself
        found[image, phrase, : len(kept)] = rivals[kept]
    return found


def _rank(boxes: Tensor, scores: Tensor) -> Tensor:
    """What decides between boxes (..., 4) of these scores (...): the larger of two that match alike."""
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    return scores + AREA_WEIGHT * area.clamp(min=1e-8).log()


def _vote(boxes: Tensor, ranks: Tensor, temperature: float) -> Tensor:
    """The mean of boxes (B, P, K, 4) that overlap the best of them, weighted by their ranks (B, P, K)."""
    best = ranks.argmax(-1)[..., None, None].expand(-1, -1, -1, 4)
    apart = iou(boxes, boxes.gather(2, best)) < MIN_IOU  # never the best one itself
    apart.scatter_(2, best[..., 0], False)
    weights = (ranks / temperature).masked_fill(apart, -torch.inf).softmax(-1)
    return (weights[..., None] * boxes).sum(2)


def _match(model: CLOC, state: ImageState, boxes: Tensor, text_features: Tensor) -> Tensor:
    """Cosine of boxes (B, P, K, 4) with their phrases (B, P, D) -> (B, P, K)."""
    regions = embed_regions(model, state, {"box": boxes.flatten(1, 2)})  # (B, P * K, D)
    regions = regions.unflatten(1, boxes.shape[1:3])  # (B, P, K, D)
    with _full_precision(regions):
        return torch.einsum("bpkd,bpd->bpk", regions, text_features)


def _full_precision(tensor: Tensor) -> AbstractContextManager:
    """bf16 has steps of 0.004 at cosines near 1: too coarse to rank hundreds of boxes."""
    return torch.autocast(tensor.device.type, enabled=False)


def _around(boxes: Tensor) -> Tensor:
    """Boxes (B, P, 4) -> (B, P, 81, 4), each side moved in, out or not."""
    sides = (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2)  # (B, P, 4)
    return boxes[..., None, :] + CLOSE_UP * boxes.new_tensor(MOVES) * sides[..., None, :]


def _place(boxes: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Boxes (K, 4) of the unit square -> (B, K, 4) in the same place of each picture."""
    return boxes * (high - low).repeat(1, 1, 2) + low.repeat(1, 1, 2)


def _inside(boxes: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Clip boxes to the picture on the canvas."""
    return torch.cat([torch.clamp(boxes[..., i : i + 2], low, high) for i in (0, 2)], dim=-1)


@lru_cache(maxsize=8)
def candidate_grid(limit: int) -> Tensor:
    """Boxes of several sizes and shapes all over the unit square, the same stride relative to each.

    Args:
        limit: Most boxes; the finest stride that keeps within it is taken.

    Returns:
        (K, 4) normalised `xyxy`, K <= limit.
    """
    shapes = [
        (min(1.0, size * aspect**0.5), min(1.0, size / aspect**0.5)) for size in SIZES for aspect in ASPECTS
    ]
    # From one box per shape to more than anyone can pay.
    coarse, fine = 100.0, 0.01
    for _ in range(30):
        stride = (coarse * fine) ** 0.5
        count = sum(len(_starts(w, stride)) * len(_starts(h, stride)) for w, h in shapes)
        coarse, fine = (stride, fine) if count <= limit else (coarse, stride)
    boxes = [
        (x, y, x + width, y + height)
        for width, height in reversed(shapes)
        for y in _starts(height, coarse)
        for x in _starts(width, coarse)
    ]
    return torch.tensor(boxes[:limit], dtype=torch.float32)


def _starts(side: float, stride: float) -> list[float]:
    """Where boxes of this side begin, spread evenly from edge to edge of [0, 1]; one alone stands central."""
    count = 1 + round((1 - side) / (stride * side))
    if count == 1:
        return [(1 - side) / 2]
    return [(1 - side) * i / (count - 1) for i in range(count)]
