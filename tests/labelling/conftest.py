"""One Ray cluster for the tests that need it, and one finished run for all tests of labelling."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from open_cloc.labelling import pipeline
from open_cloc.labelling.output import write_unit
from open_cloc.labelling.pipeline import label
from open_cloc.labelling.recipe import LabelRecipe
from open_cloc.labelling.source import read_batches
from open_cloc.labelling.stages import CaptionStage, DetectStage, PhraseStage
from open_cloc.labelling.types import Batch, Unit
from tests.labelling.made import (
    COUNT,
    Labelled,
    captions_only,
    recipe,
)


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One Ray cluster for all tests that need one."""
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    _start(ray)
    yield
    ray.shutdown()


@pytest.fixture
def cluster_renewed(cluster: None) -> Iterator[None]:
    """The same, and a new one afterwards.

    Of an actor that dies again and again one more life may outlast its run, and with it the CPUs it has.
    """
    ray = pytest.importorskip("ray")
    yield
    ray.shutdown()
    _start(ray)


def _start(ray: Any) -> None:
    # `local`: else Ray joins whatever cluster is up on this machine, another test's or another person's.
    ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    """A run in this process: what Ray makes must equal it."""
    folder = tmp_path_factory.mktemp("labelled")
    source, scenes = captions_only(folder / "in")
    with pytest.MonkeyPatch.context() as patch:
        _stay_here(patch)
        counts = label(recipe(folder), source, folder / "out").counts
    assert counts["pictures"] == counts["written"] == COUNT
    return Labelled(source, scenes, folder, folder / "out")


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """All stages and writers in this process, one after the other."""
    _stay_here(monkeypatch)


def _stay_here(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pipeline, "connected", lambda address: nullcontext())
    patch.setattr(pipeline, "labelled_batches", batches_in_turn)
    patch.setattr(pipeline, "writers", writes_in_turn)


def batches_in_turn(units: Sequence[Unit], recipe: LabelRecipe) -> Iterator[Batch]:
    stages: list[Any] = [
        CaptionStage(recipe.caption, "cpu"),
        PhraseStage(recipe.phrases),
        DetectStage(recipe.detect, recipe.cycle_weights, "cpu"),
    ]
    for unit in units:
        for batch in read_batches(unit, recipe.run.batch_size):
            for stage in stages:
                batch = stage(batch)
            yield batch


@contextmanager
def writes_in_turn(folder: Path, recipe: LabelRecipe) -> Iterator[Callable[..., None]]:
    yield lambda unit, batches: write_unit(folder, recipe, unit, batches)
