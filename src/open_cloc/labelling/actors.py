"""The stages and the writers as processes on a Ray cluster; nothing but this and `cluster` knows Ray.

A row of Ray's data set is a batch of pictures. Stages are actors that load their model once, writers are
tasks; what runs in them is in `worker`.
"""

from __future__ import annotations

import math
import pickle
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from open_cloc.config import require
from open_cloc.errors import UserError
from open_cloc.labelling.cluster import RETRIES_HERE, RETRIES_ON_CLUSTER
from open_cloc.labelling.output import Write
from open_cloc.labelling.recipe import OWN, LabelRecipe, LabelRunConfig
from open_cloc.labelling.stages import CaptionStage, DecodeStage, DetectStage, PhraseStage
from open_cloc.labelling.types import Batch, Unit, UnreadUnit
from open_cloc.labelling.worker import OnRows, Read, Step, Trouble, write_unit_or_tell

# CPUs that a stage asks for that mostly waits or is quick.
LIGHT = 0.1
# Processes that decode for each detector on a GPU: a photo of 0.3 megapixels takes 5 ms.
DECODERS = 8
# Detectors on CPUs that one process reads for.
DETECTORS_OF_A_READER = 4
LAST_WRITERS = 60.0  # seconds to wait for shards that are being written when a run fails
# Parts that Ray divides a CPU or a GPU into.
RAY_UNITS = 10_000
# Most tasks that read; each reads its units one after the other.
READ_TASKS = 4096


class Actors(NamedTuple):
    """Processes that run the same stages.

    Attributes:
        steps: The stages, one after the other.
        processes: Number of processes.
        resources: What Ray shall give to each process.
    """

    steps: Sequence[Step]
    processes: int
    resources: dict[str, float]


def labelled_batches(units: Sequence[Unit], recipe: LabelRecipe) -> Iterator[Batch | UnreadUnit]:
    """Send units through all stages but the last, on the Ray cluster that is connected.

    Batches come in no order.

    Raises:
        UserError: If a stage finds its settings or its model wrong.
        RunError: If a stage fails for another reason.
    """
    if not units:
        return
    data = require("ray.data", "label")
    rows = [{"unit": pickle.dumps(unit)} for unit in units]
    stream = data.from_items(rows, override_num_blocks=min(len(rows), READ_TASKS))
    ray = require("ray", "label")
    machines = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    plan = plan_actors(recipe, ray.cluster_resources(), machines)
    # As many units are under way as there are processes to feed, however many CPUs could read.
    stream = stream.flat_map(
        Read(recipe.run.batch_size, tuple(sys.path)),
        num_cpus=LIGHT,
        concurrency=min(readers(plan), len(rows)),
    )
    for actors in plan:
        stream = stream.map(
            OnRows,
            fn_constructor_args=(pickle.dumps(actors.steps), tuple(sys.path)),
            compute=data.ActorPoolStrategy(
                size=actors.processes,
                max_tasks_in_flight_per_actor=2 * int(actors.resources.get("max_concurrency", 1)),
            ),
            max_restarts=-1,
            max_task_retries=RETRIES_ON_CLUSTER if recipe.run.address else RETRIES_HERE,
            **actors.resources,
        )
    for row in stream.iter_rows():
        batch = pickle.loads(row["batch"])
        if isinstance(batch, Trouble):
            raise batch.error()
        yield batch


@contextmanager
def writers(folder: Path, recipe: LabelRecipe) -> Iterator[Write]:
    """A function that has units written by tasks; it waits where they fall behind, in the end for all.

    Args:
        folder: The run's folder.
        recipe: What is written, and by how many tasks at a time.

    Raises:
        UserError: If the raw detections, or the input as a whole, cannot be read any more.
        RunError: If a writer fails for another reason, such as a full disk.
    """
    ray = require("ray", "label")
    # Tasks, not actors: a machine that dies takes an actor's calls with it, a task is run again elsewhere.
    task = ray.remote(num_cpus=0, max_retries=3)(write_unit_or_tell)
    writing: list[Any] = []

    def wait_for(most: int) -> None:
        while len(writing) > most:
            done, writing[:] = ray.wait(writing, num_returns=1)
            for trouble in ray.get(done):
                if trouble is not None:
                    raise trouble.error()

    def write(unit: Unit, batches: Sequence[Batch] | None) -> None:
        wait_for(recipe.run.writers - 1)
        writing.append(task.remote(tuple(sys.path), folder, recipe, unit, batches))

    try:
        yield write
        wait_for(0)
    except Exception:
        # On a cluster that lives on they would still write when this folder is free for another run.
        if writing:
            ray.wait(writing, num_returns=len(writing), timeout=LAST_WRITERS)
        raise


