"""The stages on Ray Data: read -> re-caption -> phrases -> detect -> filter -> write.

A row of the data set is a batch of pictures of one unit. Stages are actors that load their model once. What
the last of them returns is small (phrases, boxes, scores), so it may come together here, in the process that
started the run; as soon as a unit is whole, an actor writes its raw detections and its shard.
A unit is done when its mark is there, and a run that is started again does the others.
"""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from open_cloc.config import require
from open_cloc.data.bad_samples import BadSample, BadSamples
from open_cloc.errors import ExistingFileError, UserError, WorkerDiedError
from open_cloc.labelling.filter import check_filter
from open_cloc.labelling.output import (
    RUN_FILE,
    label_mark,
    raw_mark,
    read_mark,
    remove_run,
    save_raw,
    save_shard,
    write_json,
)
from open_cloc.labelling.provenance import describe, differences, downstream, upstream
from open_cloc.labelling.recipe import LabelRecipe, LabelRunConfig
from open_cloc.labelling.source import Unit, known_pictures, plan_units, read_batches
from open_cloc.labelling.stages import OWN, CaptionStage, DetectStage, PhraseStage, Stage
from open_cloc.labelling.types import Batch, Picture

LIGHT = 0.1  # CPUs that a stage asks for that mostly waits or is quick
Step = tuple[type[Stage], tuple[Any, ...]]  # a stage and what it is made with
RAY_UNITS = 10_000  # that Ray divides a CPU or a GPU into
READ_TASKS = 4096  # at most; each reads its units one after the other


class Actors(NamedTuple):
    """Processes that run the same stages.

    Attributes:
        steps: Which ones, one after the other.
        processes: How many.
        resources: What Ray shall give to each.
    """

    steps: Sequence[Step]
    processes: int
    resources: dict[str, float]


def label(
    recipe: LabelRecipe, source: str, output: str | Path, overwrite: bool = False
) -> list[dict[str, Any]]:
    """Label pictures, or go on where an earlier run of the same recipe and input ended.

    Args:
        recipe: What to do. Another filter than the earlier run's reruns the last stage alone.
        source: A path whose format is recognised, or FORMAT:PATH[,name=value...].
        output: Folder of the labelled shards; every machine of a cluster must see it.
        overwrite: Delete the files of an earlier run there, whatever made them, and nothing else.

    Returns:
        Each unit's counts, in order.

    Raises:
        ExistingFileError: If the folder holds something else.
        UserError: If it holds labels that were made otherwise, the recipe or the input is wrong, or too many
            pictures cannot be used.
        WorkerDiedError: If a worker fails for another reason, such as a full disk.
    """
    check_filter(recipe.filter, bool(recipe.cycle_weights))
    check_run(recipe)
    output = Path(output).resolve()
    units = plan_units(source, recipe.run.samples_per_shard)
    _open_output(output, recipe, source, units, overwrite)
    undetected = [unit for unit in units if read_mark(raw_mark(output, unit.name)) is None]
    unfiltered = [unit for unit in units if unit not in undetected and not _is_labelled(output, unit, recipe)]
    if undetected or unfiltered:
        with connected(recipe.run.address), _plain_errors():
            raw_marks = (read_mark(raw_mark(output, unit.name)) for unit in units)
            made_by = next((mark["made_by"] for mark in raw_marks if mark is not None), None)
            _run(output, recipe, undetected, unfiltered, made_by)
    marks = [read_mark(label_mark(output, unit.name)) for unit in units]
    counts = [mark["counts"] for mark in marks if mark is not None]
    written = zip(units, counts)
    write_json(output / "sizes.json", {f"{u.name}.tar": c["written"] for u, c in written if c["written"]})
    return counts


