"""Rank hits again by texts: the model looks for the texts in each hit's picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from open_cloc.boxes import iou
from open_cloc.index.search import Hit, path_of
from open_cloc.inference.encoded import EncodedImage
from open_cloc.inference.predictor import Predictor
from open_cloc.inference.tokens import TokenCache

# What a hit gains where the box that a phrase finds is its own, in units of the hits' spread of scores.
OVERLAP_WEIGHT = 1.0


def reranked(
    predictor: Predictor, tokens: TokenCache | None, hits: Sequence[Hit], phrases: Sequence[str]
) -> list[Hit]:
    """Order hits by their scores and by how well they lie where phrases are found in their pictures.

    A text-prompted pass over each picture's tokens gives each phrase's box (paper section 3.2). Pictures
    whose tokens are kept cost no pass through the tower. Hits whose picture is gone gain nothing.

    Args:
        predictor: The index's model.
        tokens: What it made of the pictures, if that was kept.
        hits: The hits.
        phrases: What to look for, at least one text.

    Returns:
        The same hits with new scores, best first.

    Raises:
        UserError: If a phrase is empty.
    """
    spread = float(np.std([hit.score for hit in hits])) if hits else 0.0
    images: dict[str, EncodedImage | None] = {}
    ranked = []
    for hit in hits:
        if hit.content not in images:
            images[hit.content] = _image_of(predictor, tokens, hit)
        image = images[hit.content]
        gain = 0.0 if image is None else OVERLAP_WEIGHT * spread * _overlap(image, hit, phrases)
        ranked.append(replace(hit, score=hit.score + gain))
    return sorted(ranked, key=lambda hit: -hit.score)


def _image_of(predictor: Predictor, tokens: TokenCache | None, hit: Hit) -> EncodedImage | None:
    known = None if tokens is None else tokens.get(hit.content)
    path = path_of(hit)
    if known is not None or path is None:
        return known
    return predictor.encode(path) if tokens is None else tokens.encode([path], [hit.content])[0]


def _overlap(image: EncodedImage, hit: Hit, phrases: Sequence[str]) -> float:
    """Mean over the phrases of the overlap of a phrase's box and the hit's."""
    found = image.find(phrases, candidates=0)
    boxes = torch.tensor([each.box for each in found])
    return float(iou(boxes, torch.tensor(hit.box)).mean())
