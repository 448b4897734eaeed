"""What a run will need: memory a rank, images a second, hours, and what bounds it.

A few steps of the real training step are measured on this machine at two small batch sizes. Towers and
Prompter cost so much an image, so time and memory at another batch size follow a straight line; what does not
(states of the optimizer, the loss over the world's regions, what ranks send) follows from formulas below.

Shapes: B images a rank, R regions an image, D shared embedding, P parameters.
"""

from __future__ import annotations

import ctypes
import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping
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
from open_cloc.training.parallel import Ranks, tower_blocks
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
        gathered: Parameters that FSDP holds whole at one time: all outside of the towers' blocks, and two of
            the largest blocks (one at work, one on its way).
        shares: Part of the forward pass that each component takes.
        loader_rate: Images a second that one worker prepares; 0 where the recipe names no data.
        product_rate: Float32 FLOP/s of a matrix product of the loss's kind.
    """

    batch_sizes: tuple[int, int]
    seconds: tuple[float, float]
    activations: tuple[int, int]
    parameters: int
    learning: int
    gathered: int
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
        state_bytes: Weights, gradients and AdamW's two moments; under FSDP this rank's shards of them, and
            what is gathered.
        activation_bytes: Kept for the backward pass.
        loss_bytes: Gathered texts, their gradients, and the loss's work space.
        compute_seconds: Forward, backward and update.
        loss_seconds: The part of it that grows with the square of the global batch.
        data_seconds: For the workers to prepare a batch, or for the run itself where it has none.
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
    data_seconds: float
    send_seconds: float
    sent_bytes: float
    images_per_second: float
    hours: float
    bound: str
    largest_batch: int

    @property
    def total_bytes(self) -> float:
        return self.state_bytes + self.activation_bytes + self.loss_bytes

    @property
    def seconds_without_data(self) -> float:
        return max(self.compute_seconds + self.loss_seconds, self.send_seconds)


def make_plan(recipe: Recipe, hardware: Hardware, measured: Measured, embed_dim: int) -> Plan:
    """Formulas applied to measurements."""
    loader, ranks = recipe.data.loader, hardware.devices
    batch_size, num_regions, parts = loader.batch_size, loader.num_regions, recipe.run.accumulate
    states = states_bytes(recipe, ranks, measured)
    loss_bytes = losses_bytes(batch_size, ranks, num_regions, embed_dim)
    # All parts but the last are computed forward once more. A backward pass is two forward ones.
    again = (parts - 1) / parts / (4 if recipe.run.grad_checkpointing else 3)
    compute = measured.seconds_at(batch_size) * (1 + again)
    loss_seconds = losses_flops(batch_size, ranks, num_regions, embed_dim) / measured.product_rate
    data_seconds = 0.0
    if measured.loader_rate:
        data_seconds = batch_size / (measured.loader_rate * max(1, loader.workers))
    sent = sent_bytes(recipe, ranks, measured, embed_dim)
    send_seconds = sent / (hardware.bandwidth * 1e9)
    one_after_another = {"computation": compute, "the loss": loss_seconds}
    meanwhile = {"communication": send_seconds}
    (meanwhile if loader.workers else one_after_another)["data"] = data_seconds
    step, bound = step_seconds(one_after_another, meanwhile)
    rate = batch_size * ranks / step
    return Plan(
        state_bytes=states,
        activation_bytes=measured.activations_at(batch_size // parts),
        loss_bytes=loss_bytes,
        compute_seconds=compute,
        loss_seconds=loss_seconds,
        data_seconds=data_seconds,
        send_seconds=send_seconds,
        sent_bytes=sent,
        images_per_second=rate,
        hours=recipe.run.samples / rate / 3600,
        bound=bound,
        largest_batch=largest_batch(measured, HEADROOM * memory_of(hardware) - states - loss_bytes),
    )


def shards_weights(recipe: Recipe, ranks: int) -> bool:
    """Whether the run is FSDP's."""
    return recipe.run.parallel == "fsdp" and ranks > 1


def states_bytes(recipe: Recipe, ranks: int, measured: Measured) -> float:
    """Weights, gradients and two moments on a rank; of FSDP, its shards and what is whole for a while."""
    states = (measured.parameters + 3 * measured.learning) * FLOAT
    if not shards_weights(recipe, ranks):
        return states
    return states / ranks + 2 * measured.gathered * FLOAT  # and their gradients


def sent_bytes(recipe: Recipe, ranks: int, measured: Measured, embed_dim: int) -> float:
    """What one rank sends in a step: texts and their gradients, weights and theirs."""
    loader = recipe.data.loader
    # Texts go forward in the type of the forward pass, their gradients come back in float32.
    text_bytes = FLOAT + (2 if recipe.run.precision == "amp_bf16" else FLOAT)
    texts = loader.batch_size * ranks * (1 + loader.num_regions) * embed_dim * text_bytes
    words = weight_words(measured, recipe.run.accumulate, fsdp=shards_weights(recipe, ranks))
    return (texts + words * FLOAT) * (ranks - 1) / ranks