# --- how many processes, and what each may use -----------------------------------------------------


def plan_actors(
    recipe: LabelRecipe, cluster: dict[str, float], machines: Sequence[float] = ()
) -> list[Actors]:
    """The actors of all stages, in order, with what each needs of a cluster of so many CPUs and GPUs.

    All of them run at the same time, so together they must not ask for more than there is, nor one of them
    for more than its machine has: a stage that waits for its place would stop the run once the stages before
    it have filled the memory.

    Args:
        recipe: The run.
        cluster: `CPU` and `GPU` of all machines together.
        machines: CPUs of each; empty for a single one.

    Raises:
        UserError: If more GPUs are asked for than this machine has.
    """
    run = recipe.run
    has_model = recipe.caption.kind not in ("given", "server")
    captioners = run.captioners if has_model else 0
    light, heavy, detectors, decoders = _share_cluster(run, cluster, machines, captioners)
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
    if device == "cuda":  # one that looks again wants pictures as they are
        alone = recipe.cycle_weights in ("", OWN)
        first.append(Actors(((DecodeStage, (recipe.detect if alone else None,)),), decoders, light))
        heavy = heavy | {"max_concurrency": 2}  # one batch is unpacked while the other is on the GPU
    return [*first, Actors((detect,), detectors, heavy)]


def readers(plan: Sequence[Actors]) -> int:
    """Units that are read at a time: their batches wait in memory until all of a unit are there.

    A reader gives hundreds of pictures a second, over a network some tens. A detector on a GPU asks for as
    many; one on a CPU for some, and each process more takes seconds of the cores at the start.
    """
    detectors = plan[-1]
    if detectors.resources.get("num_gpus"):
        return 1 + detectors.processes
    return math.ceil(detectors.processes / DETECTORS_OF_A_READER)


def _share_cluster(
    run: LabelRunConfig, cluster: dict[str, float], machines: Sequence[float], captioners: int
) -> tuple[dict[str, float], dict[str, float], int, int]:
    """What a light actor asks for, and a detector as each of so many captioners; how many detectors.

    And how many processes decode for them, if they run on GPUs: half of the CPUs, at most eight each.
    """
    cpus, gpus = cluster.get("CPU", 1), cluster.get("GPU", 0)
    on_gpus = run.gpus_per_actor > 0 or (run.gpus_per_actor < 0 and gpus > 0)
    each = run.gpus_per_actor if run.gpus_per_actor > 0 else 1
    detectors = run.detectors or max(1, int(gpus / each if on_gpus else cpus) - captioners)
    decoders = max(1, min(int(cpus / 2), DECODERS * detectors)) if on_gpus else 0
    others = run.captioners + run.phrasers + decoders
    light = _round_down(min(LIGHT, cpus / 2 / (others + detectors)))
    actors = captioners + detectors
    if not on_gpus:
        taken = light * others
        left = cpus - taken - max(LIGHT, 0.05 * cpus)  # reading finds a place too
        # A machine has at least half of itself left: the light ones cannot fill more of all machines.
        of_each = [max(own / 2, own - taken - max(LIGHT, 0.05 * own)) for own in machines or (cpus,)]
        share = min(left / actors, _largest_share(of_each, actors))
        return {"num_cpus": light}, {"num_cpus": _round_down(share)}, detectors, 0
    if run.gpus_per_actor < 0:  # where there are too few, so many on one that all find a place
        each = _round_down(1 / math.ceil(actors / gpus))
    elif actors * each > gpus and not run.address:  # a cluster may grow
        raise UserError(
            f"{captioners} captioners and {detectors} detectors of run.gpus_per_actor {each:g} need "
            f"{actors * each:g} GPUs; this machine has {gpus:g}: ask for less of one, or for fewer actors"
        )
    return {"num_cpus": light}, {"num_cpus": light, "num_gpus": each}, detectors, decoders


def _largest_share(machines: Sequence[float], actors: int) -> float:
    """CPUs of each actor, as many as can be so that all find a place on machines of so many each."""
    shares = {cpus / count for cpus in set(machines) for count in range(1, actors + 1)}
    # Shares are of machines, so one that fits to a hair fits.
    fitting = (s for s in shares if sum(int(cpus / s + 1e-9) for cpus in machines if s > 0) >= actors)
    return max(fitting, default=0.0)


def _round_down(share: float) -> float:
    """To what Ray counts in: it would round up, and the last actor would find no place."""
    return int(share * RAY_UNITS) / RAY_UNITS
