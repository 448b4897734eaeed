"""Teach a language model to see: the projectors first, then all of it, or all at once where it is small.

The tower is frozen: each picture goes through it once, and its tokens are kept in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from open_cloc.data.annotations import SampleDataset
from open_cloc.data.readers import open_reader
from open_cloc.devices import choose_device
from open_cloc.errors import ExistingFileError, NotFiniteError, UserError
from open_cloc.files import is_free, write_json
from open_cloc.mllm.language_model import open_language_model
from open_cloc.mllm.model import MLLMConfig, Prompt, RegionLM
from open_cloc.mllm.prompt import REGION, box_text, step_texts
from open_cloc.mllm.questions import Question, QuestionConfig, make_questions
from open_cloc.mllm.small import SmallLM, small_language_model
from open_cloc.model.load import load_model
from open_cloc.shown import hide_secrets
from open_cloc.training.optim import clip_gradient, learning_rate_factor, set_learning_rate

PICTURES_AT_ONCE = 32  # through the tower
RECIPE_NAME = "recipe.json"


@dataclass(frozen=True)
class TeachConfig:
    """How long, and how fast.

    Attributes:
        projector_steps: Steps of the first stage, in which the projectors learn alone; 0 for none, as a
            language model that starts from nothing wants it.
        steps: Steps of the second stage, in which the language model learns too; 0 for none.
        pictures: Pictures of a step, each with all questions about it.
        share: Take each picture through the language model once for all of its questions: the same numbers,
            sooner. Off for language models without a key-value cache.
        lr: Peak learning rate of the language model.
        projector_lr: Peak learning rate of the projectors.
        warmup: Steps of each stage over which rates rise; a cosine to 0 follows.
        weight_decay: AdamW's, of matrices.
        grad_clip: Largest norm of the gradient; 0 for no limit.
        seed: Starting weights, and the order of pictures.
    """

    projector_steps: int = 0
    steps: int = 2000
    pictures: int = 8
    share: bool = True
    lr: float = 1e-3
    projector_lr: float = 1e-3
    warmup: int = 50
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"projector_steps": 0, "steps": 0, "pictures": 1, "warmup": 0, "seed": 0, "grad_clip": 0}
        for name, low in {**least, "lr": 0, "projector_lr": 0, "weight_decay": 0}.items():
            if getattr(self, name) < low:
                raise UserError(f"teach.{name} must be at least {low}; got {getattr(self, name)}")
        if self.projector_steps + self.steps < 1:
            raise UserError("teach.steps and teach.projector_steps are both 0: nothing would be learned")


@dataclass(frozen=True)
class MLLMRecipe:
    """Everything that a language model's training depends on; saved with it.

    Attributes:
        weights: The CLOC: model folder or hub id.
        output: Folder of the trained model; new or empty.
        data: Pictures with regions, FORMAT:PATH.
        lm: Causal language model of transformers, a folder or hub id; empty makes a small one here.
        small: Size of the one that is made here.
        ask: How it is asked.
        questions: What is asked.
        teach: How long, and how fast.
        device: cpu, cuda, ...; a GPU if there is one.
        progress: Show a progress bar.
    """

    weights: str
    output: Path
    data: str = "scenes:train,num_samples=4000"
    lm: str = ""
    small: SmallLM = field(default_factory=SmallLM)
    ask: MLLMConfig = field(default_factory=lambda: MLLMConfig(bins=100))
    questions: QuestionConfig = field(default_factory=QuestionConfig)
    teach: TeachConfig = field(default_factory=TeachConfig)
    device: str | None = None
    progress: bool = True


class Example(NamedTuple):
    """A question as the model reads it, with its answer.

    Attributes:
        question: What it was made from.
        prompt: Ready for the language model.
        answer: Token ids, end mark included.
        canvas_box: The answer's box, normalised `xyxy` of the canvas, where it is one.
    """

    question: Question
    prompt: Prompt
    answer: list[int]
    canvas_box: np.ndarray | None


def train(recipe: MLLMRecipe) -> Path:
    """Run a recipe to its end.

    Returns:
        The folder of the trained model, which `model.load` opens.

    Raises:
        ExistingFileError: If there is something in the output folder.
        UserError: If a part of the recipe is not there, or does not fit.
        NotFiniteError: If the loss is no number any more.
    """
    if not is_free(recipe.output):
        raise ExistingFileError(f"output folder must be new or empty; got {recipe.output}")
    dataset = open_reader(recipe.data)
    tower = load_model(recipe.weights, choose_device(recipe.device))
    questions = make_questions(dataset, recipe.questions)
    if recipe.lm:
        # Small steps are lost in bfloat16, in which many are published.
        lm, tokenizer = open_language_model(recipe.lm, torch.float32)
    else:
        lm, tokenizer = small_language_model(
            words_of(questions, recipe.ask.bins), recipe.small, recipe.teach.seed
        )
    model = build(tower, lm, tokenizer, recipe.ask, recipe.teach.seed)
    fit(model, make_examples(model, dataset, questions), recipe.teach, progress=recipe.progress)
    model.save_pretrained(recipe.output)
    write_json(recipe.output / RECIPE_NAME, hide_secrets({**asdict(recipe), "output": str(recipe.output)}))
    return recipe.output


def build(tower: Any, lm: Any, tokenizer: Any, config: MLLMConfig, seed: int) -> RegionLM:
    """A model on the tower's device whose projectors follow from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RegionLM(tower, lm, tokenizer, config).to(tower.device)


