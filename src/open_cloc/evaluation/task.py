"""What a task is: a method and a data set in, numbers out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from open_cloc.data.annotations import SampleDataset
from open_cloc.evaluation import intervals
from open_cloc.evaluation.intervals import Estimate, Interval
from open_cloc.evaluation.method import Method
from open_cloc.evaluation.options import EvaluationConfig


class TaskResult(NamedTuple):
    """Numbers, and how they came about beyond what the method and the config say.

    Attributes:
        metrics: Values by name, all of them finite.
        protocol: What else changed the numbers, and counts named `num_...`, as plain JSON.
        intervals: Lower and upper end by the metric's name.
    """

    metrics: dict[str, float]
    protocol: dict[str, Any]
    intervals: Mapping[str, Interval] = {}


def measured(estimates: Mapping[str, Estimate], num_images: int, protocol: Mapping[str, Any]) -> TaskResult:
    """Values with their intervals, and the protocol that says how those came about."""
    values, found = intervals.measure(estimates, num_images)
    said = {"intervals": intervals.HOW} if found else {}
    return TaskResult(values, {**protocol, **said}, found)


Task: TypeAlias = Callable[[Method, SampleDataset, EvaluationConfig], TaskResult]
