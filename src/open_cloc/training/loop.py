"""The training loop: read it top to bottom."""

from __future__ import annotations

import logging
import math
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from open_cloc.data.annotations import SampleDataset
from open_cloc.data.bad_samples import BadSamples, tell_opening
from open_cloc.data.loader import RegionLoader
from open_cloc.data.mixture import Mixture
from open_cloc.data.permutation import COMPUTED
from open_cloc.data.prompts import Shares
from open_cloc.data.readers import open_reader
from open_cloc.errors import UserError
from open_cloc.model.cloc import CLOC
from open_cloc.model.create import build_model
from open_cloc.model.prompter import BLIND
from open_cloc.objectives import Objectives
from open_cloc.objectives.teacher import Teacher
from open_cloc.precision import products_in
from open_cloc.samples import Wants
from open_cloc.training import checkpoint, freeze, optim
from open_cloc.training.checkpoint import SaveClock, Saver
from open_cloc.training.compile import compile_blocks, num_graphs, uncompiled
from open_cloc.training.lora import add_adapters, tell_adapters
from open_cloc.training.parallelize import (
    learning_batch_norms,
    parallelize,
    share_state,
    use_channels_last,
    whole_model,
    whole_tensor,
)
from open_cloc.training.probe import probe
from open_cloc.training.ranks import Ranks, StopSignal, join_ranks
from open_cloc.training.recipe import Recipe
from open_cloc.training.report import Meter, Report
from open_cloc.training.run_folder import (
    CHECKPOINTS_FOLDER,
    FINAL_FOLDER,
    START_FOLDER,
    open_run_folder,
    write_recipe,
)
from open_cloc.training.step import Run, train_step
from open_cloc.training.watch import Notes, Outlines, Watch

logger = logging.getLogger(__name__)


def train(recipe: Recipe, resume: str = "", dataset: SampleDataset | None = None, stop_at: int = 0) -> Path:
    """Run a recipe to its end, or to SIGTERM; with torchrun or srun, on every rank at once.

    Args:
        recipe: The run, written down.
        resume: `latest` or a checkpoint's path, to go on where it stopped; `auto` to go on if there is a
            checkpoint and to start otherwise; empty starts a new run.
        dataset: Training samples, in place of what `recipe.data.train` names.
        stop_at: Stop behind this step as SIGTERM does; 0 for never.

    Returns:
        The folder of the trained model; after a stop the last checkpoint's.

    Raises:
        UserError: If the recipe does not fit together, too many samples are bad, or another process works in
            the run folder.
        RunError: If a checkpoint cannot be written.
        ExistingFileError: If the run folder is there already and nothing is to be resumed.
        NotFiniteError: If losses or gradients of too many steps are not finite; names the term.
    """
    with join_ranks(recipe.run.device) as ranks, products_in(recipe.run.precision, ranks.device):
        _refuse_what_cannot_work(recipe, ranks)
        data = open_data(recipe) if dataset is None else dataset
        ranks.on_first(lambda: _tell_opening(data, recipe))
        with open_run_folder(recipe, resume, ranks) as (folder, found):
            if ranks.is_first and found is None:
                write_recipe(recipe, folder)  # first of all: `--resume auto` knows its folder by it
            torch.manual_seed(recipe.run.seed)
            model = _build_model(recipe, ranks, load=found is None)
            add_adapters(model, recipe.optim)
            objectives = build_objectives(recipe, model)
            prepare_model(model, objectives, recipe)
            if found is None and recipe.data.probe:
                ranks.on_first(lambda: _probe_start(model, recipe, folder))
            model.train()
            freeze.lock_towers(model, recipe.optim)  # train() has woken frozen batch norms
            _refuse_batch_norm_in_parts(model, recipe)
            compiled = compile_blocks(model, recipe.run.compile, ranks.device)
            network = parallelize(model, recipe.run.parallel, ranks, recipe.run.precision)
            optimizer = optim.build_optimizer(model, objectives, recipe.optim)
            run = Run(recipe, ranks, folder, model, objectives, network, optimizer, compiled)
            start = checkpoint.Progress(0, run.global_batch_size, ranks.size, order=COMPUTED)
            if found is not None:
                start = checkpoint.load_checkpoint(found, run.state, ranks, recipe.run.global_batch_size)
                if ranks.is_first:
                    write_recipe(recipe, folder)
            if not _run_steps(run, data, start, stop_at):
                return ranks.on_first(lambda: checkpoint.list_checkpoints(folder / CHECKPOINTS_FOLDER)[-1])
            whole = whole_model(model, ranks)
            with uncompiled() if compiled else nullcontext():
                ranks.on_first(lambda: _finish(whole, recipe, folder, ranks.device))
            return folder / FINAL_FOLDER


