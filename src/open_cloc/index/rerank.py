"""Rank hits again by a phrase: the model looks for the phrase in each hit's picture."""

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

# What a hit gains where the box that the phrase finds is its own, in units of the hits' spread of scores.
OVERLAP_WEIGHT = 1.0


def rerank(predictor: Predictor, tokens: TokenCache | None, hits: Sequence[Hit], phrase: str) -> list[Hit]:
    """Order hits by how well they fit a phrase and lie where the phrase is found in their pictures.

    A text-prompted pass over each picture's tokens gives the phrase's box (paper section 3.2). Pictures whose
    tokens are kept cost no pass through the tower. Hits whose picture is gone keep what they have.

    Args:
        predictor: The index's model.
        tokens: What it made of the pictures, if that was kept.
        hits: The hits.
        phrase: What to look for.

    Returns:
        The same hits with new scores, best first.

    Raises:
        UserError: If the phrase is empty.
    """
    scores = np.array([hit.score for hit in hits])
    features = predictor.encode_text([phrase])[0]
    images: dict[str, EncodedImage | None] = {}
    ranked = []
    for hit in hits:
        if hit.content not in images:
            images[hit.content] = _image_of(predictor, tokens, hit)
        image = images[hit.content]
        own = float(hit.vector @ features)
        overlap = 0.0 if image is None else _overlap(image, hit, phrase)
        ranked.append(replace(hit, score=own + OVERLAP_WEIGHT * float(scores.std()) * overlap))
    return sorted(ranked, key=lambda hit: -hit.score)


def _image_of(predictor: Predictor, tokens: TokenCache | None, hit: Hit) -> EncodedImage | None:
    known = None if tokens is None else tokens.get(hit.content)
    path = path_of(hit)
    if known is not None or path is None:
        return known
    return predictor.encode(path) if tokens is None else tokens.encode([path])[0]


def _overlap(image: EncodedImage, hit: Hit, phrase: str) -> float:
    found = image.find([phrase], candidates=0)[0]
    return float(iou(torch.tensor(found.box), torch.tensor(hit.box)))
