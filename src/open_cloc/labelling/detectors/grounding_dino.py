"""Grounding DINO: a picture and one caption of phrases, `a cat . a dog .`, go through one joint network.

A phrase's score does depend on the other phrases of its caption: that is the model. It must not depend on
other pictures. Padding a picture to its neighbours' size changes what the tower sees, so only pictures of one
size share a pass; captions are padded and masked.

Shapes: B captions of one pass, T tokens, Q queries of the model, P phrases of a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from open_cloc.errors import UserError
from open_cloc.labelling.detectors.canvas import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Canvas,
    Preprocess,
    read_preprocess,
)
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

ARCHITECTURES = ("grounding-dino", "mm-grounding-dino")
# What the architecture expects of its pictures where its checkpoint does not say.
PREPROCESS = Preprocess("edges", (800, 1333), IMAGENET_MEAN, IMAGENET_STD, None, "bilinear")
# Pixels between two places of the finest map.
STRIDE = 8


class Question(NamedTuple):
    """A caption of phrases that are asked in one pass.

    Attributes:
        ids: Tokens of the caption, special ones included.
        spans: First token of each phrase and one past its last.
        phrases: Places of these phrases among the picture's.
    """

    ids: list[int]
    spans: list[tuple[int, int]]
    phrases: list[int]


class GroundingDinoDetector:
    """A `Detector`; see `open_detector`.

    Attributes:
        model: `GroundingDinoForObjectDetection` or its MM variant, float32.
        preprocess: What the model expects of its pictures.
        provenance: What makes the boxes, as in `types.Detector`.
    """

    def __init__(self, config: DetectorConfig, device: torch.device) -> None:
        checkpoint, _ = open_checkpoint(config, ARCHITECTURES)
        self.config = config
        self.device = device
        self.model, self.tokenizer = load_transformers(checkpoint, device)
        self.preprocess = read_preprocess(checkpoint.folder, PREPROCESS)
        self.max_tokens: int = self.model.config.max_text_len
        tokenizer = self.tokenizer
        self.start, self.stop = tokenizer.cls_token_id, tokenizer.sep_token_id
        self.full_stop, question = (tokenizer.convert_tokens_to_ids(mark) for mark in (".", "?"))
        if {self.full_stop, question} & {None, tokenizer.unk_token_id}:
            raise UserError(f"{checkpoint.folder}: the tokenizer knows no full stop or no question mark")
        self.separators = {self.start, self.stop, self.full_stop, question}  # never inside a phrase
        # The model takes its best Q of all places of its maps, so a very thin picture needs padding, masked.
        self.min_area: int = STRIDE**2 * self.model.config.num_queries
        self.provenance: Mapping[str, object] = base_provenance(config, checkpoint, "transformers") | {
            "class": type(self.model).__name__,
            "preprocess": self.preprocess.provenance(),
            "max_tokens": self.max_tokens,
            "phrase_score": "largest of its tokens",
        }

    @staticmethod
    def scaling(config: DetectorConfig) -> Callable[[np.ndarray], np.ndarray]:
        """What to do with a picture before it comes here, on another machine's CPU; see `open_scaling`."""
        checkpoint, _ = open_checkpoint(config, ARCHITECTURES)
        return read_preprocess(checkpoint.folder, PREPROCESS).scale

    def __call__(
        self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]
    ) -> list[Detections | Failure]:
        return skip_without_phrases(self._detect, images, phrases)

    def _detect(
        self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]
    ) -> list[Detections | Failure]:
        canvases = [self.preprocess.canvas(image.shape[:2], self.min_area) for image in images]
        captions, cuts = zip(*(self._captions(own) for own in phrases))
        raws: list[list[Raw]] = [[] for _ in images]
        for canvas in dict.fromkeys(canvases):
            todo = [
                (row, caption)
                for row, own in enumerate(canvases)
                if own == canvas
                for caption in captions[row]
            ]
            for start in range(0, len(todo), len(images)):
                rows, asked = zip(*todo[start : start + len(images)])
                pixels = self.preprocess.draw(
                    [images[row] for row in rows], [canvas] * len(rows), self.device
                )
                for row, raw in zip(
                    rows, self.raw(pixels, canvas, asked, [len(phrases[row]) for row in rows])
                ):
                    raws[row].append(raw)
        return [
            decode(_joined(own, cut), _whole(canvas), self.config)
            for own, cut, canvas in zip(raws, cuts, canvases)
        ]

    def raw(
        self, pixels: Tensor, canvas: Canvas, captions: Sequence[Question], num_phrases: Sequence[int]
    ) -> list[Raw]:
        """Pictures (B, 3, H, W) of one canvas, normalised, with a caption each -> what the heads say."""
        ids = torch.full(
            (len(captions), max(len(own.ids) for own in captions)), self.tokenizer.pad_token_id or 0
        )
        mask = torch.zeros_like(ids)
        for row, caption in enumerate(captions):
            ids[row, : len(caption.ids)] = torch.tensor(caption.ids)
            mask[row, : len(caption.ids)] = 1
        pixel_mask = torch.zeros(len(captions), *canvas.canvas_hw, dtype=torch.long, device=self.device)
        pixel_mask[:, : canvas.content_hw[0], : canvas.content_hw[1]] = 1
        with computing_in(self.config.precision, self.device):
            output = self.model(
                pixel_values=pixels,
                pixel_mask=pixel_mask,
                input_ids=ids.to(self.device),
                attention_mask=mask.to(self.device),
            )
        tokens = output.logits.float().sigmoid()  # (B, Q, T)
        return [
            Raw(boxes, _phrase_scores(own, caption, count))
            for boxes, own, caption, count in zip(output.pred_boxes.float(), tokens, captions, num_phrases)
        ]

    def _captions(self, phrases: Sequence[str]) -> tuple[list[Question], int]:
        """As few captions as hold all phrases, in order, and how many phrases had to be cut."""
        captions: list[Question] = []
        cut = 0
        for row, phrase in enumerate(phrases):
            tokens, is_cut = self._tokens(phrase)
            cut += is_cut
            if not captions or len(captions[-1].ids) + len(tokens) + 1 > self.max_tokens:
                captions.append(Question([self.start, self.stop], [], []))
            ids, spans, rows = captions[-1]
            first = len(ids) - 1  # before the end
            ids[first:] = [*tokens, self.full_stop, self.stop]
            spans.append((first, first + len(tokens)))
            rows.append(row)
        return captions, cut

    def _tokens(self, phrase: str) -> tuple[list[int], bool]:
        """A phrase's tokens, without separators, and whether words had to go."""
        most = self.max_tokens - 3  # start, full stop and end
        text, is_cut = drop_first_words(phrase, self.config.prompt, lambda text: len(self._plain(text)), most)
        return self._plain(text)[:most], is_cut

    def _plain(self, text: str) -> list[int]:
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return [token for token in ids if token not in self.separators]


def _phrase_scores(tokens: Tensor, caption: Question, num_phrases: int) -> Tensor:
    """Scores (Q, T) of a caption's tokens -> (Q, P), 0 for phrases of other captions and without tokens."""
    scores = tokens.new_zeros(len(tokens), num_phrases)
    for phrase, (first, last) in zip(caption.phrases, caption.spans):
        if last > first:
            scores[:, phrase] = tokens[:, first:last].amax(1)
    return scores


def _joined(passes: Sequence[Raw], cut: int) -> Raw:
    return Raw(torch.cat([own.boxes for own in passes]), torch.cat([own.scores for own in passes]), cut)


def _whole(canvas: Canvas) -> Canvas:
    """The model's boxes are relative to the picture even where it is padded: it knows the mask."""
    return Canvas(canvas.content_hw, canvas.content_hw)
