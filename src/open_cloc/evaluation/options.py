"""How to measure: the options that every task and every method reads."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import get_args

from open_cloc.errors import UserError
from open_cloc.evaluation.protocols import OPENAI_IMAGENET, Duplicates, Protocol, find_protocol
from open_cloc.model.search import CANDIDATES
from open_cloc.precision import PRECISIONS, Precision

DUPLICATES = get_args(Duplicates)
RULES = ("templates", "recall_k", "duplicates")  # of the config's own, which a named protocol replaces


@dataclass(frozen=True)
class EvaluationConfig:
    """How to measure. All of it goes into the result's protocol.

    Attributes:
        batch_size: Pictures (or crops) per forward pass.
        workers: Processes that decode pictures.
        protocol: Named rules, such as `cloc` or `fgclip`; a wrong one lists all. They take the place of the
            three below.
        templates: How a class name, or an expression that refers to a box, becomes a text, such as `a photo
            of a {}`; the features of several are averaged. The paper uses bare names. `openai-imagenet`
            stands for CLIP's 80.
        recall_k: The K of recall@K; empty takes the task's own.
        classes: Class names to choose from; empty takes the data set's categories, else its distinct texts.
        duplicates: How region retrieval reads texts that repeat. `own`: every region against every region's
            text, and only its own is right (the paper); `any`: the same, and an equal text is right too;
            `merge`: equal texts are one entry and one query.
        proposals: Boxes that detection names, and that grounding chooses from: `labels` (the annotated ones),
            `grid:COUNT`, or `results:FILE`, a detector's in COCO's form. Unless given, detection names
            `labels`, and grounding needs a method that finds boxes by itself.
        candidates: Size of the grid of boxes that `ranked` grounding looks at, at most.
        precision: How the towers compute: `fp32`, `tf32` (for products on GPUs) or `bf16` (autocast).
        groups: Texts by the name of a group; metrics are also given for the regions of each group alone.
    """

    batch_size: int = 32
    workers: int = 0
    protocol: str = ""
    templates: tuple[str, ...] = ("{}",)
    recall_k: tuple[int, ...] = ()
    duplicates: Duplicates = "own"
    classes: tuple[str, ...] = ()
    proposals: str = ""
    candidates: int = CANDIDATES
    precision: Precision = "fp32"
    groups: Mapping[str, Collection[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1; got {self.batch_size}")
        if min(self.recall_k, default=1) < 1:
            raise UserError(f"recall_k must be at least 1; got {self.recall_k}")
        if not self.templates or not all("{}" in text or text == OPENAI_IMAGENET for text in self.templates):
            raise UserError(
                f"templates must hold {{}} for the class name, or be {OPENAI_IMAGENET}; got "
                f"{self.templates!r:.100}"
            )
        if self.duplicates not in DUPLICATES:
            raise UserError(f"duplicates must be one of {', '.join(DUPLICATES)}; got {self.duplicates!r}")
        if self.precision not in PRECISIONS:
            raise UserError(f"precision must be one of {', '.join(PRECISIONS)}; got {self.precision!r}")
        if self.candidates < 1:
            raise UserError(f"candidates must be at least 1; got {self.candidates}; for none use method head")
        if self.protocol:
            find_protocol(self.protocol)
            for rule in RULES:
                if getattr(self, rule) != getattr(Protocol(), rule):
                    raise UserError(f"protocol {self.protocol} says what {rule} are: leave them out")

    @property
    def rules(self) -> Protocol:
        """The named protocol, or one of the rules that were set one by one."""
        own = {rule: getattr(self, rule) for rule in RULES}
        return find_protocol(self.protocol) if self.protocol else Protocol(**own)
