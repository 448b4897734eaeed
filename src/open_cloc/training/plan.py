"""What a run will need: memory a rank, images a second, hours, and what bounds it.

A few steps of the real training step are measured on this machine at two small batch sizes. Towers and
Prompter cost so much an image, so time and memory at another batch size follow a straight line; what does not
(states of the optimizer, the loss over the world's regions, what ranks send) follows from formulas below.

Shapes: B images a rank, W ranks, G = B W, R regions an image, n = G R region-text pairs, D shared embedding,
P parameters.
"""

from __future__ import annotations

import ctypes
import gc
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from open_cloc.data.loader import Prepared, RegionLoader, collate
from open_cloc.data.samples import RegionBatch
from open_cloc.losses.contrastive import DENSE_PAIRS
from open_cloc.model.cloc import CLOC
from open_cloc.model.create import create_model
from open_cloc.model.load import choose_device
from open_cloc.training import optim
from open_cloc.training.loop import Run, open_data, prepare_model, train_step
from open_cloc.training.parallel import Ranks
from open_cloc.training.recipe import Recipe

CAPTION_WORDS, PHRASE_WORDS = 40, 2  # of the paper's training data (METHOD 5)
VOCABULARY = [a + b for a in "bdfgklmnprst" for b in ("ago", "ane", "ell", "ide", "ock", "une")]
FLOAT = 4  # bytes
ENOUGH_SECONDS = 4.0  # a step this long need not grow further to be measured
REPEATS = 3
HEADROOM = 0.9  # of a device's memory that a run may take; fragments take the rest


@dataclass(frozen=True)
class Hardware:
    """What the run will use.

    Attributes:
        devices: Accelerators, one rank each, as fast as the one measured here.
        memory_gb: GiB of one; 0 takes this machine's.
        bandwidth: GB/s that one sends while the others do too.
    """

    devices: int = 1
    memory_gb: float = 0.0
    bandwidth: float = 25.0

    def __post_init__(self) -> None:
        if self.devices < 1 or self.memory_gb < 0 or self.bandwidth <= 0:
            raise ValueError(
                "a plan needs devices >= 1, memory_gb >= 0 and bandwidth > 0; got "
                f"{self.devices}, {self.memory_gb}, {self.bandwidth}"
            )


@dataclass(frozen=True)
class Measured:
    """Steps on this machine.

    Attributes:
        batch_sizes: The two measured.
        seconds: A step at each, the fastest of a few.
        activations: Bytes that a step at each needs beside weights, gradients and optimizer.
        parameters: P.
        learning: Parameters that learn.
        shares: Part of the forward pass that each component takes.
        loader_rate: Images a second that one worker prepares; 0 where the recipe names no data.
        product_rate: Float32 FLOP/s of a matrix product of the loss's kind.
    """

    batch_sizes: tuple[int, int]
    seconds: tuple[float, float]
    activations: tuple[int, int]
    parameters: int
    learning: int
    shares: dict[str, float]
    loader_rate: float
    product_rate: float

    def seconds_at(self, batch_size: int) -> float:
        return _line(self.batch_sizes, self.seconds, batch_size)

    def activations_at(self, batch_size: int) -> float:
        return _line(self.batch_sizes, self.activations, batch_size)


@dataclass(frozen=True)
class Plan:
    """What to expect of a run; bytes and seconds are a rank's and a step's.

    Attributes:
        state_bytes: Weights, gradients and AdamW's two moments.
        activation_bytes: Kept for the backward pass.
        loss_bytes: Gathered texts, their gradients, and the loss's work space.
        compute_seconds: Forward, backward and update.
        loss_seconds: The part of it that grows with the square of the global batch.
        send_seconds: Collectives, if nothing hides them.
        sent_bytes: By one rank in one step.
        images_per_second: Of all ranks.
        hours: Of the whole run.
        bound: What the run waits for most.
        largest_batch: Images a rank that fit the memory without accumulation.
    """

    state_bytes: float
    activation_bytes: float
    loss_bytes: float
    compute_seconds: float
    loss_seconds: float
    send_seconds: float
    sent_bytes: float
    images_per_second: float
    hours: float
    bound: str
    largest_batch: int

    @property
    def total_bytes(self) -> float:
        return self.state_bytes + self.activation_bytes + self.loss_bytes


