"""Refer-and-ground questions with their answers, made from pictures whose regions have phrases.

| kind | question | answer |
|---|---|---|
| `what` | what is in this box? | its phrase |
| `where` | where is this phrase? | its box |
| `in_region` | is this phrase in this box? | yes or no |
| `in_picture` | is this phrase in the picture? | yes or no |
| `which` | which of two boxes is this phrase? | the first or the second |
| `list` | what is in the picture? | its phrases from left to right |

Questions say `<region>` for a box: whether a model reads a region token or coordinates there is its own
affair. What is asked of a picture follows from the seed and the picture's number alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from open_cloc.data.annotations import SampleDataset
from open_cloc.errors import UserError
from open_cloc.mllm.prompt import REGION
from open_cloc.samples import Region

Kind = Literal["what", "where", "in_region", "in_picture", "which", "list"]
KINDS: tuple[Kind, ...] = get_args(Kind)

TEMPLATES: dict[Kind, tuple[str, ...]] = {
    "what": (f"what is in {REGION} ?", f"what does {REGION} show ?"),
    "where": ("where is {phrase} ?", "find {phrase} ."),
    "in_region": (f"is there {{phrase}} in {REGION} ?", f"does {REGION} show {{phrase}} ?"),
    "in_picture": ("is there {phrase} in the picture ?", "does the picture show {phrase} ?"),
    "which": (f"which of {REGION} and {REGION} is {{phrase}} ?",),
    "list": ("what is in the picture ?", "name the things in the picture ."),
}
YES, NO = "yes", "no"
FIRST, SECOND = "the first", "the second"

# Two boxes that agree more than this are one thing under two names: nobody can say what is in them.
SAME_BOX = 0.7
MOST_LISTED = 6  # things that a picture may hold to be listed
TRIES = 20  # of drawing a phrase that a picture has not


class Question(NamedTuple):
    """A question about a picture, and its answer.

    Attributes:
        image: Number of the picture in its data.
        kind: One of `KINDS`.
        text: With a `<region>` for each of `boxes`.
        boxes: Normalised `xyxy` of the picture.
        answer: Empty where it is a box.
        answer_box: Normalised `xyxy` of the picture, where the answer is one.
    """

    image: int
    kind: Kind
    text: str
    boxes: tuple[tuple[float, float, float, float], ...]
    answer: str
    answer_box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class QuestionConfig:
    """What is asked.

    Attributes:
        kinds: Which kinds of questions.
        per_kind: Questions of each kind and picture, where it has regions for them; those with yes or no come
            in twos, one of each.
        seed: What is drawn follows from it and the picture's number.
    """

    kinds: tuple[Kind, ...] = KINDS
    per_kind: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            got = ", ".join(unknown) or "none"
            raise UserError(f"questions.kinds must be some of {', '.join(KINDS)}; got {got}")
        if self.per_kind < 1 or self.seed < 0:
            raise UserError(
                "questions.per_kind must be at least 1 and questions.seed at least 0; got "
                f"{self.per_kind} and {self.seed}"
            )


class _Picture(NamedTuple):
    """What questions are made of.

    Attributes:
        image: Number of the picture.
        regions: Its regions that have a phrase.
        pool: Phrases of other pictures, as often as they occur.
        rng: Source of every random choice.
    """

    image: int
    regions: Sequence[Region]
    pool: Sequence[str]
    rng: np.random.Generator

    def ask(self, kind: Kind, phrase: str, regions: Sequence[Region], answer: str) -> Question:
        """A question by one of its kind's templates."""
        templates = TEMPLATES[kind]
        text = templates[int(self.rng.integers(len(templates)))].replace("{phrase}", phrase)
        return Question(self.image, kind, text, tuple(region.box for region in regions), answer)

    def pick(self, regions: Sequence[Region]) -> Region:
        return regions[int(self.rng.integers(len(regions)))]

    def named_once(self) -> list[Region]:
        """Regions whose phrase is no other region's too: it says which one is meant."""
        counts = Counter(clean(region.text) for region in self.regions)
        return [region for region in self.regions if counts[clean(region.text)] == 1]

    def clear(self) -> list[Region]:
        """Regions whose box is no other thing's too."""
        return [
            one
            for one in self.regions
            if not any(
                clean(one.text) != clean(other.text) and iou(one.box, other.box) > SAME_BOX
                for other in self.regions
            )
        ]

    def absent_phrase(self) -> str | None:
        """A phrase of other pictures that this one has not; drawn as often as phrases occur there.

        So no phrase by itself tells yes from no.
        """
        own = {clean(region.text) for region in self.regions}
        for _ in range(TRIES if self.pool else 0):
            phrase = self.pool[int(self.rng.integers(len(self.pool)))]
            if clean(phrase) not in own:
                return phrase
        return None

    def phrase_from_elsewhere(self, region: Region) -> str | None:
        """A phrase of this picture that no box names which touches the region's."""
        near = {clean(other.text) for other in self.regions if iou(region.box, other.box) > 0}
        far = [other for other in self.regions if clean(other.text) not in near]
        return self.pick(far).text if far else None