def check_run(recipe: LabelRecipe) -> None:
    """Refuse numbers that cannot be meant.

    Raises:
        UserError: Names the field.
    """
    for name in ("batch_size", "samples_per_shard", "captioners", "phrasers", "writers"):
        if getattr(recipe.run, name) < 1:
            raise UserError(f"run.{name} must be at least 1; got {getattr(recipe.run, name)}")
    if recipe.run.detectors < 0:
        raise UserError(f"run.detectors must be at least 0; got {recipe.run.detectors}")
    if recipe.cycle_weights == OWN and recipe.detect.kind == "transformers":
        raise UserError(
            f"cycle_weights {OWN!r} needs a CLOC model as detector; got detect.kind {recipe.detect.kind!r}"
        )
    if not 0 <= recipe.run.max_bad_fraction <= 1:
        raise UserError(f"run.max_bad_fraction must lie in [0, 1]; got {recipe.run.max_bad_fraction}")


def labelled_batches(units: Sequence[Unit], recipe: LabelRecipe) -> Iterator[Batch]:
    """Send units through all stages but the last, on the Ray cluster that is connected.

    Batches come in no order.
    """
    data = require("ray.data", "label")
    rows = [{"unit": pickle.dumps(unit)} for unit in units]
    stream = data.from_items(rows, override_num_blocks=min(len(rows), READ_TASKS))
    stream = stream.flat_map(_Read(recipe.run.batch_size), num_cpus=LIGHT)
    for actors in plan_actors(recipe, require("ray", "label").cluster_resources()):
        stream = stream.map(
            _OnRows,
            fn_constructor_args=(actors.steps, tuple(sys.path)),
            compute=data.ActorPoolStrategy(
                size=actors.processes,
                max_tasks_in_flight_per_actor=2 * int(actors.resources.get("max_concurrency", 1)),
            ),
            **actors.resources,
        )
    for row in stream.iter_rows():
        batch = pickle.loads(row["batch"])
        if isinstance(batch, Exception):
            raise batch
        yield batch


