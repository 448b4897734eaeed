from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from open_cloc.inference.predictor import Predictor
from tests.tiny import picture, tiny_model

pytest.importorskip("fastapi", reason="the extra serve is not installed")


def png(pixels: np.ndarray) -> bytes:
    """A picture's file."""
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


def text_of(encoded: bytes) -> str:
    """As JSON carries it."""
    return base64.b64encode(encoded).decode()


@pytest.fixture(scope="session")
def predictor() -> Predictor:
    return Predictor(tiny_model())


@pytest.fixture(scope="session")
def photo() -> bytes:
    return png(picture())


@pytest.fixture
def client(predictor: Predictor) -> Iterator[Any]:
    from fastapi.testclient import TestClient

    from open_cloc.server.app import create_app

    with TestClient(create_app(predictor, name="tiny"), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="session")
def searched(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An index of twelve pictures with two boxes each."""
    pytest.importorskip("lancedb", reason="the extra index is not installed")
    from open_cloc.index.region_index import RegionIndex
    from open_cloc.samples import Region, RegionSample

    folder = tmp_path_factory.mktemp("photos")
    samples = []
    for number in range(12):
        path = folder / f"{number}.png"
        path.write_bytes(png(picture(seed=number)))
        regions = (Region((0.1, 0.1, 0.5, 0.6), f"thing {number}"), Region((0.5, 0.4, 1, 1), "other"))
        samples.append(RegionSample(f"photo-{number}", Path(path), (f"photo {number}",), regions))
    index = RegionIndex.build(tmp_path_factory.mktemp("index") / "index", predictor)
    index.add(samples)
    return index
