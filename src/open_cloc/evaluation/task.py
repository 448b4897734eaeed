"""What a task is: a method and a data set in, numbers out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from open_cloc.data.annotations import SampleDataset
from open_cloc.evaluation import intervals
from open_cloc.evaluation.intervals import Interval, Statistic
from open_cloc.evaluation.method import Method
from open_cloc.evaluation.options import EvaluationConfig


class TaskResult(NamedTuple):
    """Numbers, and how they came about beyond what the method and the config say.

    Attributes:
        metrics: Values by name, all of them finite.
        protocol: What else changed the numbers, and counts named `num_...`, as plain JSON.
        intervals: Lower and upper end by the metric's name.
        draws: Values on other draws of the images, by the metric's name; for comparisons.
    """

    metrics: dict[str, float]
    protocol: dict[str, Any]
    intervals: Mapping[str, Interval] = {}
    draws: Mapping[str, np.ndarray] = {}


def measured(estimates: Mapping[str, Statistic], num_images: int, protocol: Mapping[str, Any]) -> TaskResult:
    """Values with their intervals, and the protocol that says how those came about."""
    found = intervals.measure(estimates, num_images)
    said = {"intervals": intervals.HOW} if found.intervals else {}
    return TaskResult(found.values, {**protocol, **said}, found.intervals, found.draws)


Task: TypeAlias = Callable[[Method, SampleDataset, EvaluationConfig], TaskResult]
