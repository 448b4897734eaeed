"""`open-cloc eval TASK --weights PATH --data FORMAT:PATH`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from open_cloc.cli.parse import check_result_file, parse
from open_cloc.cli.screen import say
from open_cloc.data.readers import open_reader
from open_cloc.errors import UserError
from open_cloc.evaluation.methods import default_method
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.run import FirstSamples, evaluate, result_table
from open_cloc.evaluation.tasks import OPTIONS, find_task, task_name, unread, without_effect
from open_cloc.files import read_json, read_names, write_json

# What every result holds.
RESULT = ("dataset", "model", "task", "metrics", "protocol")


@dataclass(frozen=True)
class Options(EvaluationConfig):
    """How to measure, without what a shell cannot say: class names stand in a file there."""

    classes: tyro.conf.Suppress[tuple[str, ...]] = ()
    groups: tyro.conf.Suppress[Mapping[str, Collection[str]]] = field(default_factory=dict)


@dataclass(frozen=True)
class EvalCommand:
    """Measure a model on a data set; print a table and, if asked to, write one result JSON.

    Attributes:
        task: Such as zeroshot_retrieval, region_retrieval or grounding; hyphens will do, and a wrong one
            lists all.
        data: FORMAT:PATH, such as coco:val/instances.json, shards:data/ or scenes:val.
        weights: Model folder or hub id; methods that bring their own model take none.
        method: How regions are embedded, such as prompter (the default), roialign or crop; for grounding,
            ranked (the default) or head; a wrong one lists all.
        classes: File with one class name a line to choose from, instead of the data set's categories.
        groups: JSON file of class names by the name of a group, such as base and novel, each measured alone.
        limit: Measure the first so many samples only.
        max_bad_fraction: Share of samples that may be left out, or lose entries, because they cannot be used;
            they are counted in the result. With 0 the first one ends the run.
        device: cpu, cuda, ...; a GPU if there is one.
        output: File for the result JSON.
        config: How to measure.
    """

    task: Annotated[str, tyro.conf.Positional]
    data: str
    weights: str | None = None
    method: str = ""
    classes: Path | None = None
    groups: Path | None = None
    limit: int | None = None
    max_bad_fraction: float = 0.0
    device: str | None = None
    output: Path | None = None
    config: tyro.conf.OmitArgPrefixes[Options] = field(default_factory=Options)


def main(argv: Sequence[str]) -> int:
    """Run the verb; 0 when the result is there."""
    command = parse(EvalCommand, argv, "open-cloc eval")
    check_result_file(command.output, RESULT)
    result = measure(command)
    if command.output is not None:
        write_json(command.output, result)  # before the screen: whoever reads it may leave, as `head` does
    say(result_table(result))
    if command.output is not None:
        say(f"written to {command.output}")
    return 0


def measure(command: EvalCommand) -> dict[str, Any]:
    """The result that a command asks for."""
    find_task(command.task)  # before the slow part
    config: EvaluationConfig = command.config
    if command.classes is not None:
        config = replace(config, classes=read_names(command.classes))
    if command.groups is not None:
        config = replace(config, groups=_read_groups(command.groups))
    task = task_name(command.task)
    for option in unread(task, config):
        able = ", ".join(sorted(OPTIONS[option]))
        raise UserError(f"{task} does not read --{option.replace('_', '-')}: leave it out (it is for {able})")
    if idle := without_effect(task, config, command.method or default_method(task, command.weights)):
        raise UserError(f"{idle}; leave it out")
    dataset = open_reader(command.data)
    if command.limit is not None:
        dataset = FirstSamples(dataset, command.limit)
    result = evaluate(
        command.weights,
        dataset,
        command.task,
        config,
        method=command.method,
        device=command.device,
        dataset_name=command.data,
        draws=command.output is not None,
        max_bad_fraction=command.max_bad_fraction,
    )
    if command.limit is not None:
        result["protocol"]["limit"] = command.limit
    return result


def _read_groups(file: Path) -> dict[str, list[str]]:
    """Class names by the name of a group.

    Raises:
        UserError: If the file is something else.
    """
    found = read_json(file)
    lists = found.values() if isinstance(found, dict) else [None]
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
        raise UserError(f'{file} must be JSON like {{"base": ["cat", ...], "novel": [...]}}')
    return dict(found)
