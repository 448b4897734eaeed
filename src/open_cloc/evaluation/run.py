"""One task on one data set: the numbers, and the protocol that made them, as one JSON (FORMATS 4.10)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from open_cloc.data.annotations import SampleDataset
from open_cloc.errors import UserError
from open_cloc.evaluation.features import EvaluationConfig, TaskResult
from open_cloc.evaluation.grounding import grounding
from open_cloc.evaluation.images import zeroshot_classification, zeroshot_retrieval
from open_cloc.evaluation.regions import prompt_gain, region_retrieval, zeroshot_region_classification
from open_cloc.model.cloc import CLOC
from open_cloc.samples import RegionSample

Task = Callable[[CLOC, SampleDataset, EvaluationConfig], TaskResult]

TASKS: dict[str, Task] = {
    "zeroshot_classification": zeroshot_classification,
    "zeroshot_retrieval": zeroshot_retrieval,
    "zeroshot_region_classification": zeroshot_region_classification,
    "region_retrieval": region_retrieval,
    "grounding": grounding,
    "prompt_gain": prompt_gain,
}

LIBRARIES = ("open-cloc", "torch", "torchvision", "open_clip_torch", "timm", "transformers", "pillow")


class FirstSamples:
    """The first samples of a data set; everything else about it stays, such as its class names."""

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
        if name in ("class_names", "dropped"):
            return getattr(self.dataset, name)
        raise AttributeError(name)


def task_name(name: str) -> str:
    """A task's name with underscores.

    Raises:
        UserError: If there is no such task.
    """
    known = name.replace("-", "_")
    if known not in TASKS:
        raise UserError(f"unknown task {name!r}; expected one of {', '.join(TASKS)}")
    return known


def evaluate(
    model: CLOC,
    dataset: SampleDataset,
    task: str,
    config: EvaluationConfig | None = None,
    *,
    dataset_name: str = "",
    pretrained: str = "",
    language: str = "en",
) -> dict[str, Any]:
    """Run one task.

    Args:
        model: Left in the mode, training or not, in which it came.
        dataset: Every sample and every region of it counts, or the run fails.
        task: A key of `TASKS`; hyphens will do.
        config: How to measure.
        dataset_name: For the result, such as `coco:val2017`.
        pretrained: For the result: where the weights come from.
        language: For the result: of the data set's texts.

    Returns:
        `dataset`, `model`, `pretrained`, `task`, `metrics`, `language` and `protocol`; plain JSON types.

    Raises:
        UserError: On an unknown task or method, or a sample that cannot be used.
    """
    config = config or EvaluationConfig()
    task = task_name(task)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            result = TASKS[task](model, dataset, config)
    finally:
        model.train(was_training)
    return {
        "dataset": dataset_name,
        "model": describe_model(model),
        "pretrained": pretrained,
        "task": task,
        "metrics": result.metrics,
        "language": language,
        "protocol": common_protocol(model, dataset, config) | result.protocol,
    }


def describe_model(model: CLOC) -> str:
    """The image tower in a word: timm's name, or what the open_clip config says."""
    vision = model.model_cfg["vision_cfg"]
    if vision.get("timm_model_name"):
        return str(vision["timm_model_name"])
    layers = vision.get("layers")
    if isinstance(layers, (list, tuple)):
        return f"ResNet-{'-'.join(map(str, layers))}"
    return f"ViT-{vision.get('width')}x{layers}-patch{vision.get('patch_size')}"


def common_protocol(model: CLOC, dataset: SampleDataset, config: EvaluationConfig) -> dict[str, Any]:
    """What changes numbers whatever the task."""
    preprocess = asdict(model.preprocess)
    return {
        "template": config.template,
        "lower_case": config.lower_case,
        "precision": config.precision,
        "image_size": list(preprocess["image_size"]),
        "resize_mode": preprocess["resize_mode"],
        "interpolation": preprocess["interpolation"],
        "prompter": asdict(model.prompter.config),
        "box_filter": "none: every region that the reader gives",
        "dropped_by_reader": dict(getattr(dataset, "dropped", {})),
        "batch_size": config.batch_size,
        "device": model.device.type,
        "versions": {name: metadata.version(name) for name in LIBRARIES},
    }


def write_result(result: dict[str, Any], path: Path) -> None:
    """Write a result as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def result_table(result: dict[str, Any]) -> str:
    """Metrics and counts of a result as aligned lines."""
    counts = {k: v for k, v in result["protocol"].items() if k.startswith("num_")}
    rows = [(name, f"{value:.4f}") for name, value in result["metrics"].items()]
    rows += [(name, str(value)) for name, value in counts.items()]
    width = max(len(name) for name, _ in rows)
    method = result["protocol"].get("method")
    title = f"{result['task']}{f' ({method})' if method else ''} on {result['dataset']}"
    return "\n".join([title, *(f"  {name:{width}}  {value:>8}" for name, value in rows)])
