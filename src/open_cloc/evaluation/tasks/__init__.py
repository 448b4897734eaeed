"""What can be measured, by name: each task turns a method and a data set into numbers."""

from __future__ import annotations

from open_cloc.config import lookup
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.task import Task

__all__ = ["OPTIONS", "TASKS", "find_task", "task_name", "unread"]

# name -> `module:function` taking (Method, dataset, EvaluationConfig) and giving a TaskResult.
TASKS = {
    "zeroshot_classification": "open_cloc.evaluation.tasks.images:zeroshot_classification",
    "zeroshot_retrieval": "open_cloc.evaluation.tasks.images:zeroshot_retrieval",
    "zeroshot_region_classification": "open_cloc.evaluation.tasks.regions:zeroshot_region_classification",
    "region_retrieval": "open_cloc.evaluation.tasks.regions:region_retrieval",
    "fine_grained": "open_cloc.evaluation.tasks.fine_grained:fine_grained",
    "referring": "open_cloc.evaluation.tasks.referring:referring",
    "detection": "open_cloc.evaluation.tasks.detection:detection",
    "segmentation": "open_cloc.evaluation.tasks.segmentation:segmentation",
    "pointing": "open_cloc.evaluation.tasks.pointing:pointing",
    "grounding": "open_cloc.evaluation.tasks.grounding:grounding",
    "prompt_gain": "open_cloc.evaluation.tasks.prompt_gain:prompt_gain",
    "health": "open_cloc.evaluation.tasks.health:health",
    "region_health": "open_cloc.evaluation.tasks.health:region_health",
}

# Tasks that name things by classes.
NAMING = {
    *("zeroshot_classification", "zeroshot_region_classification", "detection", "segmentation"),
    *("prompt_gain", "health"),
}
# What of an `EvaluationConfig` some tasks read and others do not.
OPTIONS = {
    "templates": NAMING,
    "classes": NAMING,
    "recall_k": {"zeroshot_retrieval", "region_retrieval", "grounding"},
    "duplicates": {"region_retrieval"},
    "proposals": {"detection", "grounding"},
    "candidates": {"grounding", "pointing"},
    "groups": {"zeroshot_region_classification", "grounding", "detection"},
}


def task_name(name: str) -> str:
    """A task's name as results spell it: with underscores."""
    return name if ":" in name else name.replace("-", "_")


def find_task(name: str) -> Task:
    """The task of a name, or of `package.module:Name`; hyphens will do.

    Raises:
        UserError: If there is no such task.
    """
    return lookup(TASKS, task_name(name), "task")


def unread(task: str, config: EvaluationConfig) -> list[str]:
    """The options that are set and that the task does not read; of tasks from elsewhere nobody knows."""
    default = EvaluationConfig()
    return [
        option
        for option, readers in OPTIONS.items()
        if task in TASKS and task not in readers and getattr(config, option) != getattr(default, option)
    ]
