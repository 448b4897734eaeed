"""`open-cloc demo`: CLIP and CLOC from scratch on the same generated scenes, compared on unseen ones.

Both have the same towers, see the same scenes in the same order and take the same number of steps. They train
side by side, each on half of the cores; where there is a GPU, on that, and the cores draw scenes. Nothing is
downloaded.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from open_cloc.boxes import normalize_boxes
from open_cloc.cli.parse import parse
from open_cloc.cli.screen import say
from open_cloc.data.scenes.dataset import SceneDataset
from open_cloc.data.scenes.vocabulary import SceneConfig, held_out_phrases, vocabulary
from open_cloc.data.workers import default_workers
from open_cloc.draw import contact_sheet, write_picture
from open_cloc.errors import ExistingFileError, RunError, UserError
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.run import evaluate
from open_cloc.files import LOCK, PART, is_free, locked, read_json, write_json
from open_cloc.inference.predictor import Predictor
from open_cloc.model.cloc import CLOC
from open_cloc.samples import Region, RegionSample
from open_cloc.training.recipes import scenes_cloc
from open_cloc.training.report import LOG_NAME
from open_cloc.training.run_folder import CHECKPOINTS_FOLDER, FINAL_FOLDER, RECIPE_NAME

MODELS = ("clip", "cloc")
NUMBERS, PICTURE = "demo.json", "demo.png"
# What stands in a model's run folder.
OF_A_RUN = (RECIPE_NAME, LOG_NAME, CHECKPOINTS_FOLDER, FINAL_FOLDER, LOCK)
PICTURE_SCENES = 6
MOST_THREADS = 4  # per model: towers this small gain nothing from more


@dataclass(frozen=True)
class Options:
    """Train CLIP and CLOC on generated scenes and compare them on unseen ones.

    Attributes:
        output: Folder for both runs, the table (`demo.json`) and the picture (`demo.png`).
        samples: Scenes that each model sees; 0 takes the recipe's number.
        seed: Where the scenes, the held-out pairs and the starting weights come from.
        scenes: Unseen scenes to measure on.
        overwrite: Replace the output of an earlier demo.
    """

    output: Path = Path("runs/demo")
    samples: int = 0
    seed: int = 0
    scenes: int = 1000
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name, least in {"samples": 0, "seed": 0, "scenes": 1}.items():
            if getattr(self, name) < least:
                raise UserError(f"--{name} must be at least {least}; got {getattr(self, name)}")


def main(argv: Sequence[str]) -> int:
    """Run the verb; 0 when both models are trained, measured and drawn."""
    options = parse(Options, argv, "open-cloc demo")
    check_output_folder(options)
    with locked(options.output):
        check_output_folder(options)  # another demo may just have ended in it
        remove_earlier(options.output)
        return run(options)


def run(options: Options) -> int:
    """Train, measure and draw in a folder that is ours and empty."""
    samples = options.samples or scenes_cloc().run.samples
    threads = min(MOST_THREADS, max(1, (os.cpu_count() or 2) // len(MODELS)))
    say(f"training CLIP and CLOC side by side on {samples} scenes, {threads} thread(s) each")
    seconds = train_both(options, samples, threads)
    models = {name: CLOC.from_pretrained(str(options.output / name / FINAL_FOLDER)) for name in MODELS}
    config = SceneConfig(seed=options.seed)
    rows = compare(models["clip"], models["cloc"], config, options.scenes)
    report = {
        "scenes_seen": samples,
        "training_seconds": round(seconds),
        "seed": options.seed,
        "results": rows,
    }
    write_json(options.output / NUMBERS, report)
    write_picture(options.output / PICTURE, draw(models["cloc"], config))
    say(f"\n{table(rows)}\n\ntrained in {seconds / 60:.1f} min; see {options.output}/demo.png, demo.json")
    return 0


def check_output_folder(options: Options) -> None:
    """Refuse a folder that is not empty, or that holds anything which no earlier demo has made.

    Raises:
        ExistingFileError: Names what is in the way.
    """
    output = options.output
    if is_free(output):
        return
    if not output.is_dir():
        raise ExistingFileError(f"{output} is no folder: give another --output")
    if not options.overwrite:
        raise ExistingFileError(f"{output} is not empty: give --overwrite, or another --output")
    others = sorted(path.name for path in output.iterdir() if not _is_of_a_demo(path))
    if others:
        raise ExistingFileError(f"{output} holds {others[0]}, which no demo has made: give another --output")


def _is_of_a_demo(path: Path) -> bool:
    """Whether an earlier demo, finished or not, has made this; all else comes after the models."""
    if path.name == LOCK or path.name.startswith(PART):
        return not path.is_symlink()
    if path.name in (NUMBERS, PICTURE):
        return path.is_file() and not path.is_symlink() and all(_is_run(path.parent / n, n) for n in MODELS)
    return path.name in MODELS and _is_run(path, path.name)


def _is_run(folder: Path, model: str) -> bool:
    """Whether this is the run folder of one of the demo's models, and holds nothing else."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    if is_free(folder):  # it has just begun
        return True
    if any(path.name not in OF_A_RUN and not path.name.startswith(PART) for path in folder.iterdir()):
        return False
    try:
        recipe = read_json(folder / RECIPE_NAME)
    except UserError:
        return False
    return isinstance(recipe, dict) and recipe.get("name") == f"scenes-{model}"


