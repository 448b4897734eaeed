"""What an objective is, and how a recipe names one: one term of the loss, with what it needs of a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor

from open_cloc.config import parse_spec
from open_cloc.errors import UserError
from open_cloc.samples import Features

Per = Literal["batch", "images_with_regions"]
PER = ("batch", "images_with_regions")


class Objective(Protocol):
    """One term of the loss: a `torch.nn.Module`, whose parameters, if it has any, learn with the model's.

    The class may also have these attributes; without them there is nothing of the kind:
        gathered (frozenset[str]): Those of its needs that must be the whole world's, not this rank's.
        per (str): What the term is a mean over, if not `batch`; see `Term`.
        roles (Mapping[str, int]): Texts with roles that the loader shall draw, and how many of each.
        views (Mapping[str, ViewConfig]): Further crops that the loader shall make.
        teacher_momentum (float): Of the teacher whose features it needs; 1 keeps it as it starts.

    Attributes:
        needs: Paths of `Features` that the model must compute.
    """

    needs: frozenset[str]

    def __call__(self, features: Features) -> Tensor | dict[str, Tensor]:
        """The term of the whole batch, of all ranks: a scalar with the gradient that `World` describes.

        It is finite, and differentiable, also where no image has a caption or a region. Where there is more
        to log, a dict whose `loss` is the term.
        """
        ...


@dataclass(frozen=True)
class Term:
    """An objective of a recipe.

    On the command line it is one text: `KIND[,weight=...][,per=...][,name=...][,option=value ...]`.

    Attributes:
        kind: A key of `OBJECTIVES`, or `package.module:Class` of one of your own.
        weight: Factor of the term in the total.
        per: `batch`, or `images_with_regions`: multiplied by the share of the batch's images that have
            regions, the lambda of the paper's eq. 4. Empty takes the objective's own.
        name: The term's name in the log; the kind's unless two terms are of one kind.
        options: Arguments of the objective's constructor, by name.
    """

    kind: str
    weight: float = 1.0
    per: str = ""
    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise UserError(f"weight of {self.kind} must be a number of at least 0; got {self.weight}")
        if self.per not in ("", *PER):
            raise UserError(f"unknown per {self.per!r} of {self.kind}; expected one of {', '.join(PER)}")

    @property
    def label(self) -> str:
        """What the log calls it."""
        return self.name or self.kind.rpartition(":")[2]

    @classmethod
    def parse(cls, text: str, kinds: Mapping[str, Any]) -> Term:
        """A term from its text.

        Raises:
            UserError: If the weight is no number, or `per` is unknown.
        """
        spec = parse_spec(text, kinds)
        options = dict(spec.options)
        weight = options.pop("weight", "1")
        try:
            number = float(weight)
        except ValueError:
            raise UserError(f"weight in {text!r} must be a number; got {weight!r}") from None
        return cls(spec.kind, number, options.pop("per", ""), options.pop("name", ""), options)

    def __str__(self) -> str:
        """The text that `parse` reads."""
        parts = {"weight": "" if self.weight == 1 else self.weight, "per": self.per, "name": self.name}
        given = {name: value for name, value in parts.items() if value != ""} | dict(self.options)
        return ",".join([self.kind, *(f"{name}={value}" for name, value in given.items())])
