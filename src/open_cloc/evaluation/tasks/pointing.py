"""The pointing game: does the place that is most like a phrase lie in the phrase's box?

Zhang et al., "Top-down neural attention by excitation backprop", ECCV 2016.

Shapes: P phrases and R regions of one image, N places of its canvas, D shared embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from open_cloc.canvas import Geometry
from open_cloc.data.annotations import SampleDataset
from open_cloc.errors import UserError
from open_cloc.evaluation.batches import EvaluationBatch, read_batches
from open_cloc.evaluation.checked import dense_of
from open_cloc.evaluation.collect import region_texts
from open_cloc.evaluation.intervals import mean_over
from open_cloc.evaluation.method import DenseMethod, GroundingMethod, Method
from open_cloc.evaluation.metrics import TIES_SHARE
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.task import TaskResult, measured

OF_PLACES = "the centre of the image token nearest to the phrase"
OF_BOXES = "the centre of the box that is found for the phrase"


def pointing(method: Method, dataset: SampleDataset, config: EvaluationConfig) -> TaskResult:
    """Point at each distinct phrase of each image; a hit lies in any box of the phrase.

    A method that finds boxes points at their centres; one that knows each place, at the nearest.

    Raises:
        UserError: If the method can do neither, or there is no region.
    """
    dense = None if isinstance(method, GroundingMethod) else dense_of(method)
    hits: list[float] = []
    counts: list[int] = []  # phrases of each image
    num_regions = 0
    for batch in read_batches(dataset, method.canvas, config):
        texts = [region_texts(sample, method) for sample in batch.samples]
        phrases = [list(dict.fromkeys(own)) for own in texts]
        points = _found(method, batch, phrases) if dense is None else _nearest(dense, batch, phrases)
        for sample, own_texts, own, places in zip(batch.samples, texts, phrases, points):
            boxes = np.array([region.box for region in sample.regions], float).reshape(-1, 4)
            for phrase, spots in zip(own, places):
                meant = boxes[[text == phrase for text in own_texts]]
                hits.append(float(_is_inside(spots, meant).mean()))
        counts += map(len, phrases)
        num_regions += sum(map(len, texts))
    if not hits:
        raise UserError(f"dataset has no regions in its {len(counts)} images; expected at least one")
    images = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    protocol = {
        "point": OF_BOXES if dense is None else OF_PLACES,
        "right": "the point lies in any box of the phrase",
        "averaging": "micro over the distinct phrases of each image",
        "ties": TIES_SHARE,
        "num_images": len(counts),
        "num_regions": num_regions,
        "num_phrases": len(hits),
    }
    return measured(
        {"pointing_acc": mean_over(torch.tensor(hits), images, len(counts))}, len(counts), protocol
    )


def _found(
    method: Method, batch: EvaluationBatch, phrases: Sequence[Sequence[str]]
) -> list[list[np.ndarray]]:
    """For each phrase of each picture the centre of its box, as (1, 2) normalised `xy`."""
    if not any(phrases):
        return [[] for _ in phrases]
    boxes = method.ground(batch, phrases).boxes.double().numpy()  # type: ignore[attr-defined]
    centres = iter((boxes[:, :2] + boxes[:, 2:]) / 2)
    return [[next(centres)[None] for _ in own] for own in phrases]


def _nearest(
    method: DenseMethod, batch: EvaluationBatch, phrases: Sequence[Sequence[str]]
) -> list[list[np.ndarray]]:
    """For each phrase of each picture the nearest place, several where these tie, as (ties, 2) `xy`."""
    tokens = method.embed_tokens(batch).cpu()  # (B, rows, columns, D)
    distinct = list(dict.fromkeys(phrase for own in phrases for phrase in own))
    texts = dict(zip(distinct, method.embed_texts(distinct).cpu())) if distinct else {}
    found = []
    for image, geometry, own in zip(tokens, batch.geometries, phrases):
        centres, inside = _centres(image.shape[:2], geometry)
        spots = []
        for phrase in own:
            near = (image.flatten(0, 1) @ texts[phrase]).masked_fill(~inside, -torch.inf)
            spots.append(centres[(near == near.max()).numpy()])
        found.append(spots)
    return found


def _centres(grid: Sequence[int], geometry: Geometry) -> tuple[np.ndarray, Tensor]:
    """Centres of a canvas' places as normalised `xy` of the picture (N, 2), and which are in it (N,).

    Where the picture is so narrow that it holds no centre, all count, at the nearest edge.
    """
    rows, columns = grid
    y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    centres = np.stack([x.ravel(), y.ravel()], 1).astype(np.float32)
    low, high = np.split(np.array(geometry.content_box, np.float32), 2)
    inside = np.all((centres >= low) & (centres <= high), axis=1)
    if not inside.any():
        inside = np.ones(len(centres), bool)
    boxes = np.concatenate([centres, centres], 1).clip(np.tile(low, 2), np.tile(high, 2))
    return np.asarray(geometry.from_canvas(boxes))[:, :2], torch.from_numpy(inside)


def _is_inside(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(ties,) whether points (ties, 2) lie in any of the boxes (R, 4)."""
    after = points[:, None] >= boxes[None, :, :2]
    before = points[:, None] <= boxes[None, :, 2:]
    return np.any(np.all(after & before, axis=2), axis=1)
