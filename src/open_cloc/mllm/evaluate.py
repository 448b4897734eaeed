"""How often a language model that sees is right, by kind of question, with intervals over pictures.

Texts count where they are the answer, blanks and case aside; boxes where the first one that is named overlaps
the true one by an IoU of 0.5 or more.

Shapes: X questions, I pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from open_cloc.evaluation.intervals import Estimate, Interval, mean_over, mean_over_classes, measure
from open_cloc.mllm.model import RegionLM
from open_cloc.mllm.prompt import boxes_in
from open_cloc.mllm.questions import KINDS, Question, clean, iou
from open_cloc.mllm.train import Example

MIN_IOU = 0.5
AVERAGE = "average"  # of the kinds' accuracies


class Score(NamedTuple):
    """Accuracies.

    Attributes:
        values: By kind of question, and their `average`.
        intervals: Of the same, 95 %.
    """

    values: dict[str, float]
    intervals: dict[str, Interval]


def answers(
    model: RegionLM, examples: Sequence[Example], *, batch_size: int = 64, progress: bool = False
) -> list[str]:
    """What a model answers; questions of like length are asked together."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].prompt.ids))
    longest = max((len(example.answer) for example in examples), default=1) + 4
    found = [""] * len(examples)
    starts = range(0, len(order), batch_size)
    for start in tqdm(starts, disable=not progress, unit="batch", desc="answers", mininterval=1):
        rows = order[start : start + batch_size]
        for row, text in zip(rows, model.generate([examples[i].prompt for i in rows], longest)):
            found[row] = text
    return found


def is_right(example: Example, answer: str, bins: int) -> bool:
    """Whether an answer is the right one; on the canvas, where an IoU is that of the picture."""
    if example.canvas_box is None:
        return clean(answer) == clean(example.question.answer)
    boxes = boxes_in(answer, bins)
    return len(boxes) > 0 and iou(boxes[0].tolist(), example.canvas_box.tolist()) >= MIN_IOU


def right(model: RegionLM, examples: Sequence[Example], *, progress: bool = False) -> Tensor:
    """Which questions a model answers rightly: (X,) float32 of zeros and ones."""
    given = answers(model, examples, progress=progress)
    return torch.tensor([float(is_right(e, text, model.config.bins)) for e, text in zip(examples, given)])


def score(values: Tensor, questions: Sequence[Question], num_images: int) -> Score:
    """Means of something by kind of question, with their average.

    Args:
        values: (S, X) of S runs, such as which answers are right, or the difference of two runs.
        questions: X questions.
        num_images: I.
    """
    runs = len(values)
    kinds = torch.tensor([KINDS.index(question.kind) for question in questions]).repeat(runs)
    images = torch.tensor([question.image for question in questions]).repeat(runs)
    flat = values.flatten()
    estimates: dict[str, Estimate] = {}
    for number, kind in enumerate(KINDS):
        own = kinds == number
        if own.any():
            estimates[kind] = mean_over(flat[own], images[own], num_images)
    estimates[AVERAGE] = mean_over_classes(flat, kinds, images, num_images)
    found = measure(estimates, num_images)
    return Score(found.values, found.intervals)
