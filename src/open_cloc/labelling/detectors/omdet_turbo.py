"""OmDet-Turbo: the phrases of a picture are its classes, and together they are named in one task text.

All of a picture's queries see its task text, so a phrase's score depends on the other phrases: that is the
model. Pictures go through one at a time, as the library pads classes and tasks to their neighbours' number.

Shapes: P phrases of a picture, Q queries of the model, T tokens, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from open_cloc.labelling.detectors.canvas import IMAGENET_MEAN, IMAGENET_STD, Preprocess, read_preprocess
from open_cloc.labelling.detectors.common import (
    base_provenance,
    load_transformers,
    open_checkpoint,
)
from open_cloc.labelling.detectors.decode import Raw, decode, skip_without_phrases
from open_cloc.labelling.detectors.texts import drop_first_words
from open_cloc.labelling.recipe import DetectorConfig
from open_cloc.labelling.types import Detections, Failure
from open_cloc.precision import computing_in

# What the architecture expects of its pictures where its checkpoint does not say.
PREPROCESS = Preprocess("squash", (640, 640), IMAGENET_MEAN, IMAGENET_STD, None, "bilinear")
TASK = "Detect {}."


class OmDetTurboDetector:
    """A `Detector`; see `open_detector`.

    Attributes:
        model: `OmDetTurboForObjectDetection`, float32.
        preprocess: What the model expects of its pictures.
        provenance: What makes the boxes, as in `types.Detector`.
    """

    def __init__(self, config: DetectorConfig, device: torch.device) -> None:
        checkpoint, _ = open_checkpoint(config, ("omdet-turbo",))
        self.config = config
        self.device = device
        self.model, self.tokenizer = load_transformers(checkpoint, device)
        self.preprocess = read_preprocess(checkpoint.folder, PREPROCESS)
        self.max_tokens: int = self.model.config.text_config.max_position_embeddings
        self.provenance: Mapping[str, object] = base_provenance(config, checkpoint, "transformers") | {
            "class": type(self.model).__name__,
            "preprocess": self.preprocess.provenance(),
            "max_tokens": self.max_tokens,
            "task": TASK,
        }

    @staticmethod
    def scaling(config: DetectorConfig) -> Callable[[np.ndarray], np.ndarray]:
        """What to do with a picture before it comes here, on another machine's CPU; see `open_scaling`."""
        checkpoint, _ = open_checkpoint(config, ("omdet-turbo",))
        return read_preprocess(checkpoint.folder, PREPROCESS).scale

    def __call__(
        self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]
    ) -> list[Detections | Failure]:
        return skip_without_phrases(self._detect, images, phrases)

    def _detect(
        self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]
    ) -> list[Detections | Failure]:
        results = []
        for image, own in zip(images, phrases):
            canvas = self.preprocess.canvas(image.shape[:2])
            raw = self.raw(self.preprocess.draw([image], [canvas], self.device), own)
            results.append(decode(raw, canvas, self.config))
        return results

    def raw(self, pixels: Tensor, phrases: Sequence[str]) -> Raw:
        """What the heads say of a picture.

        Args:
            pixels: The picture (1, 3, H, W), normalised.
            phrases: Its phrases, at least one.
        """
        texts, cuts = zip(*(self._shorten(phrase) for phrase in phrases))
        class_ids, class_mask = self._tokens(texts)
        task_ids, task_mask = self._tokens([TASK.replace("{}", ", ".join(texts))])
        self._forget_texts()
        with computing_in(self.config.precision, self.device):
            output = self.model(
                pixel_values=pixels,
                classes_input_ids=class_ids,
                classes_attention_mask=class_mask,
                tasks_input_ids=task_ids,
                tasks_attention_mask=task_mask,
                classes_structure=torch.tensor([len(phrases)], device=self.device),
            )
        boxes, logits = output.decoder_coord_logits[0], output.decoder_class_logits[0]  # (Q, 4), (Q, P)
        return Raw(boxes.float(), logits.float().sigmoid(), sum(cuts))

    def _forget_texts(self) -> None:
        """The library remembers embeddings, which round differently in batches of different sizes."""
        for cache in (self.model.language_cache_class, self.model.language_cache_prompt):
            cache.cache.clear()
            cache.current_load = 0

    def _shorten(self, phrase: str) -> tuple[str, bool]:
        """The prompt as it is asked, and whether words had to go."""
        return drop_first_words(phrase, self.config.prompt, self._num_tokens, self.max_tokens)

    def _num_tokens(self, text: str) -> int:
        return len(self.tokenizer(text, verbose=False)["input_ids"])

    def _tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (texts, T), padded to the longest, and which are real; a long task text is cut."""
        encoded = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        return encoded["input_ids"].to(self.device), encoded["attention_mask"].to(self.device)
