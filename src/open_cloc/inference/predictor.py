"""Use a trained model: pictures and boxes in pixels go in, numpy arrays and labels come out.

Shapes: H W pixels of the user's picture, R regions, T texts, D shared embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F

from open_cloc.boxes import convert_boxes, denormalize_boxes, normalize_boxes, validate_boxes_px
from open_cloc.canvas import Geometry
from open_cloc.errors import UserError
from open_cloc.model.cloc import CLOC, ImageState
from open_cloc.model.embed import embed_regions, embed_texts
from open_cloc.model.load import load_model
from open_cloc.model.search import CANDIDATES, ground_phrases
from open_cloc.pictures import Picture, read_pixels

Box: TypeAlias = tuple[float, float, float, float]


def load(path_or_hub_id: str | Path, device: str | torch.device | None = None) -> Predictor:
    """Load a trained model for use.

    Args:
        path_or_hub_id: Folder that `save_pretrained` wrote, or `owner/name` on the Hugging Face hub.
        device: None takes a GPU if there is one, else the CPU.

    Raises:
        MissingFileError: If there is no such folder or repository.
        UserError: If it holds no CLOC model.
    """
    return Predictor(load_model(path_or_hub_id, device))


@dataclass(frozen=True)
class _SetImage:
    """A picture after its one pass through the tower."""

    geometry: Geometry
    state: ImageState
    content_box: Tensor  # (1, 4)


class Predictor:
    """Embeds pictures, regions and texts, names regions, and finds phrases.

    A picture is a path, a PIL image (any mode; converted to RGB) or an (H, W, 3) uint8 RGB array. Boxes are
    pixels of that picture as PIL opens it: an EXIF orientation is not applied, here or in training;
    call `PIL.ImageOps.exif_transpose` first if boxes refer to the turned picture.

    Every method with `image=None` uses the picture given to `set_image`, whose tokens are computed once.

    Attributes:
        model: The model, in eval mode.
    """

    def __init__(self, model: CLOC) -> None:
        self.model = model.eval()
        self._image: _SetImage | None = None
        self._texts: tuple[tuple[str, ...], Tensor] | None = None

    @torch.inference_mode()
    def set_image(self, image: Picture) -> Predictor:
        """Run the image tower once; later calls without an image use its result.

        Raises:
            MissingFileError: If the picture is a path that does not exist.
            UserError: If it cannot be decoded, or is an array of another form.
        """
        self._image = self._encode(image)
        return self

    @torch.inference_mode()
    def encode_image(self, image: Picture | None = None) -> np.ndarray:
        """A picture -> (D,) float32 of unit length."""
        return _numpy(F.normalize(self._get(image).state.image_features[0].float(), dim=-1))

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Texts, taken as they are -> (T, D) float32 of unit length.

        Raises:
            UserError: If there is no text, one is empty, or this is one string instead of a list.
        """
        return _numpy(self._embed_texts(texts, "texts"))

    @torch.inference_mode()
    def encode_regions(
        self, image: Picture | None, boxes: ArrayLike, *, box_format: str = "xyxy", normalized: bool = False
    ) -> np.ndarray:
        """Boxes of a picture -> (R, D) float32 of unit length.

        Args:
            image: The picture, or None for the one set before.
            boxes: (R, 4), any number of them; pixels of the picture unless `normalized`.
            box_format: `xyxy`, `xywh` or `cxcywh`.
            normalized: The boxes are in [0, 1] of the picture's width and height.

        Raises:
            UserError: If a box is not finite, inverted or outside the picture, or the format is unknown.
            RuntimeError: If there is no picture.
        """
        return _numpy(self._embed_regions(self._get(image), boxes, box_format, normalized))

    @torch.inference_mode()
    def classify_regions(
        self,
        image: Picture | None,
        boxes: ArrayLike,
        labels: Sequence[str],
        top_k: int = 5,
        *,
        box_format: str = "xyxy",
        normalized: bool = False,
    ) -> list[list[tuple[str, float]]]:
        """Name each box.

        Args:
            image: The picture, or None for the one set before.
            boxes: As in `encode_regions`.
            labels: Distinct names to choose from, used as they are, without a prompt template.
            top_k: Names per box; all of them if there are fewer.
            box_format: As in `encode_regions`.
            normalized: As in `encode_regions`.

        Returns:
            For each box its best names with scores in [0, 1], best first: a softmax over all labels with the
            model's own temperature or, for a model with a logit bias (sigmoid losses), each label's own
            probability.

        Raises:
            UserError: As `encode_regions`, and if labels are missing, empty or repeated, or `top_k` < 1.
        """
        if top_k < 1:
            raise UserError(f"top_k must be at least 1; got {top_k}")
        text_features = self._embed_texts(labels, "labels")
        if len(set(labels)) < len(labels):
            repeated = next(label for label in labels if list(labels).count(label) > 1)
            raise UserError(f"labels must be distinct; got {repeated!r} more than once")
        regions = self._embed_regions(self._get(image), boxes, box_format, normalized)
        scores, order = self._probabilities(regions @ text_features.T).topk(min(top_k, len(labels)), dim=-1)
        return [
            [(labels[i], score) for i, score in zip(*row)] for row in zip(order.tolist(), scores.tolist())
        ]

    @torch.inference_mode()
    def ground(
        self, image: Picture | None, phrases: Sequence[str], *, candidates: int = CANDIDATES
    ) -> list[tuple[str, Box, float]]:
        """Find the box of each phrase.

        Args:
            image: The picture, or None for the one set before.
            phrases: What to look for; each gets exactly one box, there or not: look at its score.
            candidates: How many boxes of a grid compete with the box head's answer, at most. They are ranked
                by how well their own region embeddings match the phrase, and the best ones are refined.
                0 gives the box head's answer as it is.

        Returns:
            (phrase, (x1, y1, x2, y2) in pixels of the picture, score) in the order given. The score is the
            cosine similarity of the box's own region embedding and the phrase.
        """
        text_features = self._embed_texts(phrases, "phrases")
        own = self._get(image)
        found = ground_phrases(self.model, own.state, text_features[None], own.content_box, candidates)
        boxes = own.geometry.from_canvas(found.boxes[0].double().cpu()).clamp(0, 1)
        boxes_px = denormalize_boxes(boxes, own.geometry.source_hw).tolist()
        return [
            (p, (x1, y1, x2, y2), s)
            for p, (x1, y1, x2, y2), s in zip(phrases, boxes_px, found.scores[0].tolist())
        ]

    def _get(self, image: Picture | None) -> _SetImage:
        if image is not None:
            return self._encode(image)
        if self._image is None:
            raise RuntimeError("no image: call set_image first, or pass an image")
        return self._image

    def _encode(self, image: Picture) -> _SetImage:
        preprocess, device = self.model.preprocess, self.model.device
        pixels = read_pixels(image)
        geometry = Geometry.fit(pixels.shape[:2], preprocess.image_size, preprocess.resize_mode)
        canvas = geometry.draw(pixels, preprocess.fill, preprocess.interpolation)
        images = torch.from_numpy(canvas).permute(2, 0, 1)[None].to(device)  # (1, 3, H, W)
        content_box = torch.tensor([geometry.content_box], device=device)
        return _SetImage(geometry, self.model.encode_image(images, content_box), content_box)

    def _embed_regions(self, image: _SetImage, boxes: ArrayLike, box_format: str, normalized: bool) -> Tensor:
        own = boxes_of_picture(boxes, image.geometry.source_hw, box_format, normalized)
        canvas = image.geometry.to_canvas(own).astype(np.float32).clip(0, 1)
        return embed_regions(self.model, image.state, torch.from_numpy(canvas)[None].to(self.model.device))[0]

    def _embed_texts(self, texts: Sequence[str], what: str) -> Tensor:
        """(T, D) of unit length; the last list is remembered, since many pictures are asked the same."""
        check_texts(texts, what)
        key = tuple(texts)
        if self._texts is None or self._texts[0] != key:
            self._texts = (key, embed_texts(self.model, key))
        return self._texts[1]

    def _probabilities(self, cosines: Tensor) -> Tensor:
        clip: Any = self.model.clip
        logits = clip.logit_scale.exp() * cosines
        return logits.softmax(-1) if clip.logit_bias is None else (logits + clip.logit_bias).sigmoid()