def make_plan(recipe: Recipe, hardware: Hardware, measured: Measured, embed_dim: int) -> Plan:
    """Formulas applied to measurements."""
    loader, ranks = recipe.data.loader, hardware.devices
    batch_size, num_pairs = loader.batch_size, loader.batch_size * ranks * max(1, loader.num_regions)
    fsdp = recipe.run.parallel == "fsdp" and ranks > 1
    states = (measured.parameters * FLOAT + 3 * measured.learning * FLOAT) / (ranks if fsdp else 1)
    activations = measured.activations_at(batch_size // recipe.run.accumulate)
    loss_bytes = region_loss_bytes(num_pairs, batch_size * max(1, loader.num_regions), embed_dim)
    # Accumulating computes each image's features twice.
    compute = measured.seconds_at(batch_size) * (1.25 if recipe.run.accumulate > 1 else 1.0)
    loss_seconds = region_loss_flops(num_pairs, ranks, embed_dim) / measured.product_rate
    sent = sent_bytes(num_pairs, ranks, embed_dim, measured.parameters, measured.learning, fsdp)
    send_seconds = sent / (hardware.bandwidth * 1e9)
    data_seconds = 0.0
    if measured.loader_rate:
        data_seconds = batch_size / (measured.loader_rate * max(1, loader.workers))
    step = max(compute + loss_seconds, data_seconds, send_seconds)
    rate = batch_size * ranks / step
    waits = {
        "computation": compute,
        "the loss": loss_seconds,
        "data": data_seconds,
        "communication": send_seconds,
    }
    free = HEADROOM * memory_of(hardware) - states - loss_bytes
    return Plan(
        state_bytes=states,
        activation_bytes=activations,
        loss_bytes=loss_bytes,
        compute_seconds=compute,
        loss_seconds=loss_seconds,
        send_seconds=send_seconds,
        sent_bytes=sent,
        images_per_second=rate,
        hours=recipe.run.samples / rate / 3600,
        bound=max(waits, key=lambda name: waits[name]),
        largest_batch=largest_batch(measured, free),
    )


def region_loss_bytes(num_pairs: int, own_pairs: int, embed_dim: int) -> float:
    """Texts of the world and own regions, with gradients; and the dense form's matrices where it is small."""
    rows = (2 * num_pairs + 2 * own_pairs) * embed_dim
    dense = 4.3 * num_pairs * own_pairs if num_pairs * own_pairs <= DENSE_PAIRS else 0.0
    return (rows + dense) * FLOAT


def region_loss_flops(num_pairs: int, ranks: int, embed_dim: int) -> float:
    """Four products of this rank's rows with all columns, one of them forward; the filter is cheap."""
    return 4 * 2 * num_pairs * (num_pairs / ranks) * embed_dim


def sent_bytes(
    num_pairs: int, ranks: int, embed_dim: int, parameters: int, learning: int, fsdp: bool
) -> float:
    """Of one rank in a step: gathered texts and their gradients, and gradients or shards of weights."""
    if ranks == 1:
        return 0.0
    others = (ranks - 1) / ranks
    texts = 2 * num_pairs * embed_dim * others
    # A ring all-reduce sends everything twice. FSDP gathers weights forward and backward, scatters gradients.
    weights = (2 * parameters + learning if fsdp else 2 * learning) * others
    return (texts + weights) * FLOAT


def largest_batch(measured: Measured, free_bytes: float) -> int:
    """Images whose activations fit, a multiple of 8; 0 if not even 8 do."""
    low, high = measured.activations
    per_image = (high - low) / (measured.batch_sizes[1] - measured.batch_sizes[0])
    fixed = measured.activations_at(0)
    if per_image <= 0:
        return 0
    return max(0, int((free_bytes - fixed) / per_image) // 8 * 8)


def memory_of(hardware: Hardware) -> float:
    """Bytes of one device."""
    if hardware.memory_gb:
        return hardware.memory_gb * 2**30
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory)
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _line(places: tuple[int, int], values: tuple[float, float], at: float) -> float:
    """The straight line through two points; never below zero."""
    slope = (values[1] - values[0]) / (places[1] - places[0])
    return max(0.0, values[0] + slope * (at - places[0]))


# --- measuring ------------------------------------------------------------------------------------


def measure(recipe: Recipe) -> tuple[Measured, int]:
    """Run a few real steps; the measurements and D.

    Raises:
        ValueError: If the recipe's model or data cannot be built, or its batch has fewer than two images.
    """
    if recipe.data.loader.batch_size < 2:
        raise ValueError(f"a plan needs a batch of at least 2 images; got {recipe.data.loader.batch_size}")
    run = start(recipe)
    sizes, seconds, activations = [], [], []
    for size in _growing(recipe.data.loader.batch_size):
        step_seconds, step_bytes = measure_step(run, size)
        sizes.append(size)
        seconds.append(step_seconds)
        activations.append(step_bytes)
        if step_seconds > ENOUGH_SECONDS and len(sizes) > 1:
            break
    parameters = list(run.model.parameters())
    measured = Measured(
        batch_sizes=(sizes[-2], sizes[-1]),
        seconds=(seconds[-2], seconds[-1]),
        activations=(activations[-2], activations[-1]),
        parameters=sum(p.numel() for p in parameters),
        learning=sum(p.numel() for p in parameters if p.requires_grad),
        shares=_forward_shares(run.model, make_batch(run, sizes[-2])),
        loader_rate=_loader_rate(run),
        product_rate=_product_rate(run.model.device, run.model.embed_dim),
    )
    return measured, run.model.embed_dim


def start(recipe: Recipe) -> Run:
    """A run of one process without accumulation, whose optimizer has its states."""
    recipe = replace(recipe, run=replace(recipe.run, accumulate=1))
    torch.manual_seed(recipe.run.seed)
    model = create_model(recipe.model).to(choose_device(recipe.run.device or None))
    prepare_model(model, recipe)
    run = Run(
        recipe, Ranks(0, 1, model.device), Path(), model, model, optim.build_optimizer(model, recipe.optim)
    )
    train_step(run, make_batch(run, 2), 0)
    return run


def measure_step(run: Run, batch_size: int) -> tuple[float, int]:
    """Fastest seconds and peak bytes above weights, gradients and optimizer of one training step."""
    batch = make_batch(run, batch_size)
    train_step(run, batch, 0)
    seconds = []
    peak = PeakBytes(run.model.device)
    for step in range(REPEATS):
        started = time.perf_counter()
        train_step(run, batch, step)  # ends with a wait for the device
        seconds.append(time.perf_counter() - started)
    return min(seconds), peak.read()


def make_batch(run: Run, batch_size: int) -> RegionBatch:
    """From the recipe's data, or made up in the shape of the paper's where it names none."""
    loader = replace(run.recipe.data.loader, batch_size=batch_size, workers=0)
    model = run.model
    if run.recipe.data.train:
        batches = RegionLoader(open_data(run.recipe), model.preprocess, model.tokenize, loader)
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


@torch.no_grad()
def _forward_shares(model: CLOC, batch: RegionBatch) -> dict[str, float]:
    """Part of the forward pass in image tower, text tower and Prompter."""
    batch = batch.to(model.device)
    state = model.encode_image(batch.images, batch.content_boxes)
    texts = model.encode_distinct_texts(batch)
    regions = texts[batch.region_text_index]

    def prompt() -> None:
        prompted = model.prompter.prepare(state.image_tokens, state.grid_size)
        model.prompter.embed_boxes(prompted, batch.boxes)
        model.prompter.ground(prompted, regions)

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
    loader = replace(run.recipe.data.loader, batch_size=min(16, run.recipe.data.loader.batch_size), workers=0)
    model = run.model
    data = open_data(run.recipe)
    batches = RegionLoader(data, model.preprocess, model.tokenize, loader, num_samples=5 * loader.batch_size)
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
