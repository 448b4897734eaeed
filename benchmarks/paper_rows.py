"""The paper's table in small: python -m benchmarks.paper_rows [--samples 25600] [--seeds 3] [--output FOLDER]

CLIP and CLOC and each ablation of its table, trained from scratch on the same generated scenes, with the same
steps and seeds, and measured on unseen ones by the paper's protocol. Only a share of the training scenes has
regions (15 %, as 300M of 2B pictures have in rows 8 to 12); row 13 has them for all.

Runs that are done are kept: the command goes on where it was stopped. Row 15, n-grams of captions in place of
VESL, is `benchmarks.pseudo_labels`.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tqdm import tqdm

from benchmarks.timing import write_json
from open_cloc.data.scenes.dataset import SceneDataset
from open_cloc.data.scenes.vocabulary import SceneConfig, vocabulary
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.run import evaluate
from open_cloc.files import read_json
from open_cloc.files import write_json as write_file
from open_cloc.memory import keep_freed_memory
from open_cloc.model.load import load_model
from open_cloc.objectives import Term
from open_cloc.samples import RegionSample
from open_cloc.training.loop import train
from open_cloc.training.recipe import Recipe
from open_cloc.training.recipes import scenes_cloc
from open_cloc.training.run_folder import FINAL_FOLDER

SHARE = 0.15
M = 4
# 95 % of Student's t for so many seeds, less one.
STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
METRICS = (
    "region mAcc",
    "region-to-text R@10",
    "text-to-region R@10",
    "image-to-text R@1",
    "text-to-image R@1",
)
BY_POINT = "region mAcc by a point"  # asked for by the middle of the box alone


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: What it is.
        change: Makes its recipe of row 8's.
        share: Share of the training scenes that have regions.
        method: How its regions are embedded.
        against: Row from which its differences are told.
    """

    name: str
    change: Callable[[Recipe], Recipe] = lambda recipe: recipe
    share: float = SHARE
    method: str = "prompter"
    against: str = "8"


def prompter(**changes: Any) -> Callable[[Recipe], Recipe]:
    """Another Prompter."""

    def change(recipe: Recipe) -> Recipe:
        own = replace(recipe.model.prompter, **changes)
        return replace(recipe, model=replace(recipe.model, prompter=own))

    return change


def regions(number: int) -> Callable[[Recipe], Recipe]:
    """Another number of regions of an image."""

    def change(recipe: Recipe) -> Recipe:
        loader = replace(recipe.data.loader, num_regions=number)
        return replace(recipe, data=replace(recipe.data, loader=loader))

    return change


def points(share: float) -> Callable[[Recipe], Recipe]:
    """Points in place of a share of the boxes."""

    def change(recipe: Recipe) -> Recipe:
        loader = replace(recipe.data.loader, points=share)
        return replace(recipe, data=replace(recipe.data, loader=loader))

    return change


def terms(*objectives: Term) -> Callable[[Recipe], Recipe]:
    """Other objectives."""
    return lambda recipe: replace(recipe, objectives=objectives)


IMAGE, REGION = Term("image_text"), Term("region_text")
GROUNDING = Term("grounding", options={"form": "l1_giou"})
UNFILTERED = Term("region_text", options={"conflict_threshold": 1.1})
EQUAL_TEXTS = Term("region_text", options={"conflict_threshold": 0.9999})  # cosine of a text with itself
ROWS = {
    "2": Row("CLIP, same scenes; regions by RoIAlign", regions(0), method="roialign"),
    "8": Row("CLOC, regions of 15 % of the scenes"),
    "8-mean": Row("... the paper's read-out", prompter(readout="mean")),
    "8-mean-plain": Row(
        "... without a box prior",
        prompter(readout="mean", box_prior=False, box_content="code", patch_positions=False),
    ),
    "8-no-prior": Row("... row 8 without a box prior", prompter(box_prior=False, box_content="code")),
    "9": Row("... RoIAlign instead of the Prompter", prompter(regions="roialign")),
    "10": Row("... without the conflict filter", terms(IMAGE, UNFILTERED, GROUNDING)),
    "10-equal": Row("... filter of equal texts alone", terms(IMAGE, EQUAL_TEXTS, GROUNDING)),
    "11": Row("... without grounding loss", terms(IMAGE, REGION)),
    "12": Row("... M = 2", regions(2)),
    "8-points": Row("... 30 % of the regions asked for by points", points(0.3)),
    "13": Row("CLOC, regions of all scenes", share=1.0),
    "13-roialign": Row(
        "... RoIAlign instead of the Prompter", prompter(regions="roialign"), 1.0, against="13"
    ),
}


@dataclass
class Options:
    """Attributes:
    samples: Scenes that each model sees.
    seeds: Of scenes, starting weights and draws: 0, 1, ...
    rows: Which rows; all by default.
    scenes: Unseen scenes that are measured on.
    output: Folder of the runs and of `paper_rows.json`.
    processes: Trainings at a time; 0 takes one a core.
    one: Train and measure one row of one seed alone, as ROW:SEED; for the command's own use.
    """

    samples: int = 25_600
    seeds: int = 3
    rows: tuple[str, ...] = tuple(ROWS)
    scenes: int = 1000
    output: Path = Path("runs/paper_rows")
    processes: int = 0
    one: str = ""


