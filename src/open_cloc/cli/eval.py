"""`open-cloc eval TASK --weights PATH --data FORMAT:PATH`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from open_cloc.errors import MissingFileError, UserError
from open_cloc.model.search import CANDIDATES


@dataclass(frozen=True)
class EvalCommand:
    """Measure a model on a data set; print a table and, if asked to, write one result JSON.

    Attributes:
        task: zeroshot_classification, zeroshot_retrieval, zeroshot_region_classification, region_retrieval,
            grounding or prompt_gain; hyphens will do.
        weights: Model folder or hub id.
        data: FORMAT:PATH, such as coco:val/instances.json, shards:data/ or scenes:val.
        method: Regions by prompter, roialign or crop; grounding by ranked or head. The first unless told.
        batch_size: Pictures per forward pass.
        workers: Processes that decode pictures.
        recall_k: The K of recall@K.
        classes: File with one class name a line to choose from, instead of the data set's categories.
        template: How a class name becomes a text, such as "a photo of a {}".
        lower_case: Lower-case all texts, as training does.
        candidates: Boxes that ranked grounding looks at in each picture.
        precision: bf16 runs the towers under autocast.
        limit: Measure the first so many samples only.
        device: cpu, cuda, ...; a GPU if there is one.
        output: File for the result JSON.
    """

    task: Annotated[str, tyro.conf.Positional]
    weights: str
    data: str
    method: str = ""
    batch_size: int = 32
    workers: int = 0
    recall_k: tuple[int, ...] = ()
    classes: Path | None = None
    template: str = "{}"
    lower_case: bool = True
    candidates: int = CANDIDATES
    precision: Literal["fp32", "bf16"] = "fp32"
    limit: int | None = None
    device: str | None = None
    output: Path | None = None


def main(argv: Sequence[str]) -> int:
    """Run the verb; 0 when the result is there."""
    command = tyro.cli(EvalCommand, args=list(argv), prog="open-cloc eval")
    from open_cloc.data.readers import open_reader
    from open_cloc.evaluation.features import EvaluationConfig
    from open_cloc.evaluation.run import FirstSamples, evaluate, result_table, task_name, write_result
    from open_cloc.model.load import load_model

    task_name(command.task)  # before the slow part
    config = EvaluationConfig(
        method=command.method,
        batch_size=command.batch_size,
        workers=command.workers,
        recall_k=command.recall_k,
        classes=read_names(command.classes),
        template=command.template,
        lower_case=command.lower_case,
        candidates=command.candidates,
        precision=command.precision,
    )
    dataset = open_reader(command.data)
    if command.limit is not None:
        dataset = FirstSamples(dataset, command.limit)
    model = load_model(command.weights, command.device)
    result = evaluate(
        model, dataset, command.task, config, dataset_name=command.data, pretrained=command.weights
    )
    if command.limit is not None:
        result["protocol"]["limit"] = command.limit
    print(result_table(result))
    if command.output is not None:
        write_result(result, command.output)
        print(f"written to {command.output}")
    return 0


def read_names(path: Path | None) -> tuple[str, ...]:
    """Class names, one a line; none without a path."""
    if path is None:
        return ()
    if not path.is_file():
        raise MissingFileError(f"no such file of class names: {path}")
    names = tuple(filter(None, (line.strip() for line in path.read_text(encoding="utf-8").splitlines())))
    if not names:
        raise UserError(f"file of class names is empty: {path}")
    return names