def plan_actors(recipe: LabelRecipe, cluster: dict[str, float]) -> list[Actors]:
    """The actors of all stages, in order, with what each needs of a cluster of so many CPUs and GPUs.

    All of them run at the same time, so together they must not ask for more than there is: a stage that waits
    for its place would stop the run once the stages before it have filled the memory.

    Raises:
        UserError: If more GPUs are asked for than this machine has.
    """
    run = recipe.run
    has_model = recipe.caption.kind not in ("given", "server")
    light, heavy, detectors = _share_cluster(run, cluster, run.captioners if has_model else 0)
    device = "cuda" if heavy.get("num_gpus") else "cpu"
    caption, phrases = (CaptionStage, (recipe.caption, device)), (PhraseStage, (recipe.phrases,))
    detect = (DetectStage, (recipe.detect, recipe.cycle_weights, device))
    if recipe.caption.kind == "given":  # not worth a process of its own
        first = [Actors((caption, phrases), run.phrasers, light)]
    else:
        asked = heavy if has_model else light
        if recipe.caption.kind == "server":  # several batches at a time, or there are too few requests
            asked = asked | {"max_concurrency": -(-recipe.caption.requests // run.batch_size)}
        first = [Actors((caption,), run.captioners, asked), Actors((phrases,), run.phrasers, light)]
    return [*first, Actors((detect,), detectors, heavy)]


def _share_cluster(
    run: LabelRunConfig, cluster: dict[str, float], captioners: int
) -> tuple[dict[str, float], dict[str, float], int]:
    """What a light actor asks for, and a detector as each of so many captioners; how many detectors."""
    cpus, gpus = cluster.get("CPU", 1), cluster.get("GPU", 0)
    on_gpus = run.gpus_per_actor > 0 or (run.gpus_per_actor < 0 and gpus > 0)
    each = run.gpus_per_actor if run.gpus_per_actor > 0 else 1
    detectors = run.detectors or max(1, int(gpus / each if on_gpus else cpus) - captioners)
    others = run.captioners + run.phrasers
    light = _round_down(min(LIGHT, cpus / 2 / (others + detectors)))
    actors = captioners + detectors
    if not on_gpus:
        left = cpus - light * others - max(LIGHT, 0.05 * cpus)  # reading finds a place too
        return {"num_cpus": light}, {"num_cpus": _round_down(left / actors)}, detectors
    if run.gpus_per_actor < 0:  # where there are too few, so many on one that all find a place
        each = _round_down(1 / math.ceil(actors / gpus))
    elif actors * each > gpus and not run.address:  # a cluster may grow
        raise UserError(
            f"{captioners} captioners and {detectors} detectors of run.gpus_per_actor {each:g} need "
            f"{actors * each:g} GPUs; this machine has {gpus:g}: ask for less of one, or for fewer actors"
        )
    return {"num_cpus": light}, {"num_cpus": light, "num_gpus": each}, detectors


def _round_down(share: float) -> float:
    """To what Ray counts in: it would round up, and the last actor would find no place."""
    return int(share * RAY_UNITS) / RAY_UNITS


class _Read:
    """A row that names a unit -> a row for each of its batches."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.path = tuple(sys.path)

    def __call__(self, row: dict[str, bytes]) -> Iterator[dict[str, bytes]]:
        _import_from(self.path)
        try:
            for batch in read_batches(pickle.loads(row["unit"]), self.batch_size):
                yield {"batch": pickle.dumps(batch)}
        except Exception as error:
            yield {"batch": _pickled_error(error)}


class _OnRows:
    """Stages as Ray Data calls them.

    What they raise goes on in place of the batch: Ray would start a failing actor again for minutes, and hide
    the reason in its own errors.
    """

    def __init__(self, steps: Sequence[Step], path: Sequence[str]) -> None:
        _import_from(path)
        self.error = b""
        try:
            self.stages = [stage(*arguments) for stage, arguments in steps]
        except Exception as error:
            self.error = _pickled_error(error)

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        if self.error:
            return {"batch": self.error}
        batch = pickle.loads(row["batch"])
        if isinstance(batch, Exception):
            return row
        try:
            for stage in self.stages:
                batch = stage(batch)
        except Exception as error:
            return {"batch": _pickled_error(error)}
        return {"batch": pickle.dumps(batch)}


def _pickled_error(error: Exception) -> bytes:
    """An error as the user shall see it: what is wrong with the input as it is, anything else by its type."""
    if isinstance(error, (ValueError, FileNotFoundError)):
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        return pickle.dumps(kind(str(error)))
    return pickle.dumps(ChildProcessError(f"a labelling worker failed: {type(error).__name__}: {error}"))


def _import_from(path: Sequence[str]) -> None:
    """Let a worker import what the process that started the run can."""
    sys.path.extend(entry for entry in path if entry not in sys.path)


def _run(
    output: Path,
    recipe: LabelRecipe,
    undetected: Sequence[Unit],
    unfiltered: Sequence[Unit],
    made_by: dict[str, Any] | None,
) -> None:
    """Do what is left to do; `made_by` is what the stages said of themselves when the rest was done."""
    by_name = {unit.name: unit for unit in undetected}
    bad = BadSamples(recipe.run.max_bad_fraction)
    parts: dict[str, list[Batch]] = {}
    total = known_pictures(undetected)
    bar = tqdm(desc="labelling", total=total, unit="img", unit_scale=True)
    with _writers(output, recipe) as write, bar:
        for unit in unfiltered:
            write(unit, None)
        for batch in labelled_batches(undetected, recipe) if undetected else ():
            if made_by is not None and batch.made_by.keys() == made_by.keys():
                _refuse_changes(output, made_by, json.loads(json.dumps(batch.made_by)))
            bar.update(len(batch.pictures))
            failures = [p.failure for p in batch.pictures if p.failure is not None]
            bad.add(len(batch.pictures) - len(failures), [BadSample(*failure, False) for failure in failures])
            part = parts.setdefault(batch.unit, [])
            part.append(batch)
            if len(part) == batch.of:
                write(by_name[batch.unit], parts.pop(batch.unit))
    assert not parts, parts.keys()


@contextmanager
def _writers(output: Path, recipe: LabelRecipe) -> Iterator[Callable[[Unit, Sequence[Batch] | None], None]]:
    """A function that has units written by tasks; it waits where they fall behind, in the end for all."""
    ray = require("ray", "label")
    # Tasks, not actors: a machine that dies takes an actor's calls with it, a task is run again elsewhere.
    task = ray.remote(num_cpus=0, max_retries=3)(_write_unit)
    writing: list[Any] = []

    def write(unit: Unit, batches: Sequence[Batch] | None) -> None:
        while len(writing) >= recipe.run.writers:
            done, writing[:] = ray.wait(writing, num_returns=1)
            ray.get(done)
        writing.append(task.remote(output, recipe, unit, batches))

    yield write
    ray.get(writing)


def _write_unit(output: Path, recipe: LabelRecipe, unit: Unit, batches: Sequence[Batch] | None) -> None:
    """Write a unit's raw detections, unless they are there (`batches` is None), and its shard."""
    if batches is not None:
        pictures: list[Picture] = []
        made_by: dict[str, Any] = {}
        for batch in sorted(batches, key=lambda batch: batch.number):
            pictures += batch.pictures
            made_by |= batch.made_by
        save_raw(output, unit, pictures, made_by, recipe)
    save_shard(output, unit, recipe)


def _open_output(
    output: Path, recipe: LabelRecipe, source: str, units: Sequence[Unit], overwrite: bool
) -> None:
    """Make the output folder, or make sure that what it holds was made by this recipe from this input."""
    found = read_mark(output / RUN_FILE)
    if found is None and output.exists() and any(output.iterdir()):
        raise ExistingFileError(
            f"output folder must be new, empty or of an earlier labelling run; got {output}"
        )
    now = {"source": source, "units": [asdict(unit) for unit in units], "recipe": upstream(recipe)}
    if found is not None and overwrite:
        remove_run(output, [unit["name"] for unit in found["units"]])
    elif found is not None:
        _refuse_changes(output, {name: found.get(name) for name in now}, now)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / RUN_FILE, {"name": recipe.name, **now, "filter": downstream(recipe)["filter"]})


def _refuse_changes(output: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    changes = list(differences(before, now))
    if changes:
        raise UserError(
            f"{output} holds labels that were made otherwise: {describe(changes)[:500]}; "
            "give another folder, or --overwrite"
        )


def _is_labelled(output: Path, unit: Unit, recipe: LabelRecipe) -> bool:
    mark = read_mark(label_mark(output, unit.name))
    return mark is not None and mark["recipe"] == upstream(recipe) | downstream(recipe)


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A Ray cluster: the one at an address, or one of this machine alone that ends with the run."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what concerns the user is raised
    ray = require("ray", "label")
    context = require("ray.data", "label").DataContext.get_current()
    context.enable_progress_bars = False  # ours counts pictures
    context.issue_detectors_config.detectors = []
    context.target_max_block_size = 1  # a block a batch, so that a unit's batches spread over all actors
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    started = not ray.is_initialized()
    if started:
        place = {"address": address} if address else {"num_cpus": os.cpu_count(), "include_dashboard": False}
        ray.init(**place, logging_level="ERROR", log_to_driver=False)
    try:
        yield
    finally:
        if started:
            ray.shutdown()


@contextmanager
def _plain_errors() -> Iterator[None]:
    """What a writer raised, without Ray's wrapping."""
    ray = require("ray", "label")
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, (ValueError, FileNotFoundError)):
            raise type(cause)(str(cause)) from None
        raise WorkerDiedError(f"a labelling worker failed: {type(cause).__name__}: {cause}") from error
    except ray.exceptions.RayError as error:
        raise WorkerDiedError(f"the Ray cluster failed: {error}") from error
