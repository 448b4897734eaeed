"""Found phrases as `supervision.Detections`, which annotators, slicers, trackers and autodistill take.

Shapes: n detections, D shared embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from open_cloc.boxes import OK, box_problems, normalize_boxes
from open_cloc.config import require
from open_cloc.inference.encoded import EncodedImage
from open_cloc.model.search import CANDIDATES
from open_cloc.pictures import Picture

if TYPE_CHECKING:
    import supervision as sv

EXTRA = "supervision"


def to_detections(
    image: EncodedImage,
    phrases: Sequence[str],
    *,
    candidates: int = CANDIDATES,
    min_score: float | None = None,
) -> sv.Detections:
    """Find phrases and embed their boxes.

    Args:
        image: A picture that a predictor has looked at.
        phrases: What to look for.
        candidates: As `EncodedImage.find` takes it.
        min_score: Leave out boxes that match their phrase less than this; None keeps all.

    Returns:
        One detection a phrase, less those left out: `xyxy` (n, 4) float32 pixels, `confidence` (n,) float32
        cosines, `class_id` (n,) places in `phrases`, `data["class_name"]` (n,) phrases and
        `data["embedding"]` (n, D) float32 of unit length.

    Raises:
        UserError: If the extra is not installed, or as `EncodedImage.find`.
    """
    sv = require("supervision", EXTRA)
    found = image.find(phrases, candidates=candidates)
    boxes = np.array([each.box for each in found], dtype=np.float64).reshape(-1, 4)
    scores = np.array([each.score for each in found], dtype=np.float32)
    # A box that was clipped to a line has no embedding, and no host could draw it.
    kept = box_problems(normalize_boxes(boxes, image.size_hw), image.size_hw) == OK
    if min_score is not None:
        kept &= scores >= min_score
    rows = np.flatnonzero(kept)
    return sv.Detections(
        xyxy=boxes[rows].astype(np.float32),
        confidence=scores[rows],
        class_id=rows,
        data={"class_name": np.array(list(phrases))[rows], "embedding": image.embed(boxes[rows])},
    )


def from_bgr(picture: Picture) -> Picture:
    """A picture whose array, if it is one, has OpenCV's order of channels; anything else as it is."""
    if isinstance(picture, np.ndarray) and picture.ndim == 3:
        return np.ascontiguousarray(picture[..., ::-1])
    return picture
