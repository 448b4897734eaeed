"""Losses of CLOC as pure functions of features."""

from open_cloc.objectives.contrastive import (
    image_text_loss,
    region_text_loss,
    sigmoid_image_text_loss,
    sigmoid_region_text_loss,
)
from open_cloc.objectives.grounding import grounding_loss
from open_cloc.objectives.total import LossConfig, total_loss

__all__ = [
    "LossConfig",
    "grounding_loss",
    "image_text_loss",
    "region_text_loss",
    "sigmoid_image_text_loss",
    "sigmoid_region_text_loss",
    "total_loss",
]
