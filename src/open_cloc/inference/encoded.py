"""A picture after its one pass through the tower: ask it about boxes, masks, labels and phrases.

Shapes: H W pixels of the user's picture, R regions, T texts, D shared embedding.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F

from open_cloc.boxes import denormalize_boxes
from open_cloc.canvas import Geometry
from open_cloc.errors import NotFiniteError, UserError
from open_cloc.inference.answer import FoundPhrase, Label, NamedRegion
from open_cloc.inference.inputs import (
    around,
    boxes_of_masks,
    boxes_of_picture,
    check_distinct,
    check_texts,
    check_told_apart,
    masks_of_picture,
    points_of_picture,
    sets_of_boxes,
)
from open_cloc.model.cloc import CLOC, ImageState
from open_cloc.model.embed import embed_regions
from open_cloc.model.prompter import BLIND
from open_cloc.model.search import CANDIDATES, ground_phrases
from open_cloc.texts import TextCache


class Regions(NamedTuple):
    """Regions that a user asks about, embedded.

    Attributes:
        features: (R, D) embeddings of unit length.
        boxes: (R, 4) float64 normalised `xyxy` of the picture.
    """

    features: Tensor
    boxes: np.ndarray


def require_numbers(values: Tensor, what: str) -> Tensor:
    """What a model gives, unless it is no number: of weights that overflow an answer would be nonsense.

    Raises:
        NotFiniteError: If there is a nan or an infinity in it.
    """
    if not bool(values.isfinite().all()):
        raise NotFiniteError(
            f"the model gives no numbers for {what}: its weights are damaged, or overflow in their type"
        )
    return values


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """A picture that `Predictor.encode` has looked at. Nothing changes it: keep it, share it among threads.

    Boxes are pixels of the picture as it was given. A method that is given neither boxes nor masks speaks of
    the picture as a whole.

    Attributes:
        geometry: How the picture lies on the model's canvas.
        state: What the model keeps of it, one image.
        content_box: (1, 4) normalised `xyxy` of the picture inside the canvas.
        model: The model that has looked at it.
        texts: Embeddings (D,) of texts by the same model, remembered.
    """

    geometry: Geometry
    state: ImageState = field(repr=False)
    content_box: Tensor = field(repr=False)
    model: CLOC = field(repr=False)
    texts: TextCache[Tensor] = field(repr=False)

    @property
    def size_hw(self) -> tuple[int, int]:
        """(height, width) of the picture in pixels."""
        return self.geometry.source_hw

    @torch.inference_mode()
    def embed(
        self,
        boxes: ArrayLike | None = None,
        *,
        masks: ArrayLike | None = None,
        points: ArrayLike | None = None,
        box_format: str = "xyxy",
        normalized: bool = False,
    ) -> np.ndarray:
        """Embed the picture, or regions of it.

        Args:
            boxes: (R, 4), any number of them; pixels of the picture unless `normalized`. (R, P, 4) are R
                regions of P boxes each; as lists, of different numbers.
            masks: (R, H, W) bool of the picture, in place of boxes; none of them empty.
            points: (R, P, 2) `xy` in place of boxes, P points on each of R things, in the same unit; as
                lists, of different numbers.
            box_format: `xyxy`, `xywh` or `cxcywh`.
            normalized: Whether the boxes are in [0, 1] of the picture's width and height.

        Returns:
            (R, D) float32 of unit length; (D,) of the whole picture without boxes, masks and points.

        Raises:
            UserError: If a box is not finite, inverted or outside the picture, the format is unknown, masks
                are not bool, of another size or empty, or a point is outside.
        """
        found = self._regions(boxes, masks, points, box_format, normalized).features.float().cpu().numpy()
        return found[0] if boxes is None and masks is None and points is None else found

    @torch.inference_mode()
    def classify(
        self,
        labels: Sequence[str],
        boxes: ArrayLike | None = None,
        *,
        masks: ArrayLike | None = None,
        points: ArrayLike | None = None,
        box_format: str = "xyxy",
        normalized: bool = False,
        top_k: int = 5,
    ) -> list[NamedRegion]:
        """Name each region, or the picture.

        Args:
            labels: Distinct names to choose from, read as the model reads texts (in lower case unless it was
                trained otherwise), without a prompt template.
            boxes: (R, 4) boxes, as `embed` takes them.
            masks: (R, H, W) masks in place of boxes, as `embed` takes them.
            points: (R, P, 2) points in place of boxes, as `embed` takes them.
            box_format: `xyxy`, `xywh` or `cxcywh`.
            normalized: Whether the boxes are in [0, 1] of the picture's width and height.
            top_k: Names per region; all of them if there are fewer.

        Returns:
            Each region with its best names and their scores in [0, 1], best first: a softmax over all labels
            with the model's own temperature or, for a model with a logit bias (sigmoid losses), each label's
            own probability. Without boxes and masks, one answer for the whole picture.

        Raises:
            UserError: As `embed`, and if labels are missing, empty, repeated or alike as far as the model
                reads them, or `top_k` < 1.
        """
        return self.name(self._regions(boxes, masks, points, box_format, normalized), labels, top_k=top_k)

    @torch.inference_mode()
    def name(self, regions: Regions, labels: Sequence[str], *, top_k: int = 5) -> list[NamedRegion]:
        """Name regions that are embedded already, as `classify` does; raises as it."""
        if not isinstance(top_k, int) or top_k < 1:
            raise UserError(f"top_k must be a whole number, at least 1; got {top_k!r}")
        check_texts(labels, "labels", self.model.cleaning)
        check_distinct(labels, self.model.cleaning)
        check_told_apart(labels, self.model.tokenize(list(labels)))
        cosines = regions.features @ torch.stack(self.texts(labels)).T  # (R, T)
        scores, order = self._probabilities(cosines).topk(min(top_k, len(labels)), dim=-1)
        boxes_px = denormalize_boxes(regions.boxes, self.size_hw).tolist()
        return [
            NamedRegion((x1, y1, x2, y2), [Label(labels[i], score) for i, score in zip(*row)])
            for (x1, y1, x2, y2), row in zip(boxes_px, zip(order.tolist(), scores.tolist()))
        ]

    @torch.inference_mode()
    def find(
        self, phrases: Sequence[str], *, candidates: int = CANDIDATES, min_score: float | None = None
    ) -> list[FoundPhrase]:
        """Find the box of each phrase.

        Args:
            phrases: What to look for; each has exactly one box, there or not: its score tells.
            candidates: How many boxes of a grid compete with the box head's answer, at most. They are ranked
                by how well their own region embeddings match the phrase, and the best ones are refined.
                0 gives the box head's answer as it is.
            min_score: Leave out phrases whose box matches less than this; None keeps all.

        Returns:
            Phrases with box and score in the order given.

        Raises:
            UserError: If there is no phrase, one is empty, or `candidates` is negative.
        """
        check_texts(phrases, "phrases", self.model.cleaning)
        features = torch.stack(self.texts(phrases))  # (T, D)
        found = ground_phrases(self.model, self.state, features[None], self.content_box, candidates)
        require_numbers(found.boxes, "phrases")
        boxes = self.geometry.from_canvas(found.boxes[0].double().cpu()).clamp(0, 1)
        boxes_px = denormalize_boxes(boxes, self.size_hw).tolist()
        return [
            FoundPhrase(phrase, (x1, y1, x2, y2), score)
            for phrase, (x1, y1, x2, y2), score in zip(phrases, boxes_px, found.scores[0].tolist())
            if min_score is None or score >= min_score
        ]

    def on_canvas(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (..., 4) of the picture on the canvas, float32."""
        return self.geometry.to_canvas(boxes).astype(np.float32).clip(0, 1)

    def _regions(
        self,
        boxes: ArrayLike | None,
        masks: ArrayLike | None,
        points: ArrayLike | None,
        box_format: str,
        normalized: bool,
    ) -> Regions:
        if sum(given is not None for given in (boxes, masks, points)) > 1:
            raise UserError("give boxes, masks or points, not several of them")
        if masks is not None:
            array = masks_of_picture(masks, self.size_hw)
            if not self.model.prompter.config.sees_outlines:
                warnings.warn(f"masks are read as boxes: {BLIND}", stacklevel=3)
            return self._embedded({"mask": self.geometry.masks_to_canvas(array)}, boxes_of_masks(array))
        if points is not None:
            own = points_of_picture(points, self.size_hw, normalized)
            on_canvas = self.on_canvas(np.concatenate([own, own], -1))[..., :2]
            return self._embedded({"points": on_canvas}, around(own, own))
        sets = sets_of_boxes(boxes)
        if sets is not None:
            own = boxes_of_picture(sets.reshape(-1, 4), self.size_hw, box_format, normalized)
            own = own.reshape(sets.shape)
            return self._embedded({"boxes": self.on_canvas(own)}, around(own[..., :2], own[..., 2:]))
        if boxes is not None:
            own = boxes_of_picture(boxes, self.size_hw, box_format, normalized)
            return self._embedded({"box": self.on_canvas(own)}, own)
        whole = np.array([[0.0, 0.0, 1.0, 1.0]])
        return Regions(F.normalize(self.state.image_features.float(), dim=-1), whole)

    def _embedded(self, prompts: dict[str, np.ndarray], boxes: np.ndarray) -> Regions:
        """Prompts of the canvas, embedded."""
        given = {kind: torch.from_numpy(own)[None].to(self.model.device) for kind, own in prompts.items()}
        features = embed_regions(self.model, self.state, given)[0]
        return Regions(require_numbers(features, "regions"), boxes)

    def _probabilities(self, cosines: Tensor) -> Tensor:
        clip: Any = self.model.clip
        logits = clip.logit_scale.exp() * cosines
        return logits.softmax(-1) if clip.logit_bias is None else (logits + clip.logit_bias).sigmoid()