def _build_model(recipe: Recipe, ranks: Ranks, *, load: bool) -> CLOC:
    """The model on each rank's device; only the first rank reads starting weights, if any does."""
    made: list[CLOC] = []
    ranks.on_first(lambda: made.append(build_model(recipe.model, load=load)))
    model = made[0] if made else build_model(recipe.model, load=False)
    model.to(ranks.device)
    if ranks.device.type == "cuda" and (recipe.run.parallel == "ddp" or ranks.size == 1):
        use_channels_last(model)  # FSDP cuts contiguous weights only
    share_state(model, ranks)
    return model


def build_objectives(recipe: Recipe, model: CLOC) -> Objectives:
    """The recipe's objectives; where they need a teacher, it is the model as it is now."""
    objectives = Objectives(recipe.objectives)
    if objectives.teacher_momentum is not None:
        objectives.teacher = Teacher(model, objectives.teacher_momentum)
    return objectives.to(model.device)


def prepare_model(model: CLOC, objectives: Objectives, recipe: Recipe) -> None:
    """Decide what is recomputed and what is frozen.

    Raises:
        UserError: If an objective asks for places of a picture that a crop may leave out, or points or masks
            are asked for in vain.
    """
    places = [path for path in objectives.needs if path.endswith("place_features")]
    if places and recipe.data.loader.augment.min_crop_scale < 1:
        raise UserError(
            f"data.loader.augment.min_crop_scale must be 1 where an objective needs {places[0]}: a crop "
            "leaves places out"
        )
    loader = recipe.data.loader
    for name in Shares._fields:
        if getattr(loader, name) and ("region_features" not in objectives.needs or not loader.num_regions):
            raise UserError(
                f"data.loader.{name} asks for regions by {name}, and no objective of this run has regions"
            )
    for name in ("masks", "box_sets"):
        if getattr(loader, name) and not model.prompter.config.sees_outlines:
            raise UserError(f"data.loader.{name} would train boxes: {BLIND}")
    model.set_grad_checkpointing(recipe.run.grad_checkpointing)
    freeze.lock_towers(model, recipe.optim)
    freeze.freeze_unreached(model, objectives, recipe.data.loader.num_regions)
    tell_adapters(model, recipe)


def _probe_start(model: CLOC, recipe: Recipe, folder: Path) -> None:
    model.save_pretrained(folder / START_FOLDER)  # what `open-cloc interpolate` mixes the result with
    probe(model, recipe, folder, "before")


def _finish(model: CLOC, recipe: Recipe, folder: Path, device: torch.device) -> None:
    model.eval()
    model.save_pretrained(folder / FINAL_FOLDER)
    if recipe.data.probe:
        probe(model.to(device), recipe, folder, "after")


def _run_steps(run: Run, dataset: SampleDataset, start: checkpoint.Progress, stop_at: int) -> bool:
    """All steps behind `start`; False if SIGTERM or `stop_at` ended them early, with a checkpoint."""
    config, ranks = run.recipe.run, run.ranks
    num_steps, step = config.samples // run.global_batch_size, start.step
    tally = BadSamples(run.recipe.data.loader.max_bad_fraction)
    loader = _open_loader(run, dataset, start, tally)
    meter, clock = Meter(), SaveClock(config)
    outlines = Outlines(run.recipe.data.loader.masks if ranks.is_first else 0)
    watch = Watch(start.skipped, config.max_skipped_steps)
    with (
        StopSignal() as stop,  # until the last checkpoint is whole: schedulers send SIGTERM more than once
        Report(run.folder, config, ranks, start_step=step, shown=run.objectives.names) as report,
        Saver(run.folder / CHECKPOINTS_FOLDER, run.state, ranks, keep=config.keep) as saver,
        closing(iter(loader)) as batches,  # its workers end before an error is told
    ):
        for batch in batches:
            late = ranks.is_first and clock.is_late()
            notes = Notes(stop.asked, saver.has_failed(), late, tally.tried, tally.num_bad)
            meter.start_step(batch)
            outlines.look(batch)
            factor = optim.learning_rate_factor(step, num_steps, run.recipe.optim.warmup)
            optim.set_learning_rate(run.optimizer, factor)
            watch.put(step + 1, train_step(run, batch, step, notes))
            step += 1
            if ranks.is_first:  # from the first step on there is something to keep
                saver.folder.mkdir(exist_ok=True)
            report.advance()
            logging_now = step % config.log_steps == 0 or step == num_steps
            stopping = step == stop_at or watch.notes.asked
            saving = stopping or clock.is_due(step) or watch.notes.late
            if logging_now or saving:
                watch.settle()
            if tally.is_past(watch.notes.bad, watch.notes.tried):
                _refuse_together(tally, ranks)
            if logging_now:
                report.write(step, _scalars(run, step, factor, watch) | meter.read(ranks))
            if watch.notes.failed:
                saver.wait()  # says why
            if saving:
                _save(saver, replace(start, step=step, world_size=ranks.size), watch)
                clock.reset()
            if stopping:
                return False
            meter.end_step()
    return True


