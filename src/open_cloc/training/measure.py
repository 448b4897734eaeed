"""A few real steps on this machine, for a plan."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from open_cloc.data.collate import Prepared, collate
from open_cloc.data.loader import RegionLoader
from open_cloc.devices import choose_device
from open_cloc.errors import UserError
from open_cloc.model.cloc import CLOC
from open_cloc.model.create import build_model
from open_cloc.precision import computing_in
from open_cloc.samples import RegionBatch
from open_cloc.training import optim
from open_cloc.training.compile import compile_blocks
from open_cloc.training.loop import build_objectives, open_data, prepare_model
from open_cloc.training.lora import add_adapters
from open_cloc.training.parallelize import tower_blocks
from open_cloc.training.plan import Measured
from open_cloc.training.ranks import Ranks
from open_cloc.training.recipe import Recipe
from open_cloc.training.step import Run, train_step

CAPTION_WORDS, PHRASE_WORDS = 40, 2  # of the paper's training data

VOCABULARY = [a + b for a in "bdfgklmnprst" for b in ("ago", "ane", "ell", "ide", "ock", "une")]

ENOUGH_SECONDS = 4.0  # a step this long need not grow further to be measured

REPEATS = 3
LOADER_BATCH = 16  # images at most for the loader's rate


def measure(recipe: Recipe, num_ranks: int = 1) -> tuple[Measured, int]:
    """Run a few real steps of one of so many ranks; the measurements and D.

    Raises:
        UserError: If the recipe's model or data cannot be built, or its batch has fewer than two images.
    """
    batch_size = recipe.run.rank_batch_size(num_ranks)
    if batch_size < 2:
        raise UserError(f"a plan needs at least 2 images on each rank; got {batch_size}")
    run = start(replace(recipe, run=replace(recipe.run, accumulate=1)))
    sizes: list[int] = []
    seconds: list[float] = []
    activations: list[int] = []
    for size in _growing(batch_size):
        try:
            step_time, step_bytes = measure_step(run, size)
        except torch.OutOfMemoryError as error:
            if len(sizes) < 2:
                raise UserError(f"{size} images do not fit this device: plan on a larger one") from error
            break
        sizes.append(size)
        seconds.append(step_time)
        activations.append(step_bytes)
        if step_time > ENOUGH_SECONDS and len(sizes) > 1:
            break
    parameters = list(run.model.parameters())
    measured = Measured(
        batch_sizes=(sizes[-2], sizes[-1]),
        seconds=(seconds[-2], seconds[-1]),
        activations=(activations[-2], activations[-1]),
        parameters=sum(p.numel() for p in parameters),
        learning=sum(p.numel() for p in parameters if p.requires_grad),
        gathered=_gathered(run.model),
        shares=_forward_shares(run, make_batch(run, sizes[-2])),
        loader_rate=_loader_rate(run),
        product_rate=_product_rate(run.model.device, run.model.embed_dim),
    )
    return measured, run.model.embed_dim


def start(recipe: Recipe) -> Run:
    """A run of one process, whose optimizer has its states."""
    torch.manual_seed(recipe.run.seed)
    model = build_model(recipe.model).to(choose_device(recipe.run.device or None))
    model.train()  # a Hugging Face tower recomputes nothing outside of training
    add_adapters(model, recipe.optim)
    objectives = build_objectives(recipe, model)
    prepare_model(model, objectives, recipe)
    optimizer = optim.build_optimizer(model, objectives, recipe.optim)
    compiled = compile_blocks(model, recipe.run.compile, model.device)
    run = Run(recipe, Ranks(0, 1, model.device), Path(), model, objectives, model, optimizer, compiled)
    train_step(run, make_batch(run, max(2, recipe.run.accumulate)), 0)
    return run


def _gathered(model: CLOC) -> int:
    """See `Measured.gathered`."""
    blocks = [sum(p.numel() for p in block.parameters()) for block in tower_blocks(model)]
    return sum(p.numel() for p in model.parameters()) - sum(blocks) + 2 * max(blocks, default=0)


def measure_step(run: Run, batch_size: int) -> tuple[float, int]:
    """Fastest seconds and peak bytes above weights, gradients and optimizer of one training step."""
    batch = make_batch(run, batch_size)
    train_step(run, batch, 0)
    seconds = []
    peak = PeakBytes(run.model.device)
    for step in range(REPEATS):
        started = time.perf_counter()
        train_step(run, batch, step).losses["total"].item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return min(seconds), peak.read()


def make_batch(run: Run, batch_size: int) -> RegionBatch:
    """From the recipe's data, or made up in the shape of the paper's where it names none."""
    loader = replace(run.recipe.data.loader, workers=0, lanes=1)
    model = run.model
    if run.recipe.data.train:
        data = open_data(run.recipe)
        batches = RegionLoader(
            data,
            model.preprocess,
            model.tokenize,
            loader,
            batch_size=batch_size,
            num_samples=batch_size,
        )
        return next(iter(batches))
    draw = np.random.default_rng(0)
    made = [_made_up(draw, model.preprocess.image_size, loader.num_regions) for _ in range(batch_size)]
    return collate(made, loader.num_regions, model.tokenize, {})


def _made_up(draw: np.random.Generator, size_hw: tuple[int, int], num_regions: int) -> Prepared:
    return Prepared(
        key="made up",
        image=draw.integers(0, 256, (*size_hw, 3), dtype=np.uint8),
        content_box=(0.0, 0.0, 1.0, 1.0),
        caption=" ".join(draw.choice(VOCABULARY, CAPTION_WORDS)),
        boxes=np.sort(draw.random((num_regions, 2, 2), dtype=np.float32), axis=1).reshape(-1, 4),
        texts=[" ".join(draw.choice(VOCABULARY, PHRASE_WORDS)) for _ in range(num_regions)],
    )


def _growing(batch_size: int) -> Iterator[int]:
    """Doubling batch sizes up to a half of the recipe's, and two at the least."""
    size = min(4, max(1, batch_size // 2))
    yield size
    while True:
        size = min(2 * size, batch_size)
        yield size
        if 4 * size > batch_size:
            return


class PeakBytes:
    """The most memory in use since this was made, above what was in use then."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.base = torch.cuda.memory_allocated(device)
            return
        ctypes.CDLL(None).malloc_trim(0)  # or freed heap hides what comes next
        Path("/proc/self/clear_refs").write_text("5")
        self.base = self._resident("VmRSS")

    def read(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.base
        return self._resident("VmHWM") - self.base

    @staticmethod
    def _resident(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def _forward_shares(run: Run, batch: RegionBatch) -> dict[str, float]:
    """Part of the forward pass in image tower, text tower and Prompter."""
    with torch.no_grad(), computing_in(run.recipe.run.precision, run.model.device):
        return _component_shares(run.model, batch.to(run.model.device))


def _component_shares(model: CLOC, batch: RegionBatch) -> dict[str, float]:
    state = model.encode_image(batch.images, batch.content_boxes)
    texts = model.encode_distinct_texts(batch)
    regions = texts[batch.region_text_index]

    def prompt() -> None:
        prompted = model.prompter.prepare(state.image_tokens, state.grid_size)
        model.prompter.embed(prompted, {"box": batch.boxes})
        model.prompter.ground(prompted, {"text": regions})

    seconds = {
        "image tower": _seconds(lambda: model.encode_image(batch.images, batch.content_boxes), model.device),
        "text tower": _seconds(lambda: model.encode_distinct_texts(batch), model.device),
        "Prompter": _seconds(prompt, model.device) if batch.boxes.shape[1] else 0.0,
    }
    # `encode_image` prepares the Prompter too; that share belongs to the Prompter.
    prepared = _seconds(lambda: model.prompter.prepare(state.image_tokens, state.grid_size), model.device)
    seconds["image tower"] = max(0.0, seconds["image tower"] - prepared)
    total = sum(seconds.values())
    return {name: value / total for name, value in seconds.items()}


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times)


def _loader_rate(run: Run) -> float:
    """Images a second that one process decodes, transforms and collates."""
    if not run.recipe.data.train:
        return 0.0
    loader = run.recipe.data.loader
    loader = replace(loader, workers=0, lanes=1)
    size = min(LOADER_BATCH, run.recipe.run.global_batch_size)
    model = run.model
    data = open_data(run.recipe)
    batches = RegionLoader(
        data, model.preprocess, model.tokenize, loader, batch_size=size, num_samples=5 * size
    )
    stream = iter(batches)
    next(stream)  # opens files and fills caches
    started = time.perf_counter()
    count = sum(len(batch.images) for batch in islice(stream, 4))
    return count / (time.perf_counter() - started)


def _product_rate(device: torch.device, embed_dim: int) -> float:
    """Float32 FLOP/s of a tile's product."""
    left, right = torch.randn(1024, embed_dim, device=device), torch.randn(embed_dim, 1024, device=device)
    left @ right
    return 2 * 1024 * 1024 * embed_dim / _seconds(lambda: left @ right, device)