def words_of(questions: Sequence[Question], bins: int) -> Iterator[str]:
    """The texts that a small language model's vocabulary is made from: questions, answers, boxes."""
    yield f"[{' '.join(step_texts(bins))}]"
    for question in questions:
        yield question.text.replace(REGION, " ")
        yield question.answer


def make_examples(model: RegionLM, dataset: SampleDataset, questions: Sequence[Question]) -> list[Example]:
    """Take every picture that is asked about through the tower, once.

    Args:
        model: Its tower, tokenizer and config are used: examples serve every model that shares them.
        dataset: The pictures.
        questions: Questions, those of a picture side by side.
    """
    groups = [(image, list(asked)) for image, asked in groupby(questions, key=lambda q: q.image)]
    examples: list[Example] = []
    for start in range(0, len(groups), PICTURES_AT_ONCE):
        chunk = groups[start : start + PICTURES_AT_ONCE]
        images = model.look([dataset[image].pixels() for image, _ in chunk])
        for image, (_, asked) in zip(images, chunk):
            prompts = model.prompts(image, [(q.text, np.array(q.boxes).reshape(-1, 4)) for q in asked])
            for question, prompt in zip(asked, prompts):
                box, text = None, question.answer
                if question.answer_box is not None:
                    box = image.geometry.to_canvas(np.array(question.answer_box, np.float64))
                    text = box_text(box, model.config.bins)
                examples.append(Example(question, prompt, model.answer_ids(text), box))
    return examples


def fit(
    model: RegionLM, examples: Sequence[Example], config: TeachConfig, *, progress: bool = False
) -> list[float]:
    """Teach a model; returns the loss of each step.

    Raises:
        NotFiniteError: If the loss is no number any more.
    """
    losses: list[float] = []
    projectors = nn.ModuleDict(model.projectors())
    for steps, lm_learns in ((config.projector_steps, False), (config.steps, True)):
        if not steps:
            continue
        with _learning(model, lm_learns):
            losses += _stage(model, projectors, examples, config, steps, progress, len(losses))
    model.eval()
    return losses


@contextmanager
def _learning(model: RegionLM, lm_learns: bool) -> Iterator[None]:
    """Freeze the language model, or let those of its weights learn that its owner has not frozen."""
    learning = [parameter for parameter in model.lm.parameters() if parameter.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad_(lm_learns)
        model.train()
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_()


def _stage(
    model: RegionLM,
    projectors: nn.Module,
    examples: Sequence[Example],
    config: TeachConfig,
    steps: int,
    progress: bool,
    first: int,
) -> list[float]:
    """One stage's steps; `first` are behind it."""
    rates: Mapping[nn.Module, float] = {projectors: config.projector_lr, model.lm: config.lr}
    learning = [p for part in rates for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [group for part, rate in rates.items() for group in _groups(part, rate, config.weight_decay)],
        betas=(0.9, 0.98),
    )
    losses = []
    pictures = [list(own) for _, own in groupby(examples, key=lambda e: e.question.image)]
    batches = batches_of(len(pictures), config.pictures, config.seed, first)
    for step in tqdm(range(steps), disable=not progress, unit="step", desc="MLLM", mininterval=1):
        set_learning_rate(optimizer, learning_rate_factor(step, steps, min(config.warmup, steps // 4)))
        batch = [example for i in next(batches) for example in pictures[i]]
        loss = model([e.prompt for e in batch], [e.answer for e in batch], config.share)
        value = float(loss.detach())
        if not np.isfinite(value):
            raise NotFiniteError(f"the loss is {value} at step {first + step}: lower teach.lr")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip_gradient(learning, config.grad_clip)
        optimizer.step()
        losses.append(value)
    return losses


def _groups(part: nn.Module, rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters of a part that learn, matrices with weight decay, all else without."""
    learning = [p for p in part.parameters() if p.requires_grad]
    return [
        {"params": own, "peak_lr": rate, "lr": 0.0, "weight_decay": decay}
        for own, decay in (
            ([p for p in learning if p.ndim > 1], weight_decay),
            ([p for p in learning if p.ndim < 2], 0.0),
        )
        if own
    ]


def batches_of(count: int, size: int, seed: int, first: int = 0) -> Iterator[list[int]]:
    """Rows of batch after batch without end: every picture once an epoch, the order drawn by seed and epoch.

    Args:
        count: Pictures.
        size: Rows of a batch; one may reach into the next epoch.
        seed: Of the order.
        first: Number of the first batch.
    """
    orders: dict[int, np.ndarray] = {}

    def row(place: int) -> int:
        epoch, inside = divmod(place, count)
        if epoch not in orders:
            orders[epoch] = np.random.default_rng([seed, epoch]).permutation(count)
            orders.pop(epoch - 2, None)
        return int(orders[epoch][inside])

    batch = first
    while True:
        yield [row(batch * size + inside) for inside in range(size)]
        batch += 1
