"""One task on one data set: the numbers, and the protocol that made them, ready for one JSON file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from open_cloc.data.annotations import SampleDataset
from open_cloc.data.bad_samples import tell_opening
from open_cloc.data.readers import open_reader
from open_cloc.errors import UserError
from open_cloc.evaluation.checked import CheckedMethod, checked
from open_cloc.evaluation.compare import written_draws
from open_cloc.evaluation.method import Method, Weights
from open_cloc.evaluation.methods import check_method, default_method, open_method
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.protocols import check_fit, common_protocol
from open_cloc.evaluation.task import TaskResult
from open_cloc.evaluation.tasks import TASKS, find_task, task_name, unread
from open_cloc.evaluation.usable import OF_WHOLE, UsableSamples
from open_cloc.model.cloc import CLOC
from open_cloc.samples import RegionSample
from open_cloc.shown import hide_secrets

DEFAULT = EvaluationConfig()

__all__ = ["TASKS", "EvaluationConfig", "FirstSamples", "evaluate", "result_table"]


class FirstSamples:
    """The first samples of a data set; everything else about it stays, such as its class names."""

    is_a_part = True

    def __init__(self, dataset: SampleDataset, limit: int) -> None:
        if limit < 1:
            raise UserError(f"limit must be at least 1; got {limit}")
        self.dataset, self.length = dataset, min(limit, len(dataset))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> RegionSample:
        if not 0 <= index < self.length:
            raise IndexError(f"sample {index} of {self.length}")
        return self.dataset[index]

    def __getattr__(self, name: str) -> Any:
        if name in (*OF_WHOLE, "label_map"):
            return getattr(self.dataset, name)
        raise AttributeError(name)


def evaluate(
    model: Method | Weights | None,
    dataset: SampleDataset | str,
    task: str,
    config: EvaluationConfig | None = None,
    *,
    method: str = "",
    device: str | torch.device | None = None,
    dataset_name: str = "",
    pretrained: str = "",
    language: str = "en",
    draws: bool = False,
    max_bad_fraction: float = 0.0,
) -> dict[str, Any]:
    """Run one task.

        open_cloc.evaluate("runs/x/model", "coco:val.json", "zeroshot_region_classification")

    Args:
        model: A CLOC model, whose mode is left as it is; the folder or hub id of one; an open method; or None
            for a method that brings its own model.
        dataset: A data set, or FORMAT:PATH of one. Every sample and region of it counts, or the run fails.
        task: A key of `TASKS`, or `package.module:Name`; hyphens will do.
        config: How to measure; one for several tasks may hold what not all of them read.
        method: How regions are embedded: `NAME[:WHAT][,option=value...]`, NAME a key of `METHODS` or
            `package.module:Name`; `prompter` unless told.
        device: Where weights are loaded to; None takes a GPU if there is one.
        dataset_name: For the result, such as `coco:val2017`; the data set's own FORMAT:PATH unless told.
        pretrained: For the result: the weights' place, if the method does not know it.
        language: For the result: that of the data set's texts.
        draws: Add what `compare` shows: metrics on 1,000 other draws of the images, and the time a region.
        max_bad_fraction: Share of samples that cannot be used, or only without some entries, up to which they
            are left out and counted in the protocol. With 0 the first one ends the run.

    Returns:
        CLIP_benchmark's keys, `intervals` (lower and upper end of each metric) and `protocol`; plain JSON.

    Raises:
        UserError: On an unknown task or method, a sample that cannot be used, or a feature that is not finite
            or not of unit length.
        MissingFileError: If weights, data or a picture are missing.
    """
    config = _as_read(task_name(task), config or DEFAULT)
    run_task = find_task(task)
    spec = method or default_method(task_name(task), model)
    check_method(spec, task_name(task))
    data, named = _as_data(dataset, dataset_name, max_bad_fraction, task_name(task))
    check_fit(config.rules, task_name(task), data)
    opened = checked(_as_method(model, method, spec, config, device))
    with _eval_mode(model), torch.inference_mode():
        result = run_task(opened, data, config)
    described = opened.describe()
    name, origin = described.pop("model"), described.pop("pretrained")
    common = common_protocol(config.rules, described, opened.cleaning, data, config.batch_size)
    said = {"dataset": named, "model": name, "pretrained": pretrained or origin, "task": task_name(task)}
    said |= {**_numbers(result, opened if draws else None), "language": language}
    return hide_secrets(
        said
        | {"protocol": common | opened.seen() | _left_out(data) | _skipped(opened, config) | result.protocol}
    )


def _as_read(task: str, config: EvaluationConfig) -> EvaluationConfig:
    """A config without what the task does not read: the result would hold rules that were not followed."""
    return replace(config, **{option: getattr(DEFAULT, option) for option in unread(task, config)})


def _skipped(opened: CheckedMethod, config: EvaluationConfig) -> dict[str, int]:
    """What the protocol's script would have left out without a word, where it leaves out folders."""
    folder = config.rules.folder
    if not folder:
        return {}
    others = [count for name, count in opened.folders.items() if name and name != folder]
    return {"num_regions_that_the_script_skips": sum(others)}


