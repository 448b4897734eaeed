"""Search an index: hits are pictures with boxes, near-duplicates folded into one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from open_cloc.boxes import iou
from open_cloc.errors import UserError
from open_cloc.index.query import Query
from open_cloc.index.rows import PICTURES, REGIONS, VECTOR
from open_cloc.index.store import Store
from open_cloc.inference.answer import Box
from open_cloc.inference.tokens import content_of

# Boxes of one picture that overlap so much show the same thing.
MOST_OVERLAP = 0.5
# Regions of two pictures that are so much alike come from copies of one picture.
COPY = 0.985
OVERSAMPLE = 4  # rows that are asked for, for each hit
MOST_ROWS = 20_000

Rows = Literal["regions", "pictures", "all"]


@dataclass(frozen=True)
class Hit:
    """A region that was found.

    Attributes:
        id: Name of its row.
        picture: Name of its picture in the index.
        content: Name of the picture's content.
        key: The sample's name.
        path: Where the picture was, if it was a file.
        size_hw: (height, width) of the picture in pixels.
        box: (x1, y1, x2, y2) in its pixels.
        score: Cosine of the region and what was looked for.
        text: The region's text, if it has one.
        label_score: The text's confidence; None where it has none.
        source: Where the region came from.
        caption: The picture's first caption.
        columns: The index's columns of metadata.
        folded: Names of rows that show the same thing.
        overlap: IoU with the boxes that the model finds for the texts, where hits were ranked again by them.
        vector: (D,) its embedding.
    """

    id: str
    picture: str
    content: str
    key: str
    path: str
    size_hw: tuple[int, int]
    box: Box
    score: float
    text: str
    label_score: float | None
    source: str
    caption: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    folded: tuple[str, ...] = ()
    overlap: float | None = None
    vector: np.ndarray = field(repr=False, compare=False, default_factory=lambda: np.empty(0))

    def as_json(self) -> dict[str, Any]:
        """The hit as plain JSON types, without its vector."""
        height, width = self.size_hw
        return {
            "id": self.id,
            "key": self.key,
            "path": self.path,
            "size": [width, height],
            "box": list(self.box),
            "score": self.score,
            "text": self.text,
            "label_score": self.label_score,
            "source": self.source,
            "caption": self.caption,
            "columns": dict(self.columns),
            "folded": list(self.folded),
            "overlap": self.overlap,
        }


def search(
    store: Store,
    query: Query,
    limit: int = 10,
    *,
    where: str = "",
    rows: Rows | None = None,
    exact: bool = False,
    fold: bool = True,
) -> list[Hit]:
    """The regions nearest to a query.

    Args:
        store: An open index, by the model that made the query.
        query: What to look for.
        limit: Most hits.
        where: A filter in SQL over the columns, such as `area > 0.1 AND source = 'coco'`.
        rows: `regions`, `pictures` (whole ones) or `all`; None takes pictures for a query made of pictures
            alone, else regions.
        exact: Compare with every row.
        fold: Give one hit for boxes of a picture that overlap much, and for copies of a picture.

    Returns:
        Hits, best first.

    Raises:
        UserError: If the limit is below 1, the filter cannot be understood, or nothing is left of the query.
        RunError: If the index cannot be read.
    """
    if limit < 1:
        raise UserError(f"limit must be at least 1; got {limit}")
    rows = rows or ("pictures" if query.of_pictures else "regions")
    kind = {"regions": REGIONS, "pictures": PICTURES, "all": ""}[rows]
    _check_brackets(where)
    # By itself first: an error shall speak of what the user wrote.
    limit = min(limit, store.count(where))
    if not limit:
        return []
    # On a line of its own: it may end in a comment.
    filters = " AND ".join(part for part in (f"({where}\n)" if where else "", kind) if part)
    own = set(query.own)
    sought = limit + len(own)  # they come first, and are no hits
    direction, asked = query.direction(), sought * (OVERSAMPLE if fold else 1)
    while True:
        found = store.nearest(direction, asked, filters, exact=exact)
        hits = _hits(found, store.about.columns)
        kept = _folded(hits, sought) if fold else hits[:sought]
        if len(kept) == sought or len(hits) < asked or asked >= MOST_ROWS:
            return [hit for hit in kept if own.isdisjoint((hit.id, *hit.folded))][:limit]
        asked = min(4 * asked, MOST_ROWS)


def _check_brackets(where: str) -> None:
    """Refuse a filter that ends before its end: LanceDB would not read the rest, nor ours behind it."""
    depth = 0
    for sign in re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`|--[^\n]*", "", where):
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if depth < 0 or sign == ";":
            raise UserError(
                f"the filter {where!r:.200} cannot be applied: {sign!r} stands where it ends nothing"
            )


def _hits(found: Any, columns: Mapping[str, str]) -> list[Hit]:
    """Rows of an Arrow table as hits."""
    vectors = np.stack(found[VECTOR].to_numpy(zero_copy_only=False)) if found.num_rows else np.empty((0, 0))
    hits = []
    for number, row in enumerate(found.drop_columns([VECTOR]).to_pylist()):
        hits.append(
            Hit(
                **{name: row[name] for name in ("id", "picture", "content", "key", "path")},
                size_hw=(row["height"], row["width"]),
                box=(row["x1"], row["y1"], row["x2"], row["y2"]),
                score=1 - row["_distance"],
                text=row["text"],
                label_score=row["score"],
                **{name: row[name] for name in ("source", "caption")},
                columns={name: row[name] for name in columns},
                vector=vectors[number],
            )
        )
    return hits


def _folded(hits: Sequence[Hit], limit: int) -> list[Hit]:
    """The first hits that show different things; the others' names are kept with the one they repeat.

    A hit repeats the first kept one of its own picture whose box overlaps it much, or of another picture with
    a box at much the same place and almost the same embedding.
    """
    if not hits:
        return []
    boxes = np.array([hit.box for hit in hits]) / [hit.size_hw[::-1] * 2 for hit in hits]  # normalised
    places, vectors = torch.from_numpy(boxes), np.stack([hit.vector for hit in hits])
    kept: list[int] = []
    others: dict[int, list[str]] = {}
    for number, hit in enumerate(hits):
        overlap = iou(places[number], places[kept]).numpy() >= MOST_OVERLAP
        is_own = np.array([hits[other].picture == hit.picture for other in kept], bool)
        same = np.flatnonzero(overlap & (is_own | (vectors[kept] @ vectors[number] >= COPY)))
        if len(same):
            others[kept[same[0]]].append(hit.id)
        elif len(kept) < limit:
            kept.append(number)
            others[number] = []
    return [replace(hits[number], folded=tuple(others[number])) for number in kept]


def path_of(hit: Hit) -> Path | None:
    """The hit's picture, if it is a file that is still there and still the same."""
    path = Path(hit.path)
    try:
        return path if hit.path and content_of(path) == hit.content else None
    except (OSError, UserError):
        return None
