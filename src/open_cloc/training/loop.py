"""The training loop: read it top to bottom."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType, TracebackType

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import ConcatDataset

from open_cloc.data.annotations import SampleDataset
from open_cloc.data.loader import RegionLoader
from open_cloc.data.readers import open_reader
from open_cloc.data.samples import RegionBatch
from open_cloc.losses import total_loss
from open_cloc.model.cloc import CLOC
from open_cloc.model.create import create_model
from open_cloc.model.load import choose_device
from open_cloc.training import checkpoint, optim
from open_cloc.training.probe import probe
from open_cloc.training.recipe import Recipe
from open_cloc.training.report import LOG_NAME, Report

START_FOLDER = "start"
CHECKPOINTS_FOLDER = "checkpoints"
FINAL_FOLDER = "model"


def train(recipe: Recipe, resume: str = "", dataset: SampleDataset | None = None) -> Path:
    """Run a recipe to its end, or to SIGTERM.

    Args:
        recipe: What to do.
        resume: `latest` or a checkpoint's path, to go on where it stopped; empty starts a new run.
        dataset: Training samples, in place of what `recipe.data.train` names.

    Returns:
        The folder of the trained model; after SIGTERM the last checkpoint's.

    Raises:
        ValueError: If the recipe does not fit together or too many samples are bad.
        FileExistsError: If the run folder is there already and nothing is to be resumed.
        FloatingPointError: If a loss or the gradient is not finite; names the term.
    """
    _refuse_what_cannot_work(recipe)
    dataset = open_data(recipe) if dataset is None else dataset
    with open_run_folder(recipe, resume) as (folder, found):
        torch.manual_seed(recipe.run.seed)
        model = create_model(recipe.model).to(choose_device(recipe.run.device or None))
        model.set_grad_checkpointing(recipe.run.grad_checkpointing)
        optim.lock_towers(model, recipe.optim)
        optimizer = optim.build_optimizer(model, recipe.optim)
        step = 0
        if found is not None:
            batch_size = recipe.data.loader.batch_size
            step = checkpoint.load_checkpoint(found, model, optimizer, batch_size=batch_size)
        elif recipe.data.probe:
            model.save_pretrained(folder / START_FOLDER)  # what `open-cloc interpolate` mixes the result with
            probe(model, recipe, folder, "before")
        (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n", encoding="utf-8")
        if not _run_steps(recipe, model, optimizer, dataset, folder, step):
            return checkpoint.list_checkpoints(folder / CHECKPOINTS_FOLDER)[-1]
        model.eval()
        model.save_pretrained(folder / FINAL_FOLDER)
        if recipe.data.probe:
            probe(model, recipe, folder, "after")
        return folder / FINAL_FOLDER


def _run_steps(
    recipe: Recipe,
    model: CLOC,
    optimizer: torch.optim.Optimizer,
    dataset: SampleDataset,
    folder: Path,
    step: int,
) -> bool:
    """All steps behind `step`; False if SIGTERM ended them early, with a checkpoint."""
    config, batch_size = recipe.run, recipe.data.loader.batch_size
    num_steps = config.samples // batch_size
    loader = RegionLoader(
        dataset,
        model.preprocess,
        model.tokenize,
        recipe.data.loader,
        num_samples=config.samples,
        start_sample=step * batch_size,
    )
    saver = Saver(recipe, folder, model, optimizer)
    meter = Meter()
    model.train()
    optim.lock_towers(model, recipe.optim)  # train() has woken frozen batch norms
    with Report(folder, config, start_step=step, batch_size=batch_size) as report, StopSignal() as stop:
        for batch in loader:
            meter.start_step(batch)
            factor = optim.learning_rate_factor(step, num_steps, recipe.optim.warmup)
            optim.set_learning_rate(optimizer, factor)
            losses = train_step(recipe, model, optimizer, batch.to(model.device), step)
            step += 1
            report.advance()
            if step % config.log_steps == 0 or step == num_steps:
                scalars = {name: value.item() for name, value in losses.items()}
                scalars["logit_scale"] = model.clip.logit_scale.exp().item()
                scalars["lr"] = recipe.optim.lr * factor
                report.write(step, {"samples_seen": step * batch_size, **scalars, **meter.read()})
            if stop.asked or saver.due(step):
                saver.save(step)
            if stop.asked:
                return False
            meter.end_step()
    return True


def train_step(
    recipe: Recipe, model: CLOC, optimizer: torch.optim.Optimizer, batch: RegionBatch, step: int
) -> dict[str, Tensor]:
    """One update; the losses by name and the gradient's norm, still on the device."""
    with torch.autocast(model.device.type, torch.bfloat16, enabled=recipe.run.precision == "amp_bf16"):
        features = model(batch)
    losses = total_loss(features, recipe.loss)
    optimizer.zero_grad()
    losses["total"].backward()
    grad_norm = clip_grad_norm_(model.parameters(), recipe.optim.grad_clip or float("inf"))
    losses = {name: value.detach() for name, value in losses.items()} | {"grad_norm": grad_norm}
    require_finite(losses, step)  # before the update: the weights stay good
    optimizer.step()
    optim.clamp_logit_scale(model, recipe.optim.max_logit_scale)
    return losses


