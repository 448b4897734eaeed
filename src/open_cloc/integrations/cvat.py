"""An auto-annotation function of CVAT, which `cvat-cli` runs beside the server:

    cvat-cli task auto-annotate 7 --function-module open_cloc.integrations.cvat \\
        -p weights=str:path/to/model -p "labels=str:mug=a blue mug,cat"
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from open_cloc.config import require
from open_cloc.errors import UserError
from open_cloc.inference.predictor import Predictor, load

EXTRA = "cvat"
cvataa: Any = require("cvat_sdk.auto_annotation", EXTRA)


def create(
    weights: str, labels: str, min_score: float | None = None, device: str | None = None
) -> PhraseFinder:
    """Make the function; `cvat-cli` calls this with what stands behind `-p`.

    Args:
        weights: Model folder or hub id.
        labels: Labels of the task, divided by commas. `label=phrase` looks for a phrase, and a label alone
            for itself.
        min_score: Least cosine of a box with its phrase where CVAT gives no threshold; None keeps all: then
            every frame has a box for every label.
        device: Where to compute; None takes a GPU if there is one.

    Raises:
        UserError: If a label is empty or repeated, or there is no model.
    """
    return PhraseFinder(load(weights, device), parse_labels(labels), min_score)


def parse_labels(text: str) -> dict[str, str]:
    """`mug=a blue mug,cat` -> {"mug": "a blue mug", "cat": "cat"}.

    Raises:
        UserError: If there is none, or one is empty or repeated.
    """
    phrases: dict[str, str] = {}
    for part in text.split(","):
        label, sign, phrase = (word.strip() for word in part.partition("="))
        if not label or (sign and not phrase):
            raise UserError(f"labels must be label or label=phrase, divided by commas; got {text!r:.80}")
        if label in phrases:
            raise UserError(f"labels must be distinct; got {label!r} more than once")
        phrases[label] = phrase or label
    return phrases


class PhraseFinder:
    """Looks for one phrase a label in each frame.

    Attributes:
        spec: The labels, as CVAT matches them with the task's by name.
    """

    def __init__(self, predictor: Predictor, phrases: dict[str, str], min_score: float | None) -> None:
        self._predictor, self._phrases, self._min_score = predictor, phrases, min_score
        self.spec = cvataa.DetectionFunctionSpec(
            labels=[cvataa.label_spec(name, row, type="rectangle") for row, name in enumerate(phrases)]
        )

    def detect(self, context: Any, image: Image.Image) -> Sequence[Any]:
        """Find the phrases in a frame.

        Args:
            context: CVAT's; its `conf_threshold` goes before ours.
            image: The frame.

        Returns:
            At most one rectangle a label, in pixels, its cosine as `score`.

        Raises:
            UserError: If the frame is no picture.
        """
        given = context.conf_threshold
        least = self._min_score if given is None else given
        found = self._predictor.encode(image).find(list(self._phrases.values()))
        return [
            cvataa.rectangle(row, list(each.box), score=max(0.0, each.score))
            for row, each in enumerate(found)
            if (least is None or each.score >= least) and _has_area(each.box)
        ]


def _has_area(box: tuple[float, float, float, float]) -> bool:
    x1, y1, x2, y2 = box
    return x1 < x2 and y1 < y2
