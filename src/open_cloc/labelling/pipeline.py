"""The stages as one stream: read -> re-caption -> phrases -> detect -> filter -> write.

A batch of pictures of one unit goes through them, and what comes out is small (phrases, boxes, scores), so it
may come together here, in the process that started the run. As soon as a unit is whole, its raw detections
and its shard are written. A run that is started again does what is not yet there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from open_cloc.data.bad_samples import BadSample, BadSamples
from open_cloc.files import locked
from open_cloc.labelling.actors import labelled_batches, writers
from open_cloc.labelling.checks import check_recipe
from open_cloc.labelling.cluster import connected
from open_cloc.labelling.kinds import check_kinds
from open_cloc.labelling.output import RunFolder, Todo
from open_cloc.labelling.recipe import LabelRecipe
from open_cloc.labelling.source import known_pictures, plan_units, tell_input
from open_cloc.labelling.types import Batch, UnreadUnit
from open_cloc.precision import decide

UNREAD_SHOWN = 3  # shards that cannot be opened, one a line; the end of the run counts them

logger = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """What became of a run.

    Attributes:
        counts: The counts of all shards, added up.
        unread: Shards of the input that could not be opened, each with the reason; they have no labels.
    """

    counts: dict[str, Any]
    unread: dict[str, str]


def label(recipe: LabelRecipe, source: str, output: str | Path, overwrite: bool = False) -> Outcome:
    """Label pictures, or go on where an earlier run of the same recipe and input ended.

    Args:
        recipe: What to do. Another filter than the earlier run's reruns the last stage alone.
        source: A path whose format is recognised, or FORMAT:PATH[,name=value...].
        output: Folder of the labelled shards; every machine of a cluster must see it.
        overwrite: Delete the files of an earlier run there, whatever made them, and nothing else.

    Returns:
        The counts of all units, also of those that were labelled before; and which ones are not.

    Raises:
        ExistingFileError: If the folder holds something else.
        UserError: If it holds labels that were made otherwise, another process works in it, the recipe or the
            input is wrong, or too many pictures cannot be used.
        RunError: If a server of captions is not there, or a worker fails for another reason.
    """
    check_recipe(recipe)
    check_kinds(recipe)
    recipe = _decided(recipe)
    units = plan_units(source, recipe.run.samples_per_shard)
    tell_input(units, source, recipe.run.max_bad_fraction)
    with locked(Path(output).resolve()):
        run = RunFolder.open(output, recipe, source, units, overwrite)
        todo = run.todo()
        if any(todo):
            _work(run, todo, recipe)
        return Outcome(run.finish(), run.unread)


def _decided(recipe: LabelRecipe) -> LabelRecipe:
    """With a precision that does not depend on where a run is gone on with: it is written down."""
    asked = recipe.run.gpus_per_actor  # for a cluster elsewhere, this alone says that it has GPUs
    on_gpus = asked > 0 or (asked < 0 and torch.cuda.is_available())
    device = torch.device("cuda" if on_gpus else "cpu")
    return replace(recipe, detect=replace(recipe.detect, precision=decide(recipe.detect.precision, device)))


def _work(run: RunFolder, todo: Todo, recipe: LabelRecipe) -> None:
    """Do what is left to do."""
    with connected(recipe.run.address), writers(run.path, recipe) as write:
        for unit in todo.filter:
            write(unit, None)
        batches = labelled_batches(todo.detect, recipe)
        for batch in watched(batches, known_pictures(todo.detect), recipe.run.max_bad_fraction):
            run.add(batch, write)


def watched(
    batches: Iterable[Batch | UnreadUnit], total: int | None, max_bad_fraction: float
) -> Iterator[Batch | UnreadUnit]:
    """Pass batches on, show how far they are, and stop where too many of their pictures cannot be used.

    Args:
        batches: Batches that have been through all stages but the last.
        total: Number of their pictures, where it is known.
        max_bad_fraction: Largest share of pictures that may fail.

    Raises:
        UserError: If more of them fail.
    """
    bad, unread = BadSamples(max_bad_fraction), 0
    with tqdm(desc="labelling", total=total, unit="img", unit_scale=True) as bar:
        for batch in batches:
            if isinstance(batch, UnreadUnit):
                unread += 1
                if unread <= UNREAD_SHOWN:
                    logger.warning("shard %s is left out: %s", batch.unit, batch.message)
                yield batch
                continue
            failed = [
                BadSample(p.failure.cause, f"{p.failure.message} (picture {p.index} of {batch.unit})", False)
                for p in batch.pictures
                if p.failure is not None
            ]
            bad.add(len(batch.pictures) - len(failed), failed)
            bar.update(len(batch.pictures))
            yield batch