def remove_earlier(output: Path) -> None:
    """Remove what an earlier demo has written, whole or not: all but the lock."""
    for path in output.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def train_both(options: Options, samples: int, threads: int) -> float:
    """Train both models at the same time, each in a process of its own; returns the seconds it took.

    Raises:
        RunError: If one of them fails; its own message stands above.
    """
    started = time.monotonic()
    running: list[subprocess.Popen[bytes]] = []
    try:
        for line, name in enumerate(MODELS):
            running.append(_start_training(name, line, options, samples, threads))
        while all(process.poll() in (None, 0) for process in running) and None in [p.poll() for p in running]:
            time.sleep(0.2)  # until all are done, or the first one fails
        codes = [process.poll() for process in running]
    finally:
        _end(running)
    for name, code in zip(MODELS, codes):
        if code:
            raise RunError(f"training {name} ended with exit code {code}")
    return time.monotonic() - started


def _end(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """End what still runs; a demo is not resumed, so nothing needs to be saved."""
    for process in running:
        process.kill()
    for process in running:
        process.wait()


def _start_training(
    name: str, line: int, options: Options, samples: int, threads: int
) -> subprocess.Popen[bytes]:
    scenes = f"scenes:train,num_samples={samples},seed={options.seed}"
    overrides = {
        "--run.samples": str(samples),
        "--run.output": str(options.output / name),
        "--run.seed": str(options.seed),
        "--data.train": scenes,
        "--data.loader.workers": str(_drawing_workers()),
    }
    # One bar under the other on a terminal; a line now and then in a log.
    bars = {"TQDM_DESC": name.upper(), "TQDM_POSITION": str(line)}
    if not sys.stderr.isatty():
        bars["TQDM_MININTERVAL"] = "30"
    arguments = [part for pair in overrides.items() for part in pair]
    with _without_interrupts():
        return subprocess.Popen(
            [sys.executable, "-m", "open_cloc.cli", "train", f"scenes-{name}", *arguments],
            env=os.environ | bars | {"OMP_NUM_THREADS": str(threads)},
        )


def _drawing_workers() -> int:
    """Processes that draw scenes for each model: none where the cores train."""
    return default_workers() // len(MODELS) if torch.cuda.is_available() else 0


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ctrl-C, which a terminal sends to all processes, is for the demo, which ends the others."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a new process keeps what is ignored
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def compare(clip: CLOC, cloc: CLOC, config: SceneConfig, num_scenes: int) -> dict[str, dict[str, float]]:
    """Measure both models on the same unseen scenes: metric -> method -> value."""
    scenes = SceneDataset(config, "test", num_scenes)
    phrases = set(vocabulary(config).phrases)
    held_out = set(held_out_phrases(config))
    groups = {"seen": phrases - held_out, "held_out": held_out}
    classes = tuple(sorted(phrases))

    def measure(model: CLOC, task: str, method: str = "") -> dict[str, Any]:
        options = EvaluationConfig(classes=classes, groups=groups)
        return evaluate(model, scenes, task, options, method=method)["metrics"]

    regions = {
        "CLIP crop": measure(clip, "zeroshot_region_classification", "crop"),
        "CLIP RoIAlign": measure(clip, "zeroshot_region_classification", "roialign"),
        "CLOC Prompter": measure(cloc, "zeroshot_region_classification", "prompter"),
    }
    retrieval = {
        name: measure(model, "zeroshot_retrieval") for name, model in (("CLIP", clip), ("CLOC", cloc))
    }
    grounding = {method: measure(cloc, "grounding", method) for method in ("head", "ranked")}
    gain = measure(cloc, "prompt_gain")
    return {
        "region accuracy, seen pairs": {name: m["acc1/seen"] for name, m in regions.items()},
        "region accuracy, held-out pairs": {name: m["acc1/held_out"] for name, m in regions.items()},
        "image-to-text recall@1": {n: m["text_retrieval_recall@1"] for n, m in retrieval.items()},
        "text-to-image recall@1": {n: m["image_retrieval_recall@1"] for n, m in retrieval.items()},
        "grounding accuracy at IoU 0.5": {
            "CLOC box head": grounding["head"]["acc@0.5"],
            "CLOC ranked boxes": grounding["ranked"]["acc@0.5"],
        },
        "CLOC region accuracy by box given": gain,
    }


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Metrics as aligned lines, one value a line."""
    lines = []
    for metric, values in rows.items():
        for name, value in values.items():
            lines.append(f"{metric:36s} {name:24s} {value:6.3f}")
            metric = ""
    return "\n".join(lines)


def draw(cloc: CLOC, config: SceneConfig) -> np.ndarray:
    """Unseen scenes twice: above, the name of each true box; below, the box of each phrase."""
    scenes = SceneDataset(config, "test", PICTURE_SCENES)
    labels = list(vocabulary(config).phrases)
    predictor = Predictor(cloc)
    labelled, grounded = [], []
    for i in range(PICTURE_SCENES):
        sample = scenes[i]
        pixels = sample.pixels()
        predictor.set_image(pixels)
        boxes = np.array([region.box for region in sample.regions])
        names = predictor.classify_regions(boxes, labels, top_k=1, normalized=True)
        regions = [Region(r.box, *best[0]) for r, best in zip(sample.regions, names)]
        labelled.append(RegionSample("boxes named", pixels, regions=tuple(regions)))
        found = predictor.ground([region.text for region in sample.regions])
        regions = [
            Region(tuple(normalize_boxes(np.array(box), pixels.shape[:2]).tolist()), phrase, score)
            for phrase, box, score in found
        ]
        grounded.append(RegionSample("phrases found", pixels, regions=tuple(regions)))
    return contact_sheet([*labelled, *grounded], columns=PICTURE_SCENES, tile=256)
