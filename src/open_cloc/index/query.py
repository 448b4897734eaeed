"""What is looked for: texts, boxes of pictures, pictures, and sums and differences of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from open_cloc.errors import UserError
from open_cloc.inference.encoded import EncodedImage
from open_cloc.inference.predictor import Predictor

# How much of a text is taken away: of two texts that are near, the whole would leave nothing but noise.
MINUS = 0.5


@dataclass(frozen=True, eq=False)
class Query:
    """A direction in the space of embeddings: `text("a mug") + 0.5 * box(photo, b) - text("handle")`.

    Attributes:
        vector: (D,) what is looked for, of any length.
        phrases: Texts that were added, by which hits can be ranked again.
        of_pictures: Whether it was made of whole pictures alone.
        own: Rows of the index that it was made of, by their ids, which are no hits.
    """

    vector: np.ndarray
    phrases: tuple[str, ...] = ()
    of_pictures: bool = False
    own: tuple[str, ...] = ()

    def __add__(self, other: Query) -> Query:
        return Query(
            self.vector + other.vector,
            (*self.phrases, *other.phrases),
            self.of_pictures and other.of_pictures,
            (*self.own, *other.own),
        )

    def __sub__(self, other: Query) -> Query:
        of_pictures = self.of_pictures and other.of_pictures
        return Query(self.vector - other.vector, self.phrases, of_pictures, self.own)

    def __mul__(self, weight: float) -> Query:
        phrases, own = (self.phrases, self.own) if weight > 0 else ((), ())
        return Query(weight * self.vector, phrases, self.of_pictures, own)

    __rmul__ = __mul__

    def direction(self) -> np.ndarray:
        """(D,) of unit length.

        Raises:
            UserError: If nothing is left of it, as of a difference of equals.
        """
        length = float(np.linalg.norm(self.vector))
        if not np.isfinite(length) or length < 1e-6:
            raise UserError("nothing is left to look for: what is added and what is taken away are the same")
        return (self.vector / length).astype(np.float32)


def of_text(predictor: Predictor, *texts: str) -> Query:
    """Regions that fit all of these texts; raises as `Predictor.encode_text`."""
    return Query(predictor.encode_text(texts).sum(0), tuple(texts))


def of_image(
    image: EncodedImage,
    box: Sequence[float] | None = None,
    *,
    box_format: str = "xyxy",
    normalized: bool = False,
) -> Query:
    """Regions that look like a box of a picture, or pictures like it; raises as `EncodedImage.embed`."""
    if box is None:
        return Query(image.embed(), of_pictures=True)
    return Query(image.embed([box], box_format=box_format, normalized=normalized)[0])


def total(wanted: Sequence[Query], unwanted: Iterable[Query] = ()) -> Query:
    """All that is wanted together, less a share of what is not.

    Args:
        wanted: At least one.
        unwanted: What is taken away.
    """
    query = wanted[0]
    for other in wanted[1:]:
        query = query + other
    for other in unwanted:
        query = query - MINUS * other
    return query