def losses_bytes(batch_size: int, ranks: int, num_regions: int, embed_dim: int) -> float:
    """Texts of the world and what of this rank meets them, with gradients; dense matrices if small.

    Texts are captions and phrases: 1 + R an image.
    """
    rows = 2 * batch_size * (ranks + 1) * (1 + num_regions) * embed_dim
    region_pairs = (batch_size * num_regions) ** 2 * ranks
    dense = 4.3 * region_pairs if region_pairs <= DENSE_PAIRS else 0.0
    return (rows + dense) * FLOAT


def losses_flops(batch_size: int, ranks: int, num_regions: int, embed_dim: int) -> float:
    """Four products of this rank's rows with all columns, one of them forward; the filter is cheap."""
    pairs = batch_size**2 * ranks * (1 + num_regions**2)  # image-text and region-text
    return 4 * 2 * pairs * embed_dim


def step_seconds(one_after_another: Mapping[str, float], meanwhile: Mapping[str, float]) -> tuple[float, str]:
    """How long a step takes, and which of its parts it waits for most."""
    busy, longest = sum(one_after_another.values()), max(meanwhile, key=lambda name: meanwhile[name])
    if meanwhile[longest] > busy:
        return meanwhile[longest], longest
    return busy, max(one_after_another, key=lambda name: one_after_another[name])


def weight_words(measured: Measured, parts: int, *, fsdp: bool) -> int:
    """Words that a rank sends in a step for weights and their gradients, were there infinitely many ranks.

    A ring all-reduce sends each gradient twice, once for all parts. FSDP gathers weights for each pass,
    forward and backward, of each part, and scatters each part's gradients; all parts but one pass forward
    twice.
    """
    if not fsdp:
        return 2 * measured.learning
    return (3 * parts - 1) * measured.parameters + parts * measured.learning


def largest_batch(measured: Measured, free_bytes: float) -> int:
    """Images whose activations fit, a multiple of 8; 0 if not even 8 do."""
    low, high = measured.activations
    per_image = (high - low) / (measured.batch_sizes[1] - measured.batch_sizes[0])
    fixed = measured.activations_at(0)
    if per_image <= 0:  # a tiny model's are lost in the noise: take all for the images'
        per_image, fixed = max(1, high) / measured.batch_sizes[1], 0.0
    return max(0, int((free_bytes - fixed) / per_image) // 8 * 8)


def memory_of(hardware: Hardware) -> float:
    """Bytes of one device."""
    if hardware.memory_gb:
        return hardware.memory_gb * 2**30
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory)
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _line(places: tuple[int, int], values: tuple[float, float], at: float) -> float:
    """The straight line through two points; never falling, never below zero."""
    slope = max(0.0, (values[1] - values[0]) / (places[1] - places[0]))
    return max(0.0, values[0] + slope * (at - places[0]))


# --- measuring ------------------------------------------------------------------------------------


def measure(recipe: Recipe) -> tuple[Measured, int]:
    """Run a few real steps; the measurements and D.

    Raises:
        ValueError: If the recipe's model or data cannot be built, or its batch has fewer than two images.
    """
    if recipe.data.loader.batch_size < 2:
        raise ValueError(f"a plan needs a batch of at least 2 images; got {recipe.data.loader.batch_size}")
    run = start(replace(recipe, run=replace(recipe.run, accumulate=1)))
    sizes: list[int] = []
    seconds: list[float] = []
    activations: list[int] = []
    for size in _growing(recipe.data.loader.batch_size):
        try:
            step_time, step_bytes = measure_step(run, size)
        except torch.OutOfMemoryError as error:
            if len(sizes) < 2:
                raise ValueError(f"{size} images do not fit this device: plan on a larger one") from error
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
    model = create_model(recipe.model).to(choose_device(recipe.run.device or None))
    model.train()  # a Hugging Face tower recomputes nothing outside of training
    prepare_model(model, recipe)
    run = Run(
        recipe, Ranks(0, 1, model.device), Path(), model, model, optim.build_optimizer(model, recipe.optim)
    )
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
        train_step(run, batch, step)  # ends with a wait for the device
        seconds.append(time.perf_counter() - started)
    return min(seconds), peak.read()


def make_batch(run: Run, batch_size: int) -> RegionBatch:
    """From the recipe's data, or made up in the shape of the paper's where it names none."""
    loader = replace(run.recipe.data.loader, batch_size=batch_size, workers=0, lanes=1)
    model = run.model
    if run.recipe.data.train:
        data = open_data(run.recipe)
        batches = RegionLoader(data, model.preprocess, model.tokenize, loader, num_samples=batch_size)
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
    bf16 = run.recipe.run.precision == "amp_bf16"
    with torch.no_grad(), torch.autocast(run.model.device.type, torch.bfloat16, enabled=bf16):
        return _component_shares(run.model, batch.to(run.model.device))


def _component_shares(model: CLOC, batch: RegionBatch) -> dict[str, float]:
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
    loader = run.recipe.data.loader
    loader = replace(loader, batch_size=min(16, loader.batch_size), workers=0, lanes=1)
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