class PartlyLabelled:
    """Scenes of which a share keeps its regions; the others are pictures with captions.

    Args:
        scenes: All of them.
        share: That keeps its regions, the same scenes every time.
        seed: Which ones.
    """

    def __init__(self, scenes: SceneDataset, share: float, seed: int) -> None:
        self.scenes = scenes
        self.kept = np.random.default_rng((seed, 15)).random(len(scenes)) < share

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> RegionSample:
        sample = self.scenes[index]
        return sample if self.kept[index] else replace(sample, regions=())


def recipe_of(options: Options, row: Row, seed: int, folder: Path) -> Recipe:
    """The demo's CLOC with M regions, changed as the row says."""
    recipe = regions(M)(scenes_cloc())
    run = replace(recipe.run, samples=options.samples, seed=seed, output=str(folder), progress=False)
    return row.change(replace(recipe, run=run))


def train_and_measure(options: Options, name: str, seed: int) -> None:
    """One row of one seed; writes its numbers."""
    row, folder = ROWS[name], options.output / name / str(seed)
    config = SceneConfig(seed=seed)
    if not (folder / FINAL_FOLDER).is_dir():
        scenes = PartlyLabelled(SceneDataset(config, "train", options.samples), row.share, seed)
        train(recipe_of(options, row, seed, folder), "auto", dataset=scenes)
    test = SceneDataset(config, "test", options.scenes)
    model, classes = load_model(folder / FINAL_FOLDER), tuple(sorted(set(vocabulary(config).phrases)))

    def measured(task: str, method: str) -> Mapping[str, float]:
        own = EvaluationConfig(protocol="cloc", classes=classes if "classification" in task else ())
        return evaluate(model, test, task, own, method=method)["metrics"]

    named = measured("zeroshot_region_classification", row.method)
    found = measured("region_retrieval", row.method)
    images = measured("zeroshot_retrieval", "prompter")
    values = (
        named["mean_per_class_recall"],
        found["region_to_text_recall@10"],
        found["text_to_region_recall@10"],
        images["text_retrieval_recall@1"],
        images["image_retrieval_recall@1"],
    )
    found_values = dict(zip(METRICS, values, strict=True))
    if row.method == "prompter":
        by_point = measured("zeroshot_region_classification", "prompter,prompt=points")
        found_values[BY_POINT] = by_point["mean_per_class_recall"]
    write_file(options.output / f"{name}-{seed}.json", found_values)


def run_all(options: Options) -> None:
    """Every row and seed that is not done, some at a time, each on a core of its own."""
    todo = [
        (name, seed)
        for seed in range(options.seeds)
        for name in options.rows
        if not (options.output / f"{name}-{seed}.json").is_file()
    ]
    options.output.mkdir(parents=True, exist_ok=True)

    def start(job: tuple[str, int]) -> None:
        name, seed = job
        command = [sys.executable, "-m", "benchmarks.paper_rows", "--one", f"{name}:{seed}"]
        command += ["--samples", str(options.samples), "--scenes", str(options.scenes)]
        with (options.output / f"{name}-{seed}.log").open("w") as log:
            done = subprocess.run(
                [*command, "--output", str(options.output)],
                env=os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        if done.returncode:
            raise SystemExit(f"row {name} of seed {seed} failed; see {log.name}")

    with ThreadPoolExecutor(options.processes or os.cpu_count() or 1) as pool:
        list(tqdm(pool.map(start, todo), total=len(todo), desc="runs"))


def interval(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean over seeds."""
    if len(values) < 2:
        return float("nan")
    return STUDENT[min(len(values) - 1, 9)] * statistics.stdev(values) / len(values) ** 0.5


def table(found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Means with intervals; below each row, its difference to the row that it changes, paired by seed."""
    metrics = (*METRICS, BY_POINT)
    lines = ["| row | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for name, row in found.items():
        cells = [_cell(row.get(m, ())) for m in metrics]
        lines.append(f"| {name}: {ROWS[name].name} | " + " | ".join(cells) + " |")
        against = ROWS[name].against
        if against in found and name != against:
            both = {m: (row.get(m, ()), found[against].get(m, ())) for m in metrics}
            cells = [_cell([a - b for a, b in zip(*values)], "+") for values in both.values()]
            lines.append(f"| less row {against} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float], sign: str = "") -> str:
    return f"{statistics.mean(values):{sign}.3f} +- {interval(values):.3f}" if values else "-"


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    keep_freed_memory()
    if options.one:
        name, _, seed = options.one.partition(":")
        train_and_measure(options, name, int(seed))
        return
    run_all(options)
    found = {}
    for name in options.rows:
        results = [read_json(options.output / f"{name}-{seed}.json") for seed in range(options.seeds)]
        found[name] = {metric: [result[metric] for result in results] for metric in results[0]}
    print(table(found))
    print(write_json("paper_rows", {"samples": options.samples, "seeds": options.seeds, "rows": found}))


if __name__ == "__main__":
    main()
