"""What can be measured, by name: each task turns a method and a data set into numbers."""

from __future__ import annotations

from open_cloc.config import lookup, parse_spec
from open_cloc.evaluation.methods import METHODS
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.task import Task

__all__ = ["OPTIONS", "TASKS", "find_task", "task_name", "unread", "without_effect"]

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
OF_PROMPTER = ("prompter", "ranked", "head")  # methods that find boxes by themselves
# What of an `EvaluationConfig` some tasks read and others do not.
OPTIONS = {
    "templates": NAMING | {"referring"},
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
    return [
        option
        for option, readers in OPTIONS.items()
        if task in TASKS and task not in readers and _is_set(config, option)
    ]


def without_effect(task: str, config: EvaluationConfig, method: str) -> str:
    """An option that the task reads and that changes nothing with this method, with the reason; or nothing.

    Args:
        task: Name of the task.
        config: What is asked for.
        method: As `open_method` takes it; of those from elsewhere nobody knows.
    """
    name, _, options = parse_spec(method, METHODS)
    if name not in METHODS:
        return ""
    has_head = name == "head" or options.get("grounding") == "head"
    ranks = name in OF_PROMPTER and not has_head
    if _is_set(config, "candidates") and (config.proposals or not ranks):
        why = "boxes are chosen among --proposals" if config.proposals else f"{method} ranks no candidates"
        return f"--candidates has no effect: {why}"
    if task == "grounding" and _is_set(config, "recall_k") and has_head and not config.proposals:
        return f"--recall-k has no effect: {method} gives one box for a phrase"
    return ""


def _is_set(config: EvaluationConfig, option: str) -> bool:
    return getattr(config, option) != getattr(EvaluationConfig(), option)
