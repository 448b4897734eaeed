"""The paper's three terms with other forms and weights, as many tests want them."""

from __future__ import annotations

from open_cloc.objectives import Objectives, Term


def paper_terms(
    contrastive: str = "softmax",
    grounding: str = "l2",
    *,
    region_weight: float = 1.0,
    grounding_weight: float = 1.0,
    conflict_threshold: float = 0.9,
) -> tuple[Term, ...]:
    """Eq. 4: image_text + region_weight * lambda * (region_text + grounding_weight * grounding)."""
    regions = {"form": contrastive, "conflict_threshold": conflict_threshold}
    return (
        Term("image_text", options={"form": contrastive}),
        Term("region_text", region_weight, options=regions),
        Term("grounding", region_weight * grounding_weight, options={"form": grounding}),
    )


def paper_objectives(contrastive: str = "softmax", grounding: str = "l2", **weights: float) -> Objectives:
    """The objectives of `paper_terms`."""
    return Objectives(paper_terms(contrastive, grounding, **weights))