def make_questions(dataset: SampleDataset, config: QuestionConfig) -> list[Question]:
    """Questions about every picture of some data; pictures without regions with phrases give none.

    Raises:
        UserError: If a sample cannot be read, or no question can be asked.
    """
    regions = [[r for r in dataset[index].regions if clean(r.text)] for index in range(len(dataset))]
    pool = [region.text for own in regions for region in own]
    questions = [q for image, own in enumerate(regions) for q in questions_of(image, own, pool, config)]
    if not questions:
        raise UserError("no question can be asked: no picture of the data has regions with phrases")
    return questions


def questions_of(
    image: int, regions: Sequence[Region], pool: Sequence[str], config: QuestionConfig
) -> list[Question]:
    """Questions about one picture.

    Args:
        image: Its number, which the draws follow from.
        regions: Its regions, each with a phrase.
        pool: Phrases of the whole data, as often as they occur, from which wrong ones are drawn.
        config: What is asked.
    """
    picture = _Picture(image, regions, pool, np.random.default_rng([config.seed, image]))
    if not regions:
        return []
    return [q for kind in config.kinds for _ in range(config.per_kind) for q in _MAKERS[kind](picture)]


def _what(picture: _Picture) -> list[Question]:
    regions = picture.clear()
    if not regions:
        return []
    region = picture.pick(regions)
    return [picture.ask("what", "", [region], region.text)]


def _where(picture: _Picture) -> list[Question]:
    regions = picture.named_once()
    if not regions:
        return []
    region = picture.pick(regions)
    return [picture.ask("where", region.text, [], "")._replace(answer_box=region.box)]


def _in_region(picture: _Picture) -> list[Question]:
    """Half of the wrong phrases are of other regions: who only looks whether it is in the picture fails."""
    regions = picture.clear()
    if not regions:
        return []
    region = picture.pick(regions)
    wrong = picture.phrase_from_elsewhere(region) if picture.rng.random() < 0.5 else picture.absent_phrase()
    if wrong is None:
        return []
    return [
        picture.ask("in_region", region.text, [region], YES),
        picture.ask("in_region", wrong, [region], NO),
    ]


def _in_picture(picture: _Picture) -> list[Question]:
    region, wrong = picture.pick(picture.regions), picture.absent_phrase()
    if wrong is None:
        return []
    return [picture.ask("in_picture", region.text, [], YES), picture.ask("in_picture", wrong, [], NO)]


def _which(picture: _Picture) -> list[Question]:
    regions = [region for region in picture.named_once() if region in picture.clear()]
    if len(regions) < 2:
        return []
    one, other = (regions[i] for i in picture.rng.permutation(len(regions))[:2])
    if picture.rng.random() < 0.5:
        return [picture.ask("which", one.text, [one, other], FIRST)]
    return [picture.ask("which", one.text, [other, one], SECOND)]


def _list(picture: _Picture) -> list[Question]:
    """LLaVA's first stage learns from captions; this is what regions have of one."""
    if len(picture.regions) > MOST_LISTED:
        return []
    ordered = sorted(picture.regions, key=lambda region: (region.box[0] + region.box[2], region.box[1]))
    return [picture.ask("list", "", [], ", ".join(region.text for region in ordered))]


_MAKERS: dict[Kind, Callable[[_Picture], list[Question]]] = {
    "what": _what,
    "where": _where,
    "in_region": _in_region,
    "in_picture": _in_picture,
    "which": _which,
    "list": _list,
}


def clean(text: str) -> str:
    """A text as it is compared: in lower case, without blanks, which some tokenizers put anywhere."""
    return "".join(text.lower().split())


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes `xyxy`."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return both / (sum(areas) - both)
