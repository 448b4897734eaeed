"""Memory of the loader over epochs: python -m benchmarks.loader_memory

Photos from shards, by index and through the cache of remote shards, two workers: proportional memory of the
training process and of each worker at the end of each epoch, as a table and a plot. Shared pages count in
equal parts, so that forked workers' copies are seen and what they merely inherit is not counted thrice.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure

from benchmarks.loader import CANVAS, NoTokenizer
from benchmarks.timing import OUTPUT, verdict, write_json
from open_cloc.data.collate import LoaderConfig
from open_cloc.data.loader import RegionLoader
from open_cloc.data.mixture import Mixture
from open_cloc.data.readers import open_reader
from open_cloc.data.shards.read import ShardDataset
from open_cloc.data.shards.remote import open_shards
from open_cloc.data.shards.write import write_shards

BATCH = 16
AIM = 0.02  # growth from the middle epoch to the last: by then buffers have found their size


@dataclass
class Options:
    """Attributes:
    shared: Folder that holds coco128/.
    epochs: How many.
    workers: Loader workers.
    """

    shared: Path = Path("../shared/data")
    epochs: int = 40
    workers: int = 2


def proportional_memory(pid: int) -> float:
    """Proportional set size of a process in MB, from the kernel."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no Pss of process {pid}")


def measure(options: Options, folder: Path) -> np.ndarray:
    """MB by epoch: (epochs, 1 + workers)."""
    photos = open_reader(f"coco:{options.shared / 'coco128'}")
    write_shards((photos[i] for i in range(len(photos))), folder / "shards", samples_per_shard=32)
    local = ShardDataset(str(folder / "shards"))
    cached = open_shards(f"file://{folder}/shards", folder / "cache")
    config = LoaderConfig(num_regions=4, workers=options.workers, shuffle_shards=2)
    data = Mixture([local, cached], [1, 1])
    batches = len(data) // BATCH
    used = []
    total = options.epochs * len(data)
    loader = RegionLoader(data, CANVAS, NoTokenizer(), config, batch_size=BATCH, num_samples=total)
    for number, _ in enumerate(loader):
        if (number + 1) % batches == 0:
            pids = [os.getpid(), *sorted(p.pid for p in multiprocessing.active_children() if p.pid)]
            used.append([proportional_memory(pid) for pid in pids])
    return np.array(used)


def plot(used: np.ndarray, path: Path) -> None:
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for column, values in enumerate(used.T):
        name = f"worker {column}" if column else "training process"
        axes.plot(range(1, len(values) + 1), values, marker="o", label=name)
    axes.set(xlabel="epoch", ylabel="MB (proportional)", ylim=(0, used.max() * 1.1))
    axes.legend()
    figure.savefig(path)


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        used = measure(options, Path(folder))
    print("epoch  MB of the training process and of each worker")
    for epoch, row in enumerate(used, 1):
        print(f"{epoch:5d}  " + "  ".join(f"{value:8.1f}" for value in row))
    total = used.sum(1)
    growth = float(total[-1] / total[len(total) // 2] - 1)
    aims = [verdict("loader memory, growth from the middle epoch to the last", growth, AIM)]
    path = write_json("loader_memory", {"MB": json.loads(json.dumps(used.tolist())), "aims": aims})
    plot(used, OUTPUT / "loader_memory.png")
    print(path)


if __name__ == "__main__":
    main()
