"""Samples that the tests of the index add, and its rows as plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from open_cloc.index import rows as index_rows
from open_cloc.index.region_index import RegionIndex
from open_cloc.samples import Region, RegionSample
from tests.tiny import picture

BOXES = [(0.0, 0.0, 0.5, 0.5), (0.05, 0.0, 0.5, 0.55), (0.4, 0.3, 1.0, 0.9)]
TEXTS = ["a dog", "a cat", "two red cats"]
COLUMNS = ["id", "picture", "content", "key", "x1", "y1", "x2", "y2", "width", "height", "area", "source"]


def sample(number: int, **changes: Any) -> RegionSample:
    """A picture of noise, of one of three sizes, with three boxes of which two overlap much."""
    regions = tuple(Region(box, text, 0.5, "made") for box, text in zip(BOXES, TEXTS))
    metadata = {"year": 2000 + number, "order": "odd" if number % 2 else "even", "Kept": number < 3}
    height, width = ((50, 90), (64, 64), (80, 40))[number % 3]
    given: dict[str, Any] = {
        "key": f"picture {number}",
        "image": picture(height, width, number),
        "captions": (f"noise {number}",),
        "regions": regions,
        "metadata": metadata,
    }
    return RegionSample(**(given | changes))


def samples(count: int, start: int = 0) -> list[RegionSample]:
    return [sample(number) for number in range(start, start + count)]


def rows_of(index: RegionIndex) -> list[dict[str, Any]]:
    """All rows, whatever LanceDB's order of them, with their vectors."""
    names = [*COLUMNS, *index.store.about.columns, "text", "score", "vector"]
    return sorted(index.store.read(names).to_pylist(), key=lambda row: row["id"])


def nearest(rows: list[dict[str, Any]], vector: np.ndarray) -> list[dict[str, Any]]:
    """Rows by their cosine with a vector, best first."""
    direction = np.asarray(vector, np.float64) / np.linalg.norm(vector)
    scored = [row | {"cosine": float(np.array(row["vector"], np.float64) @ direction)} for row in rows]
    return sorted(scored, key=lambda row: -row["cosine"])


def fill(index: RegionIndex, count: int, seed: int = 0) -> None:
    """Put in pictures whose embeddings are drawn: no two are equal, and every third picture has a copy."""
    draw = np.random.default_rng(seed)
    kinds = draw.normal(size=(5, 32))
    for number in range(count):
        boxes = draw.uniform(0, 0.5, (20, 2))
        corners = np.concatenate([boxes, boxes + draw.uniform(0.1, 0.5, boxes.shape)], 1).tolist()
        regions = [Region(tuple(box), "", source="drawn") for box in corners]
        vectors = kinds[draw.integers(0, 5, 21)] + draw.normal(size=(21, 32))
        for copy in range(2 if number % 3 == 0 else 1):
            own = vectors + 0.02 * copy * draw.normal(size=vectors.shape)
            own /= np.linalg.norm(own, axis=1, keepdims=True)
            given = sample(number, key=f"{seed} {number} {copy}", regions=tuple(regions))
            index.store.add(index_rows.rows_of(given, f"{number} {copy}", (50, 90), regions, own, {}, None))
