"""A tiny checkpoint of each architecture."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.labelling.detectors.made import make_all


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_all(tmp_path_factory.mktemp("detectors"))
