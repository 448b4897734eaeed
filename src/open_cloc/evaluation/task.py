"""What a task is: a method and a data set in, numbers out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from open_cloc.data.annotations import SampleDataset
from open_cloc.evaluation.method import Method
from open_cloc.evaluation.options import EvaluationConfig


class TaskResult(NamedTuple):
    """Numbers, and how they came about beyond what the method and the config say.

    Attributes:
        metrics: Values by name, all of them finite.
        protocol: What else changed the numbers, and counts named `num_...`, as plain JSON.
    """

    metrics: dict[str, float]
    protocol: dict[str, Any]


Task: TypeAlias = Callable[[Method, SampleDataset, EvaluationConfig], TaskResult]