def require_finite(losses: Mapping[str, Tensor], step: int) -> None:
    """The step's only wait for the device.

    Raises:
        FloatingPointError: Names the first term that is not finite.
    """
    finite = torch.stack([value.float() for value in losses.values()]).isfinite().tolist()
    for name, good in zip(losses, finite):
        if not good:
            values = ", ".join(f"{n}={v.item():g}" for n, v in losses.items())
            raise FloatingPointError(
                f"{name} is not finite at step {step + 1} ({values}): lower optim.lr, or look at the batch; "
                "checkpoints hold weights from before it"
            )


def open_data(recipe: Recipe) -> SampleDataset:
    """The training data that a recipe names, several sets one behind the other (the loader shuffles)."""
    if not recipe.data.train:
        raise ValueError("no training data: give --data.train FORMAT:PATH, such as shards:my_shards")
    sets = [open_reader(spec) for spec in recipe.data.train]
    return sets[0] if len(sets) == 1 else ConcatDataset(sets)  # type: ignore[arg-type]


def _refuse_what_cannot_work(recipe: Recipe) -> None:
    config = recipe.run
    if config.samples < recipe.data.loader.batch_size:
        raise ValueError(
            f"run.samples must be at least one batch of {recipe.data.loader.batch_size}; got {config.samples}"
        )
    if not config.output:
        raise ValueError("no run folder: give --run.output FOLDER")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "this version trains on one device; got WORLD_SIZE="
            f"{os.environ['WORLD_SIZE']}: start it with plain python"
        )


@contextmanager
def open_run_folder(recipe: Recipe, resume: str) -> Iterator[tuple[Path, Path | None]]:
    """The run folder, and the checkpoint to go on from.

    A new run that fails before it has logged or saved anything leaves no folder behind.
    """
    folder = Path(recipe.run.output)
    if not resume and folder.exists() and any(folder.iterdir()):
        raise FileExistsError(
            f"run folder {folder} is not empty: go on with --resume latest, or give another --run.output"
        )
    found = checkpoint.find_checkpoint(resume, folder / CHECKPOINTS_FOLDER) if resume else None
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder, found
    except BaseException:
        log = folder / LOG_NAME
        logged = log.is_file() and log.stat().st_size > 0
        if not (resume or logged or checkpoint.list_checkpoints(folder / CHECKPOINTS_FOLDER)):
            shutil.rmtree(folder, ignore_errors=True)
        raise


class Saver:
    """Knows when a checkpoint is due."""

    def __init__(self, recipe: Recipe, folder: Path, model: CLOC, optimizer: torch.optim.Optimizer) -> None:
        self.config = recipe.run
        self.folder = folder / CHECKPOINTS_FOLDER
        self.batch_size = recipe.data.loader.batch_size
        self.model = model
        self.optimizer = optimizer
        self.saved_at = time.monotonic()

    def due(self, step: int) -> bool:
        by_step = self.config.save_steps > 0 and step % self.config.save_steps == 0
        return by_step or time.monotonic() - self.saved_at > 60 * self.config.save_minutes

    def save(self, step: int) -> None:
        checkpoint.save_checkpoint(
            self.folder,
            self.model,
            self.optimizer,
            step=step,
            samples_seen=step * self.batch_size,
            keep=self.config.keep,
        )
        self.saved_at = time.monotonic()


class Meter:
    """Throughput, waiting for data, and what the data were like, since the last reading."""

    def __init__(self) -> None:
        self.waiting_since = time.monotonic()
        self.bad: Counter[str] = Counter()
        self._reset()

    def _reset(self) -> None:
        self.since = time.monotonic()
        self.images, self.steps, self.data_time = 0, 0, 0.0
        self.texts, self.distinct = 0, 0

    def start_step(self, batch: RegionBatch) -> None:
        self.data_time += time.monotonic() - self.waiting_since
        self.images += len(batch.images)
        self.steps += 1
        self.bad.update(batch.bad)
        self.texts += int(batch.region_mask.sum() + (batch.caption_index >= 0).sum())
        self.distinct += len(batch.texts)

    def end_step(self) -> None:
        self.waiting_since = time.monotonic()

    def read(self) -> dict[str, float]:
        elapsed = time.monotonic() - self.since
        read = {
            "images_per_s": self.images / elapsed,
            "step_time": elapsed / self.steps,
            "data_time": self.data_time / self.steps,
            "distinct_text_share": self.distinct / max(1, self.texts),
            "bad_samples": float(sum(self.bad.values())),
        }
        self._reset()
        return read


class StopSignal:
    """Turns SIGTERM into a flag that the loop looks at after each step."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> StopSignal:
        self.previous = signal.signal(signal.SIGTERM, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGTERM, self.previous)
