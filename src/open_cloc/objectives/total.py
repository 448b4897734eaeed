"""The weighted total of a run's objectives; the paper's eq. 4 is the default."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from open_cloc.config import call_with_options, lookup
from open_cloc.errors import UserError
from open_cloc.objectives.objective import Objective, Term
from open_cloc.objectives.teacher import Teacher
from open_cloc.samples import OF_REGIONS, Features, View, ViewConfig

# kind -> `module:Class`. Imported only when used.
OBJECTIVES = {
    "image_text": "open_cloc.objectives.image_text:ImageText",
    "region_text": "open_cloc.objectives.region_text:RegionText",
    "grounding": "open_cloc.objectives.grounding:Grounding",
    "distill": "open_cloc.objectives.distill:Distill",
    "sparc": "open_cloc.objectives.sparc:Sparc",
}
# total = image_text + lambda * (region_text + grounding)
RESERVED = ("total", "grad_norm")  # of the log
PAPER_TERMS = (Term("image_text"), Term("region_text"), Term("grounding"))


class Objectives(nn.Module):
    """The terms of a run and their weighted sum.

    `total = sum of weight * term + lambda * (sum of weight * regional term)`, where lambda is the share of
    the batch's images that have regions. With the paper's three terms this is its eq. 4, and a batch without
    any region is plain CLIP.

    Attributes:
        terms: The terms that the recipe lists.
        modules_by_name: Each term's objective, by its name in the log.
        needs: Paths of `Features` that the model must compute for all of them together.
        gathered: Those that must be the whole world's.
        roles: Texts with roles that the loader must draw, and how many of each.
        views: Further crops that the loader must make.
        teacher_momentum: Momentum of the teacher that some of them need; None where none does.
        teacher: Made from the starting model by whoever needs one.
    """

    def __init__(self, terms: Sequence[Term] = PAPER_TERMS) -> None:
        """Make every term's objective.

        Raises:
            UserError: If there is none, a kind or an option is unknown, or two have one name.
        """
        super().__init__()
        if not terms:
            raise UserError("objectives must name at least one term; got none")
        self.terms = tuple(terms)
        self.modules_by_name = nn.ModuleDict()
        for term in self.terms:
            if term.label in (*self.modules_by_name, *RESERVED):
                raise UserError(f"another loss is called {term.label!r} already: give name=... to this one")
            factory = lookup(OBJECTIVES, term.kind, "objective")
            self.modules_by_name[term.label] = call_with_options(
                factory, options=term.options, where=str(term)
            )
        made: list[Any] = list(self.modules_by_name.values())
        for term, objective in zip(self.terms, made):
            _check_needs(term, objective)
        self.per = {t.label: t.per or getattr(o, "per", "batch") for t, o in zip(self.terms, made)}
        self.needs = frozenset().union(*(o.needs for o in made))
        self.gathered = frozenset().union(*(getattr(o, "gathered", ()) for o in made))
        if "images_with_regions" in self.per.values():
            self.needs |= {"region_mask"}
            self.gathered |= {"region_mask"}
        self.roles: dict[str, int] = _merged(made, "roles", max)
        self.views: dict[str, ViewConfig] = _merged(made, "views", _same)
        self.teacher_momentum = _teacher_momentum(made, self.needs)
        self.teacher: Teacher | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What the log calls the terms."""
        return tuple(self.modules_by_name)

    def blank_roles(self, region_index: Tensor) -> dict[str, Tensor]:
        """Row indices of texts for all roles, of a batch whose regions (B, R) have these rows."""
        blank = {}
        for role, count in self.roles.items():
            rows = region_index if role.startswith(OF_REGIONS) else torch.arange(len(region_index))
            blank[role] = rows[..., None].expand(*rows.shape, count)
        return blank

    def blank_views(self, boxes: Tensor, canvas_hw: tuple[int, int]) -> dict[str, View]:
        """Black crops for all views, of a batch with these boxes (B, R, 4) of a model of this canvas."""
        return {
            name: _blank_view(view.count, view.canvas_hw(canvas_hw), boxes)
            for name, view in self.views.items()
        }

    def forward(self, features: Features) -> dict[str, Tensor]:
        """Every term by name, `total`, and what else the terms say of themselves; scalars of the whole batch.

        Values are the same on every rank; of gradients see `World`.
        """
        values: dict[str, Tensor] = {}
        extras: dict[str, Tensor] = {}
        sums: dict[str, Tensor] = {}
        for term in self.terms:
            made = self.modules_by_name[term.label](features)
            if isinstance(made, Mapping):
                extras |= {name: value for name, value in made.items() if name != "loss"}
                made = made["loss"]
            values[term.label] = made
            weighted = term.weight * made
            per = self.per[term.label]
            sums[per] = sums[per] + weighted if per in sums else weighted
        if "images_with_regions" in sums:
            sums["images_with_regions"] = share_with_regions(features) * sums["images_with_regions"]
        return values | {"total": reduce(add, sums.values())} | extras


def _check_needs(term: Term, objective: Any) -> None:
    """Refuse an objective that does not say what it needs, or needs what no model gives."""
    known = [f.name for f in fields(Features)]
    if not hasattr(objective, "needs"):
        raise UserError(f"objective {term.label!r} has no attribute `needs`: name the features that it takes")
    for path in sorted(objective.needs):
        name = path.split(".")[0]
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"objective {term.label!r} needs {path!r}, which is no field of Features{hint}")


def _blank_view(count: int, size_hw: tuple[int, int], boxes: Tensor) -> View:
    batch = len(boxes)
    return View(
        images=torch.zeros(batch, count, 3, *size_hw, dtype=torch.uint8),
        content_boxes=torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(batch, count, 4),
        boxes=boxes[:, None].expand(-1, count, -1, -1),
        region_mask=torch.ones(batch, count, boxes.shape[1], dtype=torch.bool),
        places=torch.tensor([0.25, 0.25, 0.75, 0.75]).expand(batch, count, -1),
    )


def share_with_regions(features: Features) -> Tensor | float:
    """Share of the batch's images, of all ranks, that have regions: lambda of the paper's eq. 4."""
    (mask,) = features.take("region_mask")
    return mask.any(dim=1).float().mean() if mask.shape[1] else 0.0


def _merged(objectives: Sequence[Any], attribute: str, choose: Any) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for objective in objectives:
        for name, value in getattr(objective, attribute, {}).items():
            merged[name] = choose(merged[name], value) if name in merged else value
    return merged


def _same(one: ViewConfig, other: ViewConfig) -> ViewConfig:
    if one != other:
        raise UserError(f"two objectives want different views of one name: {one} and {other}")
    return one


def _teacher_momentum(objectives: Sequence[Objective], needs: frozenset[str]) -> float | None:
    """The momentum of the one teacher that all objectives share; None where none needs its features."""
    if not any(path.startswith("teacher.") for path in needs):
        return None
    asked = {getattr(o, "teacher_momentum", 1.0) for o in objectives if _needs_teacher(o)}
    if len(asked) > 1:
        raise UserError(f"objectives want teachers of different momentum: {sorted(asked)}; a run has one")
    return asked.pop()


def _needs_teacher(objective: Objective) -> bool:
    return any(path.startswith("teacher.") for path in objective.needs)
