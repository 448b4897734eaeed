"""OWL-ViT and OWLv2: the image tower once a picture, the text tower once a phrase, the heads on both.

Queries are scored independently of each other: a picture's phrases can be padded to its neighbours' number.

Shapes: B pictures, P phrases per picture (padded), N patches, C tower width, D shared embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from open_cloc.canvas import OPENAI_MEAN, OPENAI_STD
from open_cloc.labelling.detectors.canvas import Preprocess, read_preprocess
from open_cloc.labelling.detectors.common import (
    base_provenance,
    load_transformers,
    open_checkpoint,
    read_config,
)
from open_cloc.labelling.detectors.decode import Raw, decode, skip_without_phrases
from open_cloc.labelling.detectors.texts import TextCache, drop_first_words, texts_at_once
from open_cloc.labelling.hub import Checkpoint
from open_cloc.labelling.recipe import DetectorConfig
from open_cloc.labelling.types import Detections, Failure
from open_cloc.precision import computing_in

# What each architecture expects of its pictures where its checkpoint does not say; older versions of the
# library padded OWLv2's with 0.5.
PREPROCESS = {
    "owlv2": Preprocess("pad", (960, 960), OPENAI_MEAN, OPENAI_STD, 0.0, "bilinear"),
    "owlvit": Preprocess("squash", (768, 768), OPENAI_MEAN, OPENAI_STD, None, "bicubic"),
}


class OwlDetector:
    """A `Detector`; see `open_detector`.

    Attributes:
        model: `Owlv2ForObjectDetection` or `OwlViTForObjectDetection`, float32.
        preprocess: What the model expects of its pictures.
        text_cache: Embeddings of the phrases that were asked for last.
        provenance: What makes the boxes, as in `types.Detector`.
    """

    def __init__(self, config: DetectorConfig, device: torch.device) -> None:
        checkpoint, architecture = open_checkpoint(config, PREPROCESS, any_image_size=True)
        self.config = config
        self.device = device
        self.model, self.tokenizer = load_transformers(checkpoint, device)
        own = self.model.config
        self.towers: Any = getattr(self.model, architecture)
        self.preprocess = _preprocess(config, checkpoint, architecture, own)
        self.max_tokens: int = own.text_config.max_position_embeddings
        # Position embeddings are resized only where the picture is not of the model's own size.
        self.resized = self.preprocess.size != (own.vision_config.image_size,) * 2
        self.text_cache = TextCache(self._encode_texts, texts_at_once(device))
        self.provenance: Mapping[str, object] = base_provenance(config, checkpoint, "transformers") | {
            "class": type(self.model).__name__,
            "preprocess": self.preprocess.provenance(),
            "max_tokens": self.max_tokens,
        }

    @staticmethod
    def scaling(config: DetectorConfig) -> Callable[[np.ndarray], np.ndarray]:
        """What to do with a picture before it comes here, on another machine's CPU; see `open_scaling`."""
        checkpoint, architecture = open_checkpoint(config, PREPROCESS, any_image_size=True)
        return _preprocess(config, checkpoint, architecture, read_config(checkpoint)).scale

    def __call__(
        self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]
    ) -> list[Detections | Failure]:
        return skip_without_phrases(self._detect, images, phrases)

    def _detect(
        self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]
    ) -> list[Detections | Failure]:
        canvases = [self.preprocess.canvas(image.shape[:2]) for image in images]
        raw = self.raw(self.preprocess.draw(images, canvases, self.device), phrases)
        return [decode(own, canvas, self.config) for own, canvas in zip(raw, canvases)]

    def raw(self, pixels: Tensor, phrases: Sequence[Sequence[str]]) -> list[Raw]:
        """Pictures (B, 3, H, W), normalised, and the phrases of each, at least one -> what the heads say."""
        with computing_in(self.config.precision, self.device):
            feature_map = self.model.image_embedder(pixels, interpolate_pos_encoding=self.resized)[0]
        # (B, rows, columns, C); heads in bfloat16 would round boxes.
        feature_map = feature_map.float()
        features = feature_map.flatten(1, 2)  # (B, N, C)
        asked = [[self._shorten(phrase) for phrase in own] for own in phrases]
        self.text_cache.get([text for own in asked for text, _ in own])  # new ones of all pictures together
        queries, mask = self._queries([[text for text, _ in own] for own in asked])
        logits = self.model.class_predictor(features, queries, mask)[0]  # (B, N, P)
        boxes = self.model.box_predictor(features, feature_map, self.resized)  # (B, N, 4)
        return [
            Raw(boxes[row], logits[row, :, : len(own)].sigmoid(), sum(cut for _, cut in own))
            for row, own in enumerate(asked)
        ]

    def _queries(self, texts: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        """(B, P, D) embeddings, padded, and (B, P) True where there is one."""
        most = max(len(own) for own in texts)
        embedded = [self.text_cache.get(own) for own in texts]
        queries = torch.stack([F.pad(own, (0, 0, 0, most - len(own))) for own in embedded])
        counts = torch.tensor([len(own) for own in texts], device=self.device)
        return queries, torch.arange(most, device=self.device) < counts[:, None]

    def _shorten(self, phrase: str) -> tuple[str, bool]:
        """The prompt as it is asked, and whether words had to go."""
        return drop_first_words(phrase, self.config.prompt, self._num_tokens, self.max_tokens)

    def _num_tokens(self, text: str) -> int:
        return len(self.tokenizer(text, verbose=False)["input_ids"])

    def _encode_texts(self, texts: Sequence[str]) -> Tensor:
        """(T, D) of unit length, as the library's forward pass has it; several have the longest length."""
        padding = "max_length" if len(texts) > 1 else False
        made = self.tokenizer(
            list(texts), truncation=True, max_length=self.max_tokens, padding=padding, return_tensors="pt"
        )
        ids, mask = (made[name].to(self.device) for name in ("input_ids", "attention_mask"))  # (T, tokens)
        with computing_in(self.config.precision, self.device):
            pooled = self.towers.text_model(ids, mask).pooler_output
            embeddings = self.towers.text_projection(pooled).float()
        return embeddings / embeddings.norm(dim=-1, keepdim=True)


def _preprocess(config: DetectorConfig, checkpoint: Checkpoint, architecture: str, own: Any) -> Preprocess:
    """What a checkpoint with this config of transformers expects of its pictures."""
    default = replace(PREPROCESS[architecture], size=(own.vision_config.image_size,) * 2)
    preprocess = read_preprocess(checkpoint.folder, default)
    return replace(preprocess, size=(config.image_size,) * 2) if config.image_size else preprocess
