"""How fast pictures become batches: `python -m benchmarks.loader --shared ../shared/data`.

Decode and transform, images/s of one core: open_clip's transform, long side resized and padded as ours, from
the original files, ours from the same files, and ours from shards written near training size, one after the
other in each round. Then what a whole
loader with its worker processes gives, and how fast tars are read without decoding, against webdataset.
Times are CPU times of one thread where one core is meant, wall times else; the best and the median of the
rounds are reported. Writes runs/bench/loader.json.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import webdataset
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transform import image_transform
from PIL import Image

from benchmarks.timing import verdict, write_json
from open_cloc.canvas import CanvasConfig, Geometry
from open_cloc.data.annotations import SampleDataset
from open_cloc.data.collate import LoaderConfig
from open_cloc.data.loader import RegionLoader
from open_cloc.data.readers import open_reader
from open_cloc.data.shards.read import ShardDataset
from open_cloc.data.shards.write import write_shards
from open_cloc.texts import TextCleaning

IMAGE_SIZE = 224
AIMS = {
    "ours, originals": 1.7,
    "ours, max side 256": 3.0,
    "ours, max side 224": 3.0,
}  # x open_clip, originals
BASELINE = "open_clip, originals"


CANVAS = CanvasConfig((IMAGE_SIZE, IMAGE_SIZE))


class NoTokenizer:
    """Texts cost nothing here but their cleaning."""

    clean = TextCleaning()

    def __call__(self, texts: list[str]) -> torch.Tensor:
        return torch.zeros(len(texts), 1, dtype=torch.int64)

    def lengths(self, token_ids: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(token_ids), dtype=torch.int64)


def read_all(dataset: SampleDataset) -> list[bytes]:
    """Encoded pictures, in memory."""
    images = [dataset[index].image for index in range(len(dataset))]
    return [image if isinstance(image, bytes) else Path(str(image)).read_bytes() for image in images]


def theirs(images: list[bytes]) -> None:
    """open_clip's evaluation transform onto the same canvas: decoded, resized, padded, normalised float."""
    transform = image_transform(IMAGE_SIZE, is_train=False, resize_mode="longest", fill_color=CANVAS.fill)
    for encoded in images:
        transform(Image.open(io.BytesIO(encoded)).convert("RGB"))  # it pads before it converts grey pictures


def ours(samples: list) -> None:
    """Our canvas, and the normalising that the model does on its device: the same floats within 1/255."""
    canvas = CANVAS
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    for start in range(0, len(samples), 32):
        images = []
        for sample in samples[start : start + 32]:
            pixels = sample.pixels()
            geometry = Geometry.fit(pixels.shape[:2], canvas.image_size, canvas.resize_mode)
            images.append(geometry.draw(pixels, canvas.fill, canvas.interpolation))
        batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        batch.float().div_(255).sub_(mean).div_(std)


def in_memory(dataset: SampleDataset) -> list:
    """Samples with their encoded pictures."""
    samples = [dataset[index] for index in range(len(dataset))]
    return [type(s)(s.key, encoded, s.captions, s.regions) for s, encoded in zip(samples, read_all(dataset))]


def rounds(
    tasks: dict[str, tuple[Callable[[], object], int]], num_rounds: int, clock: Callable[[], float]
) -> dict[str, dict[str, float]]:
    """Run every task once a round; items/s at the best and at the median time.

    Args:
        tasks: Name -> what to do, and how many items that are.
        num_rounds: At least 1.
        clock: CPU or wall time.
    """
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(num_rounds):
        for name, (task, _) in tasks.items():
            start = clock()
            task()
            times[name].append(clock() - start)
    return {
        name: {
            "best_per_s": round(tasks[name][1] / min(seconds), 1),
            "median_per_s": round(tasks[name][1] / statistics.median(seconds), 1),
        }
        for name, seconds in times.items()
    }


