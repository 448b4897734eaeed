"""One Ray cluster and one finished run for all tests of labelling."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from open_cloc.labelling.pipeline import label
from tests.labelling.made import (
    COUNT,
    Labelled,
    captions_only,
    recipe,
)


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One Ray cluster for all tests of labelling."""
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def labelled(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    folder = tmp_path_factory.mktemp("labelled")
    source, scenes = captions_only(folder / "in")
    counts = label(recipe(folder), source, folder / "out").counts
    assert counts["pictures"] == counts["written"] == COUNT
    return Labelled(source, scenes, folder, folder / "out")
