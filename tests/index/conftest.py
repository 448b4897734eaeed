"""What the tests of the index share: a tiny model, pictures of noise with boxes, an index of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from open_cloc.index.region_index import RegionIndex
from open_cloc.inference.predictor import Predictor
from tests.index.made import samples
from tests.tiny import tiny_model

pytest.importorskip("lancedb", reason="lancedb is not installed")


@pytest.fixture(scope="session")
def predictor() -> Predictor:
    return Predictor(tiny_model())


@pytest.fixture(scope="module")
def index(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> RegionIndex:
    """Twelve pictures with their labels and a grid; nobody may add to it."""
    place = tmp_path_factory.mktemp("index") / "photos.index"
    made = RegionIndex.build(place, predictor, columns={"year": "number", "order": "text", "Kept": "bool"})
    made.add(samples(12), "labels", "grid:20")
    return made


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of four pictures."""
    from PIL import Image

    from tests.tiny import picture

    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        Image.fromarray(picture(seed=number)).save(folder / f"{number}.png")
    return folder