def per_core(sets: dict[str, SampleDataset], num_rounds: int) -> dict[str, dict[str, float]]:
    """Decode and transform on one core, and the ratio to open_clip from the originals."""
    tasks: dict[str, tuple[Callable[[], object], int]] = {}
    for name, dataset in sets.items():
        samples, images = in_memory(dataset), read_all(dataset)
        tasks[f"open_clip, {name}"] = (partial(theirs, images), len(images))
        tasks[f"ours, {name}"] = (partial(ours, samples), len(samples))
    measured = rounds(tasks, num_rounds, time.process_time)
    for row in measured.values():
        row["ratio"] = round(row["median_per_s"] / measured[BASELINE]["median_per_s"], 2)
        row["best_ratio"] = round(row["best_per_s"] / measured[BASELINE]["best_per_s"], 2)
    return measured


def whole_loader(
    sets: dict[str, SampleDataset], num_rounds: int, workers: int, clock: Callable[[], float]
) -> dict[str, dict[str, float]]:
    """Batches of a `RegionLoader`, reading and collating included, and the start of the workers."""
    config = LoaderConfig(workers=workers)
    num_samples = 512

    def run(dataset: SampleDataset) -> None:
        loader = RegionLoader(dataset, CANVAS, NoTokenizer(), config, batch_size=32, num_samples=num_samples)
        for _ in loader:
            pass

    tasks = {name: (lambda dataset=dataset: run(dataset), num_samples) for name, dataset in sets.items()}
    return rounds(tasks, num_rounds, clock)  # type: ignore[arg-type]


def tar_reading(folder: Path, num_rounds: int) -> dict[str, dict[str, float]]:
    """Samples/s out of tars, pictures left encoded: ours parses and checks the regions too."""
    dataset = ShardDataset(str(folder))
    urls = [str(path) for path in dataset.paths]
    repeats = 10

    def theirs_read() -> None:
        for _ in range(repeats):
            for _ in webdataset.WebDataset(urls, shardshuffle=False):
                pass

    def ours_read() -> None:
        for index in list(range(len(dataset))) * repeats:
            dataset.raw(index)

    count = len(dataset) * repeats
    return rounds(
        {"webdataset": (theirs_read, count), "ours, raw samples": (ours_read, count)},
        num_rounds,
        time.process_time,
    )


def table(title: str, measured: dict[str, dict[str, float]]) -> str:
    """Names and numbers in columns."""
    columns = list(next(iter(measured.values())))
    lines = [title, f"{'':24s}" + "".join(f"{column:>14s}" for column in columns)]
    lines += [
        f"{name:24s}" + "".join(f"{row[column]:14.2f}" for column in columns)
        for name, row in measured.items()
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, required=True, help="folder that holds coco128/")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="of the whole loader")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*worker.*")

    with tempfile.TemporaryDirectory() as scratch:
        originals = open_reader(f"coco:{args.shared}/coco128")
        sets: dict[str, SampleDataset] = {"originals": originals}
        for max_side in (256, 224):
            folder = Path(scratch) / str(max_side)
            write_shards((originals[i] for i in range(len(originals))), folder, 64, max_side=max_side)
            sets[f"max side {max_side}"] = ShardDataset(str(folder))
        results = {
            "per_core": per_core(sets, args.rounds),
            "loader_one_core": whole_loader(sets, args.rounds, 0, time.process_time),
            "loader_workers": whole_loader(sets, args.rounds, args.workers, time.perf_counter),
            "tar_reading": tar_reading(Path(scratch) / "256", args.rounds),
        }
    print(table("decode and transform, images/s of one core", results["per_core"]))
    print(table("whole loader, images/s of one core", results["loader_one_core"]))
    print(table(f"whole loader, {args.workers} workers, images/s", results["loader_workers"]))
    print(table("tar reading, samples/s of one core", results["tar_reading"]))
    aims = [
        verdict(
            f"decode and transform, {name}, over open_clip",
            results["per_core"][name]["ratio"],
            aim,
            least=True,
        )
        for name, aim in AIMS.items()
    ]
    print(write_json("loader", {"image_size": IMAGE_SIZE, "rounds": args.rounds, **results, "aims": aims}))


if __name__ == "__main__":
    main()
