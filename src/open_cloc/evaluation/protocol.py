"""What changes numbers whatever the task, as the part of a result that makes it comparable."""

from __future__ import annotations

from typing import Any

from open_cloc.data.annotations import SampleDataset
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.files import versions
from open_cloc.texts import TextCleaning

LIBRARIES = ("open-cloc", "torch", "torchvision", "open_clip_torch", "timm", "transformers", "pillow")


def common_protocol(
    described: dict[str, Any], cleaning: TextCleaning, dataset: SampleDataset, config: EvaluationConfig
) -> dict[str, Any]:
    """The part of a protocol that no task needs to write.

    Args:
        described: What the method says of itself, without its model's name and weights.
        cleaning: How the method wants its texts.
        dataset: The data that was measured on.
        config: How it was measured.
    """
    return {
        "template": config.template,
        "lower_case": cleaning.lower_case,
        **described,
        "box_filter": "none: every region that the reader gives",
        "dropped_by_reader": dict(getattr(dataset, "dropped", {})),
        "batch_size": config.batch_size,
        "versions": versions(*LIBRARIES),
    }
