"""A CLOC model's texts and whole pictures: what the methods that measure our own models have in common.

Shapes: B images, R regions of one image, T texts, D shared embedding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from open_cloc.canvas import CanvasConfig
from open_cloc.errors import UserError
from open_cloc.evaluation.batches import EvaluationBatch
from open_cloc.evaluation.method import Setup
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.model.cloc import CLOC, ImageState
from open_cloc.model.create import create_model, names_towers
from open_cloc.model.embed import embed_texts, tell_cut
from open_cloc.model.features import project_tokens
from open_cloc.model.load import load_model
from open_cloc.model.towers import image_tower_of
from open_cloc.model.towers.dense import Readout, last_block
from open_cloc.precision import computing_in
from open_cloc.texts import TextCleaning

logger = logging.getLogger(__name__)


class ClocTowers:
    """The two towers of a CLOC model at work.

    Attributes:
        model: The model, in eval mode.
        config: How to measure.
        method: Name of the method that uses the towers.
        pretrained: Where the weights come from, if that is known.
        tokens: How the image tower's last block is read.
    """

    def __init__(
        self,
        model: CLOC,
        config: EvaluationConfig,
        method: str,
        pretrained: str = "",
        tokens: Readout = "last",
    ) -> None:
        self.model, self.config, self.method, self.pretrained = model, config, method, pretrained
        self.tokens = tokens
        self._last: tuple[Tensor, ImageState] | None = None

    @property
    def canvas(self) -> CanvasConfig:
        return self.model.preprocess

    @property
    def cleaning(self) -> TextCleaning:
        return self.model.cleaning

    def describe(self) -> dict[str, Any]:
        """All of the model and of this run that changes numbers, as plain JSON."""
        return {
            "method": self.method,
            "model": describe_model(self.model),
            "pretrained": self.pretrained,
            "precision": self.config.precision,
            "image_size": list(self.canvas.image_size),
            "resize_mode": self.canvas.resize_mode,
            "interpolation": self.canvas.interpolation,
            "prompter": asdict(self.model.prompter.config),
            "tokens": self.tokens,
            "device": self.model.device.type,
        }

    @property
    def logit_scale(self) -> float | None:
        """What the model multiplies cosines by; None for one of sigmoid losses, which knows no softmax."""
        clip = self.model.clip
        return None if clip.logit_bias is not None else float(clip.logit_scale.detach().exp())

    @cached_property
    def patch_hw(self) -> tuple[int, int]:
        """Pixels (height, width) of an image token."""
        height, width = self.canvas.image_size
        blank = torch.zeros(1, 3, height, width, dtype=torch.uint8, device=self.model.device)
        with self.autocast():
            rows, columns = self.model.encode_image(blank).grid_size
        return height // rows, width // columns

    def autocast(self) -> AbstractContextManager:
        """The context in which the model runs."""
        return computing_in(self.config.precision, self.model.device)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (T, D) float32 of unit length."""
        tell_cut(self.model, texts)
        with self.autocast():
            return embed_texts(self.model, texts)

    def embed_images(self, batch: EvaluationBatch) -> Tensor:
        """Whole pictures of a batch -> (B, D) float32 of unit length."""
        return F.normalize(self.encode(batch).image_features.float(), dim=-1)

    def encode(self, batch: EvaluationBatch) -> ImageState:
        """Run the image tower over a batch: once, however often the same batch is asked for in a row."""
        if self._last is None or self._last[0] is not batch.images:
            self._last = None  # gives its memory back before more is taken
            device = self.model.device
            pictures, content_boxes = batch.images.to(device), batch.content_boxes.to(device)
            with self.autocast():
                self._last = batch.images, self._encoded(pictures, content_boxes)
        return self._last[1]

    def embed_tokens(self, batch: EvaluationBatch) -> Tensor:
        """Places of each picture's canvas -> (B, rows, columns, D) of unit length.

        Each image token goes through the tower's own pooling and projection, alone.
        """
        state = self.encode(batch)
        with self.autocast():
            rows = project_tokens(image_tower_of(self.model.clip.visual), state.image_tokens)
        return F.normalize(rows.float(), dim=-1).unflatten(1, state.grid_size)

    def _encoded(self, pictures: Tensor, content_boxes: Tensor) -> ImageState:
        if self.tokens == "last":
            return self.model.encode_image(pictures, content_boxes)
        with last_block(self.model.clip.visual) as caught:
            state = self.model.encode_image(pictures, content_boxes)
            return replace(state, image_tokens=caught.tokens(self.tokens).float())

    def embed_boxes(
        self,
        batch: EvaluationBatch,
        boxes: Sequence[np.ndarray],
        embed: Callable[[CLOC, ImageState, Tensor], Tensor],
    ) -> Tensor:
        """Boxes of each picture, from the batch's one pass -> (sum of R, D) of unit length.

        Image by image: no padding to the most crowded one, and a result that knows nothing of its neighbours.

        Args:
            batch: Pictures, B of them.
            boxes: (R, 4) normalised `xyxy` of each picture, each with its own R.
            embed: Model, one encoded image and its boxes (1, R, 4) of the canvas -> (1, R, D) of unit length.
        """
        return self.embed_each(batch, batch.to_canvas(boxes), embed)

    def embed_each(
        self,
        batch: EvaluationBatch,
        prompts: Sequence[Tensor],
        embed: Callable[[CLOC, ImageState, Tensor], Tensor],
    ) -> Tensor:
        """The same of prompts of any kind, (1, R, ...) of each picture's canvas."""
        state = self.encode(batch)
        with self.autocast():
            rows = [
                embed(self.model, state.select(slice(i, i + 1)), own.to(self.model.device))[0]
                for i, own in enumerate(prompts)
            ]
        return torch.cat(rows)