def boxes_of_picture(
    boxes: ArrayLike, size_hw: tuple[int, int], box_format: str = "xyxy", normalized: bool = False
) -> np.ndarray:
    """A user's boxes -> (R, 4) float64 normalised `xyxy` of the picture, checked and clipped.

    Raises:
        UserError: If they are not numbers, not (R, 4), not finite, inverted or outside the picture.
    """
    try:
        array = np.asarray(boxes, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"boxes must be (R, 4) numbers; got {boxes!r:.80}") from None
    if array.size == 0:
        array = array.reshape(0, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise UserError(f"boxes must be (R, 4), a row of 4 numbers per box; got shape {array.shape}")
    xyxy = convert_boxes(array, box_format)
    boxes_px = denormalize_boxes(xyxy, size_hw) if normalized else xyxy
    given = f"{'normalised' if normalized else 'pixel'} {box_format}"
    validate_boxes_px(boxes_px, size_hw, f"xyxy pixels, from {given}")
    return normalize_boxes(boxes_px, size_hw).clip(0, 1)


def check_texts(texts: Sequence[str], what: str) -> None:
    """Refuse an empty list, empty texts, and one string where a list belongs."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise UserError(f"{what} must be a list of strings; got {type(texts).__name__}")
    if not texts:
        raise UserError(f"{what} must hold at least one text; got none")
    for row, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{what} must be non-empty strings; got {text!r} in row {row}")


def _numpy(features: Tensor) -> np.ndarray:
    return features.float().cpu().numpy()
