"""An embedding function of LanceDB: tables that embed their own pictures, boxes and texts.

Shapes: n rows, D shared embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from open_cloc.config import require
from open_cloc.errors import UserError
from open_cloc.inference.predictor import Predictor, load
from open_cloc.pictures import Picture

EXTRA = "index"
embeddings: Any = require("lancedb.embeddings", EXTRA)
EmbeddingFunction: Any = embeddings.EmbeddingFunction


class Asked(NamedTuple):
    """What a row asks to be embedded.

    Attributes:
        picture: A path, a file's bytes or a PIL image.
        box: (x1, y1, x2, y2) in it; None for the whole.
    """

    picture: Picture
    box: Any


@lru_cache(maxsize=2)
def _predictor(weights: str, device: str | None) -> Predictor:
    """LanceDB makes a new function of a table's metadata for every call; the model stays."""
    return load(weights, device)


@embeddings.register("open-cloc")
class OpenClocEmbeddings(EmbeddingFunction):
    """Region, picture and text embeddings of one model.

        cloc = get_registry().get("open-cloc").create(weights="path/to/model")

        class Region(LanceModel):
            image: Image  # a struct {image: bytes or path, box: [x1, y1, x2, y2] or null}, or one of these
            vector: Vector(cloc.ndims()) = cloc.VectorField()

    Making it reads nothing: the model is loaded when something is embedded or `ndims` is asked for.

    Attributes:
        weights: Model folder or hub id; the table remembers it.
        device: Where to compute; None takes a GPU if there is one.
        strings: What strings of the source column are, `path` of a picture, or `text`. A query that is a
            string is always a text.
        normalized: Whether boxes are in [0, 1] of the picture instead of pixels.
        batch_size: Pictures that go through the tower together.
    """

    weights: str
    device: str | None = None
    strings: Literal["path", "text"] = "path"
    normalized: bool = False
    batch_size: int = 16

    def ndims(self) -> int:
        """D."""
        return self._model().model.embed_dim

    def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> list[np.ndarray]:
        """A text, a PIL image, a file's bytes or {"image", "box"} -> its one embedding (D,).

        Raises:
            UserError: If it is something else, or no picture.
        """
        if isinstance(query, str):
            return list(self._model().encode_text([query]))
        return [row for row in self.compute_source_embeddings([query]) if row is not None]

    def compute_source_embeddings(self, rows: Any, *args: Any, **kwargs: Any) -> list[np.ndarray | None]:
        """Embed a source column.

        Args:
            rows: n pictures, texts or structs {"image", "box"}. A picture that several rows show in one batch
                goes through the tower once.

        Returns:
            (D,) float32 of unit length a row; None for a null.

        Raises:
            UserError: If a row is something else, or its picture or box is wrong.
        """
        rows = list(self.sanitize_input(rows))
        present = [place for place, row in enumerate(rows) if row is not None]
        made: list[np.ndarray | None] = [None] * len(rows)
        if self.strings == "text":
            texts = [rows[place] for place in present]
            features: Iterable[np.ndarray] = self._model().encode_text(texts) if texts else ()
            for place, feature in zip(present, features):
                made[place] = feature
            return made
        for place, feature in self._embed({place: _asked(rows[place]) for place in present}):
            made[place] = feature
        return made

    def compute_query_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> list[np.ndarray]:
        """Without LanceDB's retries: what fails here fails again, and its error should be seen at once."""
        return self.compute_query_embeddings(*args, **kwargs)

    def compute_source_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> list[np.ndarray | None]:
        """Without LanceDB's retries."""
        return self.compute_source_embeddings(*args, **kwargs)

    def _model(self) -> Predictor:
        return _predictor(self.weights, self.device)

    def _embed(self, asked: Mapping[int, Asked]) -> Iterable[tuple[int, np.ndarray]]:
        """Embeddings by row, picture after picture."""
        shown: dict[Any, list[int]] = {}  # rows by picture
        for place, row in asked.items():
            key = row.picture if isinstance(row.picture, (str, bytes)) else id(row.picture)
            shown.setdefault(key, []).append(place)
        groups = iter(shown.values())
        while batch := list(islice(groups, self.batch_size)):
            images = self._model().encode([asked[places[0]].picture for places in batch])
            for image, places in zip(images, batch):
                whole = [place for place in places if asked[place].box is None]
                boxed = [place for place in places if asked[place].box is not None]
                yield from ((place, image.embed()) for place in whole)
                if boxed:
                    boxes = [asked[place].box for place in boxed]
                    yield from zip(boxed, image.embed(boxes, normalized=self.normalized))


def _asked(row: Any) -> Asked:
    """What a row of a source column, or a query that is no text, asks for.

    Raises:
        UserError: If it is neither a picture nor {"image", "box"}.
    """
    if isinstance(row, Mapping):
        if row.get("image") is None:
            keys = ", ".join(map(str, row)) or "nothing"
            raise UserError(f"a row must have an image, and a box or null; got {keys}")
        return Asked(row["image"], row.get("box"))
    if not isinstance(row, (str, bytes, Image.Image)):
        got = type(row).__name__
        raise UserError(f"a row must be a path, bytes, a PIL image or {{image, box}}; got {got}")
    return Asked(row, None)