def _scalars(run: Run, step: int, factor: float, watch: Watch) -> dict[str, float]:
    """What is logged of the step that was just settled."""
    values = {name: value for name, value in watch.values.items() if math.isfinite(value)}
    graphs = {"graphs": num_graphs()} if run.compiled else {}
    return {
        "samples_seen": step * run.global_batch_size,
        "bad_samples": watch.notes.bad,
        "skipped_steps": watch.skipped,
        **graphs,
        **values,
        **{f"health/{name}": value for name, value in watch.take_health().items() if math.isfinite(value)},
        "logit_scale": whole_tensor(run.model.clip.logit_scale).exp().item(),
        "lr": run.recipe.optim.lr * factor,
    }


def _save(saver: Saver, progress: checkpoint.Progress, watch: Watch) -> None:
    notes = watch.notes
    saver.save(replace(progress, tried=notes.tried, bad=notes.bad, skipped=watch.skipped))
    watch.notes = notes._replace(late=False)


def _open_loader(
    run: Run, dataset: SampleDataset, start: checkpoint.Progress, tally: BadSamples
) -> RegionLoader:
    """This rank's batches from where the run stands, and the bad samples so far."""
    ranks = run.ranks
    if ranks.is_first:  # the sum over all ranks is what counts
        tally.go_on_from(start.tried, start.bad)
    return RegionLoader(
        dataset,
        run.model.preprocess,
        run.model.tokenize,
        run.recipe.data.loader,
        batch_size=run.recipe.run.rank_batch_size(ranks.size),
        wants=Wants(run.objectives.roles, run.objectives.views),
        num_samples=run.recipe.run.samples,
        start_sample=start.step * run.global_batch_size,
        rank=ranks.rank,
        world_size=ranks.size,
        tally=tally,
        order=start.order,
    )


def _refuse_together(tally: BadSamples, ranks: Ranks) -> None:
    """Stop all ranks at one step; the first says what they have found."""
    whole = BadSamples.joined(ranks.gather(tally))

    def refuse() -> None:
        raise whole.refusal()

    ranks.on_first(refuse)


def open_data(recipe: Recipe) -> SampleDataset:
    """The training data that a recipe names; several sets one behind the other, or mixed by weight."""
    if not recipe.data.train:
        raise UserError("no training data: give --data.train FORMAT:PATH, such as shards:my_shards")
    sets = [open_reader(spec) for spec in recipe.data.train]
    return sets[0] if len(sets) == 1 else Mixture(sets, recipe.data.weights)


def _tell_opening(data: SampleDataset, recipe: Recipe) -> None:
    """Say what each data set leaves out; too many broken entries raise."""
    sets = data.sources if isinstance(data, Mixture) else (data,)
    for number, source in enumerate(sets):
        # A mixture that is given from outside may have other parts than the recipe names.
        name = recipe.data.train[number] if len(recipe.data.train) == len(sets) else f"data set {number}"
        tell_opening(
            source, name, recipe.data.loader.max_bad_fraction, "loader.max_bad_fraction leaves them out"
        )


def _refuse_what_cannot_work(recipe: Recipe, ranks: Ranks) -> None:
    config = recipe.run
    batch_size = config.rank_batch_size(ranks.size)
    if config.samples < config.global_batch_size:
        raise UserError(
            f"run.samples must be at least one batch of {config.global_batch_size}; got {config.samples}"
        )
    if batch_size % config.accumulate:
        raise UserError(
            f"run.accumulate must divide a rank's batch of {batch_size} into equal parts; got "
            f"{config.accumulate}"
        )
    if not config.output:
        raise UserError("no run folder: give --run.output FOLDER")
    num_steps = config.samples // config.global_batch_size
    if ranks.is_first and recipe.optim.warmup > max(1, num_steps / 4):
        logger.warning(
            "optim.warmup of %d steps is more than a quarter of the run's %d: the learning rate hardly comes "
            "to its peak; --optim.warmup %d would be a tenth",
            recipe.optim.warmup,
            num_steps,
            max(1, num_steps // 10),
        )


def _refuse_batch_norm_in_parts(model: CLOC, recipe: Recipe) -> None:
    names = learning_batch_norms(model)
    if names and recipe.run.accumulate > 1:
        raise UserError(
            f"run.accumulate must be 1 with a batch norm that learns, such as {names[0]}: its statistics "
            "would be those of a part of the batch; take a tower without one, or --optim.lock-image"
        )
