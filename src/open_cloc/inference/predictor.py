"""Use a trained model: pictures and boxes in pixels go in, numpy arrays and answers come out.

Shapes: H W pixels of the user's picture, R regions, T texts, D shared embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from open_cloc.canvas import Geometry
from open_cloc.inference.answer import FoundPhrase, Label
from open_cloc.inference.detections import from_bgr, to_detections
from open_cloc.inference.encoded import EncodedImage, Regions, require_numbers
from open_cloc.inference.inputs import check_texts
from open_cloc.inference.together import embed_together
from open_cloc.model.cloc import CLOC
from open_cloc.model.embed import embed_texts, tell_cut
from open_cloc.model.load import load_model
from open_cloc.model.search import CANDIDATES
from open_cloc.pictures import Picture, read_pixels
from open_cloc.texts import TextCache

if TYPE_CHECKING:
    import supervision as sv


def load(
    path_or_hub_id: str | Path,
    device: str | torch.device | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Predictor:
    """Load a trained model for use.

    Args:
        path_or_hub_id: Folder that `save_pretrained` wrote, or `owner/name` on the Hugging Face hub.
        device: Where to compute; None takes a GPU if there is one, else the CPU.
        dtype: Type of the towers' weights: `fp32`, `bf16`, `fp16` or torch's; None keeps float32. Embeddings
            come out as float32 in any case.
        revision: Branch, tag or commit on the hub; None takes its main branch.
        token: Access token for the hub; None takes the one you are logged in with.
        cache_dir: Where downloads are kept; None takes the hub's own place.

    Raises:
        MissingFileError: If there is no such folder or repository.
        UserError: If it holds no CLOC model, or the device or type is unknown.
    """
    return Predictor(
        load_model(path_or_hub_id, device, dtype=dtype, revision=revision, token=token, cache_dir=cache_dir)
    )


class Predictor:
    """Looks at pictures and reads texts.

        image = predictor.encode("photo.jpg")
        image.embed([[10, 20, 200, 180]])
        image.classify(["a dog", "a cat"], [[10, 20, 200, 180]])
        image.find(["a red umbrella"], min_score=0.2)

    A picture is a path, an encoded file's bytes, a PIL image (any mode; converted to RGB) or an (H, W, 3)
    uint8 RGB array. Boxes are pixels of that picture as PIL opens it: an EXIF orientation is not applied,
    here or in training; call `PIL.ImageOps.exif_transpose` first if boxes refer to the turned picture.

    Threads may share a predictor, but for `set_image` and the calls without an image that use it: these
    remember one picture, for those who know Segment Anything's predictor.

    Attributes:
        model: The model, in eval mode.
        texts: Text features (D,) of unit length; the last ones are remembered.
    """

    def __init__(self, model: CLOC) -> None:
        self.model = model.eval()
        self.texts: TextCache[Tensor] = TextCache(self._embed_texts)
        self._image: EncodedImage | None = None

    @overload
    def encode(self, pictures: Picture) -> EncodedImage: ...

    @overload
    def encode(self, pictures: list[Picture] | tuple[Picture, ...]) -> list[EncodedImage]: ...

    @torch.inference_mode()
    def encode(
        self, pictures: Picture | list[Picture] | tuple[Picture, ...]
    ) -> EncodedImage | list[EncodedImage]:
        """Look at a picture once; all questions about it are cheap afterwards.

        Args:
            pictures: A picture, or a list of them, of any sizes, that go through the tower together.

        Returns:
            The picture, ready to be asked; of a list, a list.

        Raises:
            MissingFileError: If a picture is a path that does not exist.
            UserError: If one cannot be decoded, or is an array of another form.
            NotFiniteError: If the model has no number for it.
        """
        if not isinstance(pictures, (list, tuple)):
            return self._encode([pictures])[0]
        return self._encode(pictures) if pictures else []

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Texts, in lower case unless the model was trained otherwise -> (T, D) float32 of unit length.

        Raises:
            UserError: If there is no text, one is empty, or this is one string instead of a list.
        """
        check_texts(texts, "texts", self.model.cleaning)
        return torch.stack(self.texts(texts)).cpu().numpy()

    def embed_together(self, images: Sequence[EncodedImage], boxes: Sequence[np.ndarray]) -> list[Regions]:
        """Embed boxes of several pictures in few passes of the Prompter.

        Args:
            images: Pictures that this predictor has looked at, one for each set of boxes.
            boxes: (R, 4) normalised `xyxy` of its picture each, inside of it.

        Returns:
            For each its `features` (R, D), a tensor of unit length, and its `boxes`.
        """
        return embed_together(images, boxes)

    def detections(
        self,
        picture: Picture,
        phrases: Sequence[str],
        *,
        min_score: float | None = None,
        candidates: int = CANDIDATES,
        bgr: bool = False,
    ) -> sv.Detections:
        """Look at a picture and find phrases, as `supervision.Detections`.

        Args:
            picture: As `encode` takes it.
            phrases: What to look for; each has exactly one box, there or not: its score tells.
            min_score: Leave out phrases whose box matches less than this cosine; None keeps all.
            candidates: As `EncodedImage.find` takes it.
            bgr: Whether an array has its channels in OpenCV's order, as what `cv2.imread` reads and
                `sv.InferenceSlicer` cuts has. Files, bytes and PIL images know theirs.

        Returns:
            Boxes (n, 4) in pixels, cosines as confidences, places in `phrases` as classes, and in `data`
            `class_name` and `embedding` (n, D), region embeddings of unit length.

        Raises:
            UserError: If `supervision` is not installed, or as `encode` and `EncodedImage.find`.
        """
        image = self.encode(from_bgr(picture) if bgr else picture)
        return to_detections(image, phrases, candidates=candidates, min_score=min_score)

    @torch.inference_mode()
    def _embed_texts(self, texts: Sequence[str]) -> list[Tensor]:
        tell_cut(self.model, texts)
        # Copies: a row that is remembered does not keep those beside it.
        return [row.clone() for row in require_numbers(embed_texts(self.model, texts), "texts")]

    def _encode(self, pictures: Sequence[Picture]) -> list[EncodedImage]:
        preprocess, device = self.model.preprocess, self.model.device
        decoded = [read_pixels(picture) for picture in pictures]
        geometries = [self._geometry((pixels.shape[0], pixels.shape[1])) for pixels in decoded]
        canvases = np.stack(
            [g.draw(p, preprocess.fill, preprocess.interpolation) for g, p in zip(geometries, decoded)]
        )
        images = torch.from_numpy(canvases).permute(0, 3, 1, 2).to(device)  # (B, 3, H, W)
        content_boxes = torch.tensor([geometry.content_box for geometry in geometries], device=device)
        state = self.model.encode_image(images, content_boxes)
        require_numbers(state.image_features, "the picture")
        # An index of numbers copies: one picture that is kept does not keep those beside it.
        rows = [torch.tensor([i], device=device) for i in range(len(decoded))]
        return [
            EncodedImage(geometry, state.select(row), content_boxes[row], self.model, self.texts)
            for geometry, row in zip(geometries, rows)
        ]

    def _geometry(self, size_hw: tuple[int, int]) -> Geometry:
        return Geometry.fit(size_hw, self.model.preprocess.image_size, self.model.preprocess.resize_mode)

    @torch.inference_mode()
    def restore(
        self,
        size_hw: tuple[int, int],
        image_features: Tensor,
        image_tokens: Tensor,
        grid_size: tuple[int, int],
    ) -> EncodedImage:
        """A picture whose pass through the tower was kept; only the Prompter's part is computed.

        Args:
            size_hw: (height, width) of the picture in pixels.
            image_features: (D,) as `EncodedImage.state` holds them.
            image_tokens: (N, C) of the same.
            grid_size: (rows, columns) of the tokens.
        """
        device, geometry = self.model.device, self._geometry(size_hw)
        content_box = torch.tensor([geometry.content_box], device=device)
        features, tokens = image_features[None].to(device), image_tokens[None].to(device)
        state = self.model.state_of(features, tokens, grid_size, content_box)
        return EncodedImage(geometry, state, content_box, self.model, self.texts)

    # --- one picture remembered, as in Segment Anything -------------------------------------------------

    def set_image(self, image: Picture) -> Predictor:
        """Look at a picture; later calls without an image ask it. Raises as `encode`."""
        self._image = self.encode(image)
        return self

    def encode_image(self, image: Picture | None = None) -> np.ndarray:
        """A picture, None for the one that is set -> (D,) float32 of unit length."""
        return self._get(image).embed()

    def encode_regions(
        self,
        boxes: ArrayLike,
        *,
        image: Picture | None = None,
        box_format: str = "xyxy",
        normalized: bool = False,
    ) -> np.ndarray:
        """Boxes of a picture, None for the one that is set -> (R, D); see `EncodedImage.embed`.

        Raises:
            RuntimeError: If there is no picture.
        """
        return self._get(image).embed(boxes, box_format=box_format, normalized=normalized)

    def classify_regions(
        self,
        boxes: ArrayLike,
        labels: Sequence[str],
        top_k: int = 5,
        *,
        image: Picture | None = None,
        box_format: str = "xyxy",
        normalized: bool = False,
    ) -> list[list[Label]]:
        """The best names of each box of a picture, None for the one that is set; see `EncodedImage.classify`.

        Raises:
            RuntimeError: If there is no picture.
        """
        named = self._get(image).classify(
            labels, boxes, box_format=box_format, normalized=normalized, top_k=top_k
        )
        return [region.labels for region in named]

    def ground(
        self, phrases: Sequence[str], *, image: Picture | None = None, candidates: int = CANDIDATES
    ) -> list[FoundPhrase]:
        """The box of each phrase in a picture, None for the one that is set; see `EncodedImage.find`.

        Raises:
            RuntimeError: If there is no picture.
        """
        return self._get(image).find(phrases, candidates=candidates)

    def _get(self, image: Picture | None) -> EncodedImage:
        if image is not None:
            return self.encode(image)
        if self._image is None:
            raise RuntimeError("no image: call set_image first, or pass an image")
        return self._image
