"""A CLOC model as a detector: it grounds each phrase, and says how well the box that it found fits.

Pictures go through one at a time. The search for a box chooses among hundreds that match almost alike, so the
rounding of a matrix product, which differs between batch sizes, now and then decides: a batch would make a
picture's label depend on its neighbours. It would be 10 % faster on a CPU.

Shapes: P phrases of the picture, D shared embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from open_cloc.canvas import Geometry
from open_cloc.labelling.detectors.common import base_provenance, open_checkpoint
from open_cloc.labelling.detectors.decode import keep_boxes, skip_without_phrases
from open_cloc.labelling.detectors.texts import TextCache, drop_first_words, texts_at_once
from open_cloc.labelling.recipe import DetectorConfig
from open_cloc.labelling.types import Detections, Failure
from open_cloc.model.cloc import CLOC
from open_cloc.model.embed import embed_regions, embed_texts
from open_cloc.model.load import load_model
from open_cloc.model.search import CANDIDATES, VERSION, ground_phrases
from open_cloc.precision import Choice, computing_in


class Grounded(NamedTuple):
    """What was found in a picture.

    Attributes:
        boxes: Box of each phrase, (P, 4) float64 normalised `xyxy` of the picture.
        regions: Embeddings of what each box holds, (P, D) of unit length.
        texts: Embeddings of the phrases, (P, D) of unit length.
    """

    boxes: Tensor
    regions: Tensor
    texts: Tensor


class Grounder:
    """A CLOC model that remembers phrases.

    Args:
        model: The model, in eval mode.
        precision: As a `DetectorConfig` has it, where that does no harm.
    """

    def __init__(self, model: CLOC, precision: Choice = "fp32") -> None:
        self.model = model
        self.text_cache = TextCache(self._embed, texts_at_once(model.device))
        self.precision: Choice = precision

    def _embed(self, texts: Sequence[str]) -> Tensor:
        """(T, D); several have the longest length."""
        if len(texts) == 1:
            return embed_texts(self.model, texts)
        ids = self.model.tokenizer(list(texts)).to(self.model.device)
        return F.normalize(self.model.encode_text(ids).float(), dim=-1)

    def shorten(self, phrase: str, prompt: str = "{}") -> tuple[str, bool]:
        """A phrase as it is asked for, and whether first words had to go for the model's context."""
        tokenize = self.model.tokenize
        return drop_first_words(phrase, prompt, tokenize.num_tokens, tokenize.context_length)

    def ground(self, image: np.ndarray, phrases: Sequence[str]) -> Grounded:
        """Find phrases, at least one, in a (H, W, 3) uint8 picture, as `Predictor.ground` does."""
        model, preprocess = self.model, self.model.preprocess
        geometry = Geometry.fit(image.shape[:2], preprocess.image_size, preprocess.resize_mode)
        canvas = geometry.draw(image, preprocess.fill, preprocess.interpolation)
        pixels = torch.from_numpy(canvas).permute(2, 0, 1)[None].to(model.device)  # (1, 3, H, W)
        content_box = torch.tensor([geometry.content_box], device=model.device)
        with computing_in(self.precision, model.device):
            state = model.encode_image(pixels, content_box)
            texts = self.text_cache.get(phrases)  # (P, D)
            boxes = ground_phrases(model, state, texts[None], content_box, CANDIDATES).boxes
            regions = embed_regions(model, state, {"box": boxes})[0]
        return Grounded(geometry.from_canvas(boxes[0].double()), regions, texts)


class ClocDetector:
    """A `Detector`; see `open_detector`. As many boxes as phrases: each is grounded once.

    Attributes:
        grounder: The model, with the phrases that it remembers.
        provenance: What makes the boxes, as in `types.Detector`.
    """

    def __init__(self, config: DetectorConfig, device: torch.device) -> None:
        checkpoint, _ = open_checkpoint(config, ("cloc",))
        self.config = config
        self.grounder = Grounder(load_model(checkpoint.folder, device), config.precision)
        self.provenance: Mapping[str, object] = base_provenance(config, checkpoint, "cloc") | {
            "class": "CLOC",
            "image_size": list(self.grounder.model.preprocess.image_size),
            "candidates": CANDIDATES,
            "grounding": VERSION,
            "phrase_score": "beside the picture's surest pair"
            if self._clip.logit_bias is None
            else "sigmoid of the logit",
        }

    def __call__(
        self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]
    ) -> list[Detections | Failure]:
        return skip_without_phrases(self._detect, images, phrases)

    def _detect(
        self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]
    ) -> list[Detections | Failure]:
        results = []
        for image, own in zip(images, phrases):
            asked, are_cut = zip(*(self.grounder.shorten(phrase, self.config.prompt) for phrase in own))
            found = self.grounder.ground(image, asked)
            kept = keep_boxes(found.boxes, self._scores(found), self.config, sum(are_cut))
            if isinstance(kept, Detections):
                cosines = (found.regions.float() * found.texts.float()).sum(-1)
                kept = replace(kept, cycle=cosines.cpu().numpy())
            results.append(kept)
        return results

    def _scores(self, found: Grounded) -> Tensor:
        """(P, P) in [0, 1]: how well each box fits each phrase."""
        logits = self._clip.logit_scale.exp() * (found.regions.float() @ found.texts.float().T)
        if self._clip.logit_bias is not None:  # sigmoid losses: a pair's own probability
            return (logits + self._clip.logit_bias).sigmoid()
        return relative_scores(logits)

    @property
    def _clip(self) -> Any:
        return self.grounder.model.clip


def relative_scores(logits: Tensor) -> Tensor:
    """How likely each pair of a box and a phrase is, beside the surest pair of the picture: (P, P) in [0, 1].

    A softmax model's cosines have no zero: what counts as a match differs from model to model. But phrases
    that are in the picture match about as well as the best of them, others are further below it than the
    model's temperature. The surest pair scores 1 whatever it is: where a caption may have nothing to do with
    its picture, the cycle score, an absolute cosine, tells.
    """
    return (logits - logits.amax()).exp()
