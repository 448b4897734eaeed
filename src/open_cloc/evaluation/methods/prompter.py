"""Regions by the model's own Prompter, and phrases by its ranked boxes or its box head.

Shapes: R regions and P phrases of one image, D shared embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from open_cloc.errors import UserError
from open_cloc.evaluation.batches import EvaluationBatch
from open_cloc.evaluation.method import FoundBoxes, Setup
from open_cloc.evaluation.methods.cloc_towers import ClocTowers, MethodOfTowers, open_towers
from open_cloc.model.cloc import CLOC, ImageState
from open_cloc.model.embed import embed_regions
from open_cloc.model.prompter import BLIND
from open_cloc.model.search import GroundedBoxes, ground_phrases

ANSWERS = 10  # boxes for a phrase, best first, unless recall at more is asked for
Prompt = Literal["box", "points", "mask"]


class PrompterMethod(MethodOfTowers):
    """A CLOC model as it is meant to be used: one pass per picture, then any number of prompts.

    Args:
        towers: The model at work.
        candidates: Boxes that compete with the box head's answer for a phrase, at most; 0 for none.
        prompt: What a region is asked for by: its box, the point in the middle of it, or its outline.

    Attributes:
        further: Boxes beside the best one that are given for a phrase where candidates are ranked.
    """

    def __init__(self, towers: ClocTowers, candidates: int, prompt: Prompt = "box") -> None:
        super().__init__(towers)
        self.candidates, self.prompt = candidates, prompt
        self.further = max((ANSWERS, *towers.config.recall_k)) - 1 if candidates else 0
        self._known_texts: dict[str, Tensor] = {}

    def embed_regions(self, batch: EvaluationBatch, boxes: Sequence[np.ndarray]) -> Tensor:
        """Boxes of each picture of a batch -> (sum of R, D) float32 of unit length."""
        if self.prompt == "mask":
            return self.towers.embed_each(batch, batch.masks(boxes), _by_masks)
        return self.towers.embed_boxes(batch, boxes, EMBED[self.prompt])

    def describe_grounding(self) -> dict[str, Any]:
        """How boxes are found: by ranked candidates, or by the box head alone."""
        return {"method": "ranked" if self.candidates else "head", "candidates": self.candidates}

    def ground(self, batch: EvaluationBatch, phrases: Sequence[Sequence[str]]) -> FoundBoxes:
        """The best box for each phrase of each picture of a batch, and the next best of ranked ones."""
        state = self.towers.encode(batch)
        boxes, scores = [torch.zeros(0, 4)], [torch.zeros(0)]
        further = [torch.zeros(0, self.further, 4)]
        for i, (own, geometry) in enumerate(zip(phrases, batch.geometries)):
            if own:
                found = self._ground_image(state.select(slice(i, i + 1)), batch.content_boxes[i : i + 1], own)
                boxes.append(geometry.from_canvas(found.boxes[0].cpu()))
                scores.append(found.scores[0].cpu())
                if found.further is not None:
                    further.append(geometry.from_canvas(found.further[0].cpu()))
        return FoundBoxes(torch.cat(boxes), torch.cat(scores), torch.cat(further) if self.further else None)

    def _ground_image(self, image: ImageState, content_box: Tensor, phrases: Sequence[str]) -> GroundedBoxes:
        """What is found, (1, P) on the canvas, for one image's phrases."""
        model, texts = self.towers.model, self._embed_each_once(phrases)
        content_box = content_box.to(model.device)
        with self.towers.autocast():
            return ground_phrases(model, image, texts[None], content_box, self.candidates, self.further)

    def _embed_each_once(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (P, D) of unit length; many pictures of a data set are asked for the same phrases."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known_texts]
        self._known_texts |= dict(zip(new, self.embed_texts(new)))
        return torch.stack([self._known_texts[text] for text in texts])


def open_prompter(
    what: str,
    setup: Setup,
    *,
    grounding: Literal["ranked", "head"] = "ranked",
    prompt: Prompt = "box",
) -> PrompterMethod:
    """The Prompter's regions.

    Args:
        what: Nothing: the model is the setup's.
        setup: The weights and how to measure them.
        grounding: Finds phrases by ranking candidate boxes, or by the box head's answer as it is.
        prompt: `box`; `points`: regions are asked for by the middle of their box alone; or `mask`: by their
            outline, which the data must have.

    Raises:
        UserError: If the model has no eyes for outlines, or as `open_towers`.
    """
    candidates = setup.config.candidates if grounding == "ranked" else 0
    name = "prompter" if prompt == "box" else f"prompter,prompt={prompt}"
    towers = open_towers(name, what, setup, prompts=True)
    if prompt == "mask" and not towers.model.prompter.config.sees_outlines:
        raise UserError(f"method {name} would measure boxes: {BLIND}")
    return PrompterMethod(towers, candidates, prompt)


def open_head(what: str, setup: Setup) -> PrompterMethod:
    """The Prompter's regions, and the box head's answer for a phrase: short for `prompter,grounding=head`."""
    return open_prompter(what, setup, grounding="head")


def _by_boxes(model: CLOC, state: ImageState, boxes: Tensor) -> Tensor:
    return embed_regions(model, state, {"box": boxes})


def _by_points(model: CLOC, state: ImageState, boxes: Tensor) -> Tensor:
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    return embed_regions(model, state, {"points": centres[:, :, None]})


def _by_masks(model: CLOC, state: ImageState, masks: Tensor) -> Tensor:
    return embed_regions(model, state, {"mask": masks})


EMBED = {"box": _by_boxes, "points": _by_points}
