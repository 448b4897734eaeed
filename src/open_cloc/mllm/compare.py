"""CLIP against CLOC, and region tokens against coordinates, as the eyes of the same language model.

Three arms see the same pictures and questions for the same number of steps, with the same starting weights of
the language model and the same order of pictures: a CLIP's tower with boxes as coordinate text, a CLOC's
tower with the same, and a CLOC's tower with region tokens in the coordinates' place.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from open_cloc.data.annotations import SampleDataset
from open_cloc.data.readers import open_reader
from open_cloc.devices import choose_device
from open_cloc.errors import UserError
from open_cloc.evaluation.intervals import HOW
from open_cloc.files import versions
from open_cloc.mllm.evaluate import MIN_IOU, Score, right, score
from open_cloc.mllm.model import MLLMConfig, Refer
from open_cloc.mllm.questions import Question, QuestionConfig, clean, iou, make_questions
from open_cloc.mllm.small import SmallLM, small_language_model
from open_cloc.mllm.train import Example, TeachConfig, build, fit, make_examples, words_of
from open_cloc.model.load import load_model
from open_cloc.shown import hide_secrets


class Arm(NamedTuple):
    """One of what is compared.

    Attributes:
        tower: `clip` or `cloc`.
        refer: What stands for a box in a question.
    """

    tower: str
    refer: Refer


ARMS = {
    "CLIP, coordinates": Arm("clip", "text"),
    "CLOC, coordinates": Arm("cloc", "text"),
    "CLOC, region tokens": Arm("cloc", "tokens"),
}
# What the paper says, by its direction: the first of each pair is ahead.
PAIRS = (
    ("CLOC, coordinates", "CLIP, coordinates"),
    ("CLOC, region tokens", "CLOC, coordinates"),
    ("CLOC, region tokens", "CLIP, coordinates"),
)


@dataclass(frozen=True)
class CompareConfig:
    """What is compared, and on what.

    Attributes:
        clip: A plain CLIP's weights: model folder or hub id.
        cloc: A CLOC's weights.
        train: Pictures to learn from, FORMAT:PATH.
        test: Pictures to measure on; none of them may be among those to learn from.
        seeds: Each arm is taught once for each: starting weights, and the order of pictures.
        bins: Steps along a side of coordinates: numbers are from 0 to bins - 1.
        small: Size of the language model, which starts from nothing.
        questions: What is asked.
        teach: How long, and how fast; its seed gives way to `seeds`.
        device: cpu, cuda, ...; a GPU if there is one.
    """

    clip: str
    cloc: str
    train: str = "scenes:train,num_samples=4000"
    test: str = "scenes:test,num_samples=400"
    seeds: tuple[int, ...] = (0, 1, 2)
    bins: int = 100
    small: SmallLM = field(default_factory=SmallLM)
    questions: QuestionConfig = field(default_factory=QuestionConfig)
    teach: TeachConfig = field(default_factory=TeachConfig)
    device: str | None = None

    def __post_init__(self) -> None:
        if not self.seeds or min(self.seeds) < 0:
            raise UserError(f"seeds must be one or more numbers, at least 0; got {self.seeds}")
        if self.train == self.test:
            raise UserError(f"train and test are the same pictures: {self.train}")


class _Data(NamedTuple):
    """Pictures with questions about them."""

    dataset: SampleDataset
    questions: list[Question]


def compare(
    config: CompareConfig, *, progress: bool = False, tell: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Teach and measure every arm with every seed.

    Args:
        config: What is compared.
        progress: Show bars.
        tell: Is given a line about each run.

    Returns:
        A result for JSON: accuracies with intervals by arm, differences, what a constant answer scores, and
        the protocol.

    Raises:
        UserError: If data or weights cannot be read.
    """
    data = {
        name: _open(spec, config.questions) for name, spec in (("train", config.train), ("test", config.test))
    }
    runs: dict[str, list[Tensor]] = {name: [] for name in ARMS}
    seconds: dict[str, float] = {}
    losses: dict[str, list[float]] = {name: [] for name in ARMS}
    for name, arm in ARMS.items():
        started = time.monotonic()
        for seed, hits, loss in _arm(arm, config, data, progress):
            runs[name].append(hits)
            losses[name].append(loss)
            tell(f"{name}, seed {seed}: loss {loss:.3f}, right {float(hits.mean()):.3f}")
        seconds[name] = round(time.monotonic() - started, 1)
    asked, num_images = data["test"].questions, len(data["test"].dataset)
    results = {name: torch.stack(hits) for name, hits in runs.items()}  # (S, X) each
    return {
        "arms": {
            name: {
                **_as_json(score(hits, asked, num_images)),
                "seeds": [score(one[None], asked, num_images).values for one in hits],
                "last_losses": [round(loss, 4) for loss in losses[name]],
                "seconds": seconds[name],
            }
            for name, hits in results.items()
        },
        "differences": {
            f"{one} - {other}": _as_json(score(results[one] - results[other], asked, num_images))
            for one, other in PAIRS
        },
        "constant_answer": constant_answers(data["train"].questions, asked),
        "questions": dict(Counter(question.kind for question in asked)),
        "config": hide_secrets(asdict(config)),
        "protocol": {
            "text": "exact, blanks and case aside",
            "box": f"first box of the answer, IoU >= {MIN_IOU}",
            "intervals": HOW,
            "libraries": versions("torch", "transformers", "tokenizers"),
        },
    }


