"""Small samples and tars, as the tests of shards need them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from open_cloc.data.shards.read import ShardDataset
from open_cloc.samples import Region, RegionSample


def encoded(kind: str, size: tuple[int, int] = (20, 10), colour: int = 90) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (colour, 20, 30)).save(buffer, kind)
    return buffer.getvalue()


def samples(count: int = 5) -> list[RegionSample]:
    labelled = Region((0.1, 0.2, 0.5, 1.0), "a “red” mug", 0.25, "owlv2", span=(0, 7), cycle=-0.5)
    regions = (labelled, Region((0, 0, 1, 1), "all"))
    made = []
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 255, (8 + i, 12, 3), dtype=np.uint8)
        image = pixels if i % 2 else encoded("JPEG", colour=i)
        captions = (f"caption {i}", "second") if i != 3 else ()
        made.append(
            RegionSample(f"k{i}", image, captions, regions[: i % 3], {"url": f"http://x/{i}", "n": [i]})
        )
    return made


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def tar_of(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def shard_of(path: Path, document: Any, caption: str = "a red mug on a table") -> ShardDataset:
    members = [
        ("a.jpg", encoded("JPEG")),
        ("a.txt", caption.encode()),
        ("a.json", json.dumps(document).encode()),
    ]
    return ShardDataset(str(tar_of(path, members)))


def keys_of(dataset: ShardDataset) -> list[str]:
    return [dataset.key(index) for index in range(len(dataset))]
