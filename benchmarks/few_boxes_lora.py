"""Few boxes, and image towers that learn from them too: python -m benchmarks.few_boxes_lora --split val

For each number of boxes the projections and the Prompter learn on the frozen towers, as in
`benchmarks.few_boxes`. Then the recipe goes on with the same boxes, once with the towers locked and once with
LoRA adapters in the image tower: what adapters buy is the difference. About 15 minutes a size on one core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

from benchmarks.few_boxes import Cache, accuracy, build_cache, pictures_of_runs, recipe
from benchmarks.few_boxes import train as train_on_features
from benchmarks.timing import print_table, write_json
from open_cloc.memory import keep_freed_memory
from open_cloc.model.cloc import CLOC
from open_cloc.model.create import build_model
from open_cloc.model.load import load_model
from open_cloc.samples import RegionSample
from open_cloc.training.loop import train
from open_cloc.training.recipe import Recipe
from open_cloc.training.run_folder import FINAL_FOLDER

READ_BY = "prompt + prior, no code, pooled, layer drop"
BATCH = 8


@dataclass
class Options:
    """Attributes:
    shared: Folder that holds `coco128` and `stamps`.
    split: Where accuracy is measured: `dev` to choose, `val` to report.
    sizes: Numbers of training boxes.
    rank: Of the adapters.
    lr: Learning rate of both arms.
    steps: Updates of both arms, of eight pictures.
    seed: Of starting weights and draws.
    output: Folder of the models.
    """

    shared: Path = Path("../shared/data")
    split: str = "dev"
    sizes: tuple[int, ...] = (100, 300, 1000)
    rank: int = 16
    lr: float = 3e-4
    steps: int = 60
    seed: int = 0
    output: Path = Path("runs/few_boxes_lora")


class FirstBoxes:
    """As many of the first pictures as hold so many boxes, over and over.

    Args:
        samples: Pictures.
        num_boxes: Boxes that are kept, those of the first pictures.
        length: Of the data set.
    """

    def __init__(self, samples: Sequence[RegionSample], num_boxes: int, length: int) -> None:
        self.length, self.samples = length, []
        for sample in samples:
            if num_boxes > 0:
                self.samples.append(replace(sample, regions=sample.regions[:num_boxes]))
            num_boxes -= len(sample.regions)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> RegionSample:
        return self.samples[index % len(self.samples)]


def recipe_of(options: Options, start: Path, output: Path, rank: int) -> Recipe:
    """The recipe, going on from a model, with the image tower locked or with adapters."""
    base = recipe()
    run = replace(
        base.run,
        samples=options.steps * BATCH,
        global_batch_size=BATCH,
        seed=options.seed,
        output=str(output),
    )
    return replace(
        base,
        model=replace(base.model, towers=f"folder:{start}"),
        data=replace(base.data, loader=replace(base.data.loader, workers=0)),
        optim=replace(base.optim, lr=options.lr, warmup=5, lora_rank=rank, lock_image=not rank),
        run=run,
    )


def main(options: Options) -> None:
    """Print and write micro accuracy of unseen phrases and of unseen photos, before and after both arms."""
    keep_freed_memory()
    torch.manual_seed(0)
    towers = build_model(recipe().model).eval()
    samples, sets = pictures_of_runs(options.shared, options.split, max(options.sizes))
    frozen = {name: build_cache(towers, those) for name, those in sets.items()}
    cache = build_cache(towers, samples)
    rows: dict[str, dict[str, float]] = {}
    for size in options.sizes:
        folder = options.output / str(size)
        first = train_on_features(READ_BY, cache.first(size), 100, options.seed)
        first.save_pretrained(folder / "start")
        rows[f"{size} boxes: frozen towers"] = _measured(first, frozen, READ_BY)
        for name, rank in (("locked", 0), ("adapters", options.rank)):
            if not (folder / name / FINAL_FOLDER).is_dir():
                going_on = recipe_of(options, folder / "start", folder / name, rank)
                data = FirstBoxes(samples, size, going_on.run.samples)
                train(going_on, "auto", dataset=data)
            model = load_model(folder / name / FINAL_FOLDER, "cpu")
            caches = {k: build_cache(model, v) for k, v in sets.items()} if rank else frozen
            rows[f"{size} boxes: on, {name}"] = _measured(model, caches, READ_BY)
        print_table(rows)
    result = {"split": options.split, "rank": options.rank, "lr": options.lr, "steps": options.steps}
    print(write_json("few_boxes_lora", result | {"rows": rows}))


def _measured(model: CLOC, caches: dict[str, Cache], method: str) -> dict[str, float]:
    return {name: accuracy(model, cache, method)[0] for name, cache in caches.items()}


if __name__ == "__main__":
    main(tyro.cli(Options))
