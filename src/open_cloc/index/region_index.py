"""An index together with the model that made it: build, add, search, draw, export."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from open_cloc.boxes import normalize_boxes
from open_cloc.data.annotations import SampleDataset
from open_cloc.draw import contact_sheet
from open_cloc.errors import UserError
from open_cloc.index.build import Added, add_pictures
from open_cloc.index.query import Query, of_image, of_text
from open_cloc.index.rerank import reranked
from open_cloc.index.search import Hit, Rows, path_of, search
from open_cloc.index.store import About, Store
from open_cloc.inference.predictor import Predictor
from open_cloc.inference.tokens import TokenCache
from open_cloc.model.identity import identity_of
from open_cloc.model.load import dtype_of
from open_cloc.model.region_sources import RegionSource, open_regions
from open_cloc.pictures import Picture
from open_cloc.samples import Region, RegionSample

RERANKED = 100  # hits that phrases rank again
MOST_OF_THUMBNAIL = 2048


def check_thumbnail(side: int) -> None:
    """Refuse a longer side of small pictures that cannot be.

    Raises:
        UserError: If it is below 0, or large.
    """
    if not 0 <= side <= MOST_OF_THUMBNAIL:
        raise UserError(f"thumbnail must be in 0..{MOST_OF_THUMBNAIL} pixels; got {side}")


class RegionIndex:
    """Regions of many pictures, found by a text, by a box of a picture, by a picture, and by sums of these.

        index = RegionIndex.build("photos.index", predictor)
        index.add(open_reader("folder:photos"), "grid")
        index.search("a red mug")
        index.search(index.box("photo.jpg", [10, 20, 200, 180]) - index.text("a handle"))

    Attributes:
        store: The rows.
        predictor: The model that made them.
        tokens: What the tower made of each picture, if it is kept.
    """

    def __init__(self, store: Store, predictor: Predictor, tokens: str | Path | None = None) -> None:
        """Take an open store.

        Args:
            store: The rows.
            predictor: The model that made them.
            tokens: Folder that keeps what the tower makes of pictures; None keeps nothing.

        Raises:
            UserError: If another model made them.
        """
        identity = identity_of(predictor.model)
        store.check_model(identity)
        self.store, self.predictor = store, predictor
        self.tokens = None if tokens is None else TokenCache(tokens, predictor, identity)

    @classmethod
    def build(
        cls,
        place: str | Path,
        predictor: Predictor,
        *,
        weights: str = "",
        columns: Mapping[str, str] | None = None,
        thumbnail: int = 320,
        tokens: str | Path | None = None,
    ) -> RegionIndex:
        """Begin an empty index.

        Args:
            place: New or empty folder, or a URL of object storage, as LanceDB takes it.
            predictor: The model that embeds.
            weights: Where the model is, for those who search later.
            columns: Keys of metadata to filter by, each `text`, `number` or `bool`.
            thumbnail: Longer side of small pictures that are kept in pixels; 0 keeps none.
            tokens: As in `RegionIndex`.

        Raises:
            ExistingFileError: If something is there.
            UserError: If a column or the thumbnail's size cannot be, or the extra is not installed.
        """
        check_thumbnail(thumbnail)
        model = predictor.model
        about = About(identity_of(model), weights, dict(columns or {}), thumbnail, dtype_of(model))
        return cls(Store.create(str(place), model.embed_dim, about), predictor, tokens)

    @classmethod
    def open(cls, place: str | Path, predictor: Predictor, tokens: str | Path | None = None) -> RegionIndex:
        """Open an index.

        Raises:
            MissingFileError: If there is none.
            UserError: If another model made it, or the extra is not installed.
        """
        return cls(Store.open(str(place)), predictor, tokens)

    def add(
        self,
        dataset: SampleDataset,
        *regions: str | RegionSource,
        batch_size: int = 16,
        max_bad_fraction: float = 0.0,
        progress: Callable[[int], object] = lambda count: None,
    ) -> Added:
        """Add pictures; see `add_pictures`.

        Args:
            dataset: The pictures.
            *regions: Where regions come from, as `labels` or `grid:60`, or functions; the data's own labels
                unless given.
            batch_size: Pictures that go through the tower together.
            max_bad_fraction: Share of pictures that may be unusable.
            progress: Is told of so many more pictures that are there.
        """
        sources = [open_regions(r) if isinstance(r, str) else r for r in regions or ("labels",)]
        return add_pictures(
            self.store,
            self.predictor,
            dataset,
            lambda sample, pixels: [region for source in sources for region in source(sample, pixels)],
            tokens=self.tokens,
            batch_size=batch_size,
            max_bad_fraction=max_bad_fraction,
            progress=progress,
        )

    def text(self, *texts: str) -> Query:
        """Regions that fit all of these texts; raises as `Predictor.encode_text`."""
        return of_text(self.predictor, *texts)

    def box(
        self, picture: Picture, box: Sequence[float], *, box_format: str = "xyxy", normalized: bool = False
    ) -> Query:
        """Regions that look like a box of a picture; raises as `EncodedImage.embed`."""
        image = self.predictor.encode(picture)
        return of_image(image, box, box_format=box_format, normalized=normalized)

    def picture(self, picture: Picture) -> Query:
        """Pictures that look like this one; raises as `Predictor.encode`."""
        return of_image(self.predictor.encode(picture))

    def row(self, name: str) -> Query:
        """Regions that look like a row of the index, by its `id`; itself and what repeats it are no hits.

        Raises:
            UserError: If there is no such row.
        """
        quoted = name.replace("'", "''")
        found = self.store.read(["vector", "source"], f"id = '{quoted}'", 1)
        if not found.num_rows:
            raise UserError(f"the index has no region {name!r:.60}")
        vector = np.array(found["vector"][0].as_py(), np.float32)
        return Query(vector, of_pictures=found["source"][0].as_py() == "picture", own=(name,))

    def search(
        self,
        query: str | Query,
        limit: int = 10,
        *,
        where: str = "",
        rows: Rows | None = None,
        exact: bool = False,
        fold: bool = True,
        rerank: bool = False,
    ) -> list[Hit]:
        """The regions nearest to a query; see `search`.

        Args:
            query: A text, or what `text`, `box`, `picture` and `row` give, with sums and differences.
            limit: Most hits.
            where: A filter in SQL over the columns.
            rows: `regions`, `pictures` or `all`.
            exact: Compare with every row.
            fold: Give one hit for what shows the same thing.
            rerank: Look for the query's texts in the pictures of the best hundred, and rank them again; see
                `reranked`.

        Raises:
            UserError: As `search`, and if a query without texts shall be ranked again.
        """
        query = self.text(query) if isinstance(query, str) else query
        if rerank and not query.phrases:
            raise UserError("only hits of a text can be ranked again; this query has none")
        wanted = max(limit, RERANKED) if rerank and limit > 0 else limit
        hits = search(self.store, query, wanted, where=where, rows=rows, exact=exact, fold=fold)
        if rerank:
            hits = reranked(self.predictor, self.tokens, hits, query.phrases)
        return hits[:limit]

    def remove(self, where: str) -> int:
        """Take out the pictures that a filter in SQL names, with all of their regions; see `Store.remove`."""
        return self.store.remove(where)

    def picture_of(self, hit: Hit) -> Path | bytes | None:
        """A hit's picture: its file if it is as it was, or the small one that the index keeps, or None."""
        return path_of(hit) or self.thumbnail(hit.picture)

    def thumbnail(self, picture: str) -> bytes | None:
        """The small JPEG of a picture by its name in the index; None if there is none."""
        quoted = picture.replace("'", "''")
        found = self.store.read(["thumbnail"], f"id = '{quoted}:0'", 1)
        return found["thumbnail"][0].as_py() if found.num_rows else None

    def sheet(self, hits: Sequence[Hit], columns: int | None = None, tile: int = 320) -> np.ndarray:
        """Hits on one picture, each with its box; raises as `contact_sheet`.

        Raises:
            UserError: If there are no hits, or none whose picture can be shown.
        """
        samples = []
        for number, hit in enumerate(hits):
            image = self.picture_of(hit)
            if image is not None:
                x1, y1, x2, y2 = normalize_boxes(np.array(hit.box), hit.size_hw).clip(0, 1).tolist()
                region = Region((x1, y1, x2, y2), hit.text, hit.score)
                caption = f"{number + 1}. {hit.score:.3f} {hit.text or hit.caption}"
                samples.append(RegionSample(hit.key, image, (caption,), (region,)))
        if not samples:
            raise UserError("nothing to draw: no hit, or none whose picture is there")
        return contact_sheet(samples, columns, tile)
