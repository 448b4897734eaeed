"""Rank hits again by texts: the model looks for the texts in each hit's picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from open_cloc.boxes import iou
from open_cloc.index.search import Hit, path_of
from open_cloc.inference.encoded import EncodedImage
from open_cloc.inference.predictor import Predictor
from open_cloc.inference.tokens import TokenCache
from open_cloc.model.region_sources import OF_GRID

# What a box of a grid gains where the box that a phrase finds is its own, in units of the hits' spread of
# scores. Boxes that labels or a detector gave gain nothing: on generated scenes their cosine alone ranks
# better (docs/log).
OVERLAP_WEIGHT = 2.0


def reranked(
    predictor: Predictor, tokens: TokenCache | None, hits: Sequence[Hit], phrases: Sequence[str]
) -> list[Hit]:
    """Order hits by their scores and, a grid's boxes, by how well they lie where phrases are found.

    A grid's boxes were laid without a look at the picture: which of them lies right, the box that a
    text-prompted pass over the picture's tokens gives (paper section 3.2) can say. Pictures whose tokens are
    kept cost no pass through the tower. Hits whose picture is gone gain nothing.

    Args:
        predictor: The index's model.
        tokens: What it made of the pictures, if that was kept.
        hits: The hits.
        phrases: What to look for, at least one text.

    Returns:
        The same hits, best first, those of grids with their overlap. Scores stay the cosines that they are.

    Raises:
        UserError: If a phrase is empty.
    """
    spread = float(np.std([hit.score for hit in hits])) if hits else 0.0
    found: dict[str, Tensor | None] = {}  # (phrases, 4) boxes by the content of their picture
    ranked = []
    for hit in hits:
        if hit.source == OF_GRID:
            if hit.content not in found:
                found[hit.content] = _found(_image_of(predictor, tokens, hit), phrases)
            boxes = found[hit.content]
            overlap = 0.0 if boxes is None else float(iou(boxes, torch.tensor(hit.box)).mean())
            hit = replace(hit, overlap=overlap)
        ranked.append(hit)
    return sorted(ranked, key=lambda hit: -(hit.score + OVERLAP_WEIGHT * spread * (hit.overlap or 0.0)))


def _image_of(predictor: Predictor, tokens: TokenCache | None, hit: Hit) -> EncodedImage | None:
    known = None if tokens is None else tokens.get(hit.content)
    path = path_of(hit)
    if known is not None or path is None:
        return known
    return predictor.encode(path) if tokens is None else tokens.encode([path], [hit.content])[0]


def _found(image: EncodedImage | None, phrases: Sequence[str]) -> Tensor | None:
    """The box head's box of each phrase, (phrases, 4) in pixels."""
    if image is None:
        return None
    return torch.tensor([each.box for each in image.find(phrases, candidates=0)])