class MethodOfTowers:
    """What the methods on a CLOC model's towers have in common: all but how they embed regions.

    Attributes:
        towers: The model at work.
    """

    def __init__(self, towers: ClocTowers) -> None:
        self.towers = towers
        self.canvas, self.cleaning, self.describe = towers.canvas, towers.cleaning, towers.describe
        self.embed_texts, self.embed_images = towers.embed_texts, towers.embed_images
        self.logit_scale = towers.logit_scale

    @property
    def patch_hw(self) -> tuple[int, int]:
        """Pixels (height, width) of a place: its image tokens may be asked of pictures of any size."""
        return self.towers.patch_hw


def open_towers(
    method: str, what: str, setup: Setup, tokens: Readout = "last", *, prompts: bool = False
) -> ClocTowers:
    """The towers of the weights that a method of ours is given.

    Weights may also be any towers that training can start from, `open_clip:ViT-B-16,pretrained=openai` among
    them: a plain CLIP is measured by what needs no Prompter.

    Args:
        method: Its name.
        what: What stands behind the name.
        setup: The weights, and how to measure.
        tokens: How the image tower's last block is read.
        prompts: The method asks the Prompter, which plain towers have not.

    Raises:
        UserError: If there are no weights, or they stand behind the method's name, or lack a Prompter.
        MissingFileError: If there is no such folder or repository.
    """
    if what:
        raise UserError(f"method {method} takes its model from --weights; got {what!r} behind its name")
    weights = setup.weights
    if weights is None:
        raise UserError(f"method {method} needs a model: give --weights FOLDER, or a hub id")
    if isinstance(weights, CLOC):
        return ClocTowers(weights, setup.config, method, tokens=tokens)
    if not names_towers(str(weights)):
        return ClocTowers(load_model(weights, setup.device), setup.config, method, str(weights), tokens)
    if prompts:
        raise UserError(
            f"method {method} needs a trained Prompter, which {weights} has not; roialign, crop, blur and "
            "whole name boxes without one, and only a Prompter finds phrases"
        )
    if "pretrained" not in str(weights) and not str(weights).startswith("folder:"):
        logger.warning("%s names no pretrained=...: its weights are random", weights)
    towers = create_model(str(weights), device=setup.device)
    return ClocTowers(towers, setup.config, method, str(weights), tokens)


def describe_model(model: CLOC) -> str:
    """The image tower in a word: timm's name, or what the open_clip config says."""
    vision = model.model_cfg["vision_cfg"]
    if vision.get("timm_model_name"):
        return str(vision["timm_model_name"])
    layers = vision.get("layers")
    if isinstance(layers, (list, tuple)):
        return f"ResNet-{'-'.join(map(str, layers))}"
    return f"ViT-{vision.get('width')}x{layers}-patch{vision.get('patch_size')}"