def _open(spec: str, config: QuestionConfig) -> _Data:
    dataset = open_reader(spec)
    return _Data(dataset, make_questions(dataset, config))


def _arm(
    arm: Arm, config: CompareConfig, data: dict[str, _Data], progress: bool
) -> Iterator[tuple[int, Tensor, float]]:
    """Every seed of an arm: its number, (X,) which answers are right, the loss of its last tenth of steps.

    The tower is the same for all, and each picture goes through it once.
    """
    tower = load_model(getattr(config, arm.tower), choose_device(config.device))
    ask = MLLMConfig(refer=arm.refer, bins=config.bins)
    words = list(words_of(data["train"].questions, config.bins))
    examples: dict[str, list[Example]] = {}
    for seed in config.seeds:
        lm, tokenizer = small_language_model(words, config.small, seed)
        model = build(tower, lm, tokenizer, ask, seed)
        if not examples:
            examples = {name: make_examples(model, *own) for name, own in data.items()}
        losses = fit(model, examples["train"], replace(config.teach, seed=seed), progress=progress)
        tail = losses[-max(1, len(losses) // 10) :]
        yield seed, right(model, examples["test"], progress=progress), float(np.mean(tail))


def constant_answers(train: Sequence[Question], test: Sequence[Question]) -> dict[str, float]:
    """What the commonest answer of the training questions scores, by kind; for boxes, their mean box."""
    found = {}
    for kind in dict.fromkeys(question.kind for question in test):
        learned = [question for question in train if question.kind == kind]
        asked = [question for question in test if question.kind == kind]
        boxes = [question.answer_box for question in learned if question.answer_box is not None]
        if boxes:
            mean = np.mean(boxes, axis=0).tolist()
            hits = [iou(mean, q.answer_box) >= MIN_IOU for q in asked if q.answer_box is not None]
        else:
            counts = Counter(clean(question.answer) for question in learned)
            hits = [clean(question.answer) == counts.most_common(1)[0][0] for question in asked]
        found[str(kind)] = float(np.mean(hits))
    return found


def _as_json(found: Score) -> dict[str, Any]:
    return {
        "values": found.values,
        "intervals": {name: list(ends) for name, ends in found.intervals.items()},
    }


def table(result: dict[str, Any]) -> str:
    """A comparison for people to read, in percent: arms, differences, and what a constant answer scores."""
    kinds = list(next(iter(result["arms"].values()))["values"])
    width = max(map(len, [*result["arms"], *result["differences"]]))
    lines = [f"{'':{width}}  " + "  ".join(f"{kind:^19}" for kind in kinds)]
    for name, own in {**result["arms"], **result["differences"]}.items():
        cells = []
        for kind in kinds:
            cell = f"{100 * own['values'][kind]:.1f}"
            if kind in own["intervals"]:
                low, high = own["intervals"][kind]
                cell += f" [{100 * low:.1f}, {100 * high:.1f}]"
            cells.append(f"{cell:^19}")
        lines.append(f"{name:{width}}  " + "  ".join(cells))
    constant = [result["constant_answer"].get(kind) for kind in kinds]
    cells = [f"{'' if value is None else f'{100 * value:.1f}':^19}" for value in constant]
    lines.append(f"{'a constant answer':{width}}  " + "  ".join(cells))
    return "\n".join(line.rstrip() for line in lines)
