"""Objectives: terms of the loss, each a file, found by name in `OBJECTIVES`; and the plain loss functions."""

from open_cloc.objectives.grounding import grounding_loss
from open_cloc.objectives.image_text import image_text_loss, sigmoid_image_text_loss
from open_cloc.objectives.objective import Objective, Term
from open_cloc.objectives.region_text import region_text_loss, sigmoid_region_text_loss
from open_cloc.objectives.total import OBJECTIVES, PAPER_TERMS, Objectives

__all__ = [
    "OBJECTIVES",
    "PAPER_TERMS",
    "Objective",
    "Objectives",
    "Term",
    "grounding_loss",
    "image_text_loss",
    "region_text_loss",
    "sigmoid_image_text_loss",
    "sigmoid_region_text_loss",
]