def _numbers(result: TaskResult, compared: CheckedMethod | None) -> dict[str, Any]:
    """What was measured; of a method that is to be compared, its draws and its time as well."""
    found = {
        "metrics": result.metrics,
        "intervals": {name: list(ends) for name, ends in result.intervals.items()},
    }
    if compared is None:
        return found
    drawn = {name: written_draws(values) for name, values in result.draws.items()}
    return found | {"draws": drawn, "seconds_per_region": compared.seconds_per_region}


def _as_data(
    dataset: SampleDataset | str, name: str, max_bad_fraction: float, task: str
) -> tuple[SampleDataset, str]:
    """The data set that is given or named, or what of it can be used, and its name."""
    if not 0 <= max_bad_fraction <= 1:
        raise UserError(f"max_bad_fraction must be in [0, 1]; got {max_bad_fraction}")
    data = open_reader(dataset) if isinstance(dataset, str) else dataset
    named = name or (dataset if isinstance(dataset, str) else "")
    advice = "max_bad_fraction leaves them out, and counts them"
    tell_opening(data, named or "data set", max_bad_fraction, advice)
    return UsableSamples(data, max_bad_fraction, task) if max_bad_fraction else data, named


def _left_out(data: SampleDataset) -> dict[str, Any]:
    """What was allowed to be left out, with counts by cause; nothing where nothing may be."""
    if not isinstance(data, UsableSamples):
        return {}
    entries = Counter(problem.cause for problem in getattr(data, "problems", ()))
    causes = data.causes + entries
    return {"num_left_out": causes.total(), "left_out": dict(causes)}


def _as_method(
    model: Method | Weights | None,
    given: str,
    spec: str,
    config: EvaluationConfig,
    device: str | torch.device | None,
) -> Method:
    """The method that is given, or the one that is named, opened with the weights that are given."""
    if model is None or isinstance(model, (CLOC, str, Path)):
        return open_method(spec, model, config, device)
    if given:
        raise UserError(f"a method is open already; got method={given!r} too")
    return model


@contextmanager
def _eval_mode(model: Any) -> Iterator[None]:
    """Put a model into eval mode, and back; what is no model of ours is left alone."""
    if not isinstance(model, CLOC):
        yield
        return
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def result_table(result: dict[str, Any]) -> str:
    """Metrics with their intervals, and counts, of a result as aligned lines."""
    protocol = result["protocol"]
    rows = [
        (name, f"{value:8.4f}{_ends(result['intervals'].get(name))}")
        for name, value in result["metrics"].items()
    ]
    rows += [(name, f"{value:>8}") for name, value in protocol.items() if name.startswith("num_")]
    width = max(len(name) for name, _ in rows)
    title = f"{result['task']} ({protocol['method']}) on {result['dataset']}"
    lines = [title, *(f"  {name:{width}}  {value}" for name, value in rows)]
    if "intervals" in protocol:
        level, resamples = protocol["intervals"]["level"], protocol["intervals"]["resamples"]
        lines.append(f"  in brackets: {level:.0%} intervals, {resamples} resamples of the images")
    if subset := protocol.get("rules", {}).get("subset"):
        lines.append(f"  numbers quoted under the protocol {protocol['name']} are of: {subset}")
    return "\n".join(lines)


def _ends(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"  [{interval[0]:.4f}, {interval[1]:.4f}]"
