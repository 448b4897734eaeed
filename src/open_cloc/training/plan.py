"""What a run will need: memory a rank, images a second, hours, and what bounds it.

A few steps of the real training step are measured on this machine at two small batch sizes. Towers and
Prompter cost so much an image, so time and memory at another batch size follow a straight line; what does not
(states of the optimizer, the loss over the world's regions, what ranks send) follows from formulas below.

Shapes: B images a rank, R regions an image, D shared embedding, P parameters.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from open_cloc.devices import choose_device
from open_cloc.errors import UserError
from open_cloc.objectives.pairs.losses import most_dense_pairs
from open_cloc.training.recipe import Recipe

FLOAT = 4  # bytes

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
            raise UserError(
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
        data_seconds: Time in which the workers, or the run itself where it has none, prepare a batch.
        send_seconds: Collectives, if nothing hides them.
        sent_bytes: Bytes that one rank sends in one step.
        images_per_second: Throughput of all ranks together.
        hours: Length of the whole run.
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
    batch_size, num_regions = recipe.run.rank_batch_size(ranks), loader.num_regions
    parts = recipe.run.accumulate
    states = states_bytes(recipe, ranks, measured)
    most_dense = most_dense_pairs(choose_device(recipe.run.device or None))
    loss_bytes = losses_bytes(batch_size, ranks, num_regions, embed_dim, most_dense)
    # All parts but the last are computed forward once more. A backward pass is two forward ones.
    again = (parts - 1) / parts / (4 if recipe.run.grad_checkpointing else 3)
    compute = measured.seconds_at(batch_size) * (1 + again)
    loss_seconds = losses_flops(batch_size, ranks, num_regions, embed_dim) / measured.product_rate
    data_seconds = 0.0
    if measured.loader_rate:
        data_seconds = batch_size / (measured.loader_rate * max(1, loader.num_workers))
    sent = sent_bytes(recipe, ranks, measured, embed_dim)
    send_seconds = sent / (hardware.bandwidth * 1e9)
    one_after_another = {"computation": compute, "the loss": loss_seconds}
    meanwhile = {"communication": send_seconds}
    (meanwhile if loader.num_workers else one_after_another)["data"] = data_seconds
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
    text_bytes = FLOAT + (2 if recipe.run.precision == "bf16" else FLOAT)
    texts = recipe.run.global_batch_size * (1 + loader.num_regions) * embed_dim * text_bytes
    whole = FLOAT if recipe.run.precision != "bf16" else 2
    weights = weight_bytes(measured, recipe.run.accumulate, whole if shards_weights(recipe, ranks) else 0)
    return (texts + weights) * (ranks - 1) / ranks


def losses_bytes(batch_size: int, ranks: int, num_regions: int, embed_dim: int, most_dense: int) -> float:
    """Texts of the world and what of this rank meets them, with gradients; dense matrices if small.

    Texts are captions and phrases: 1 + R an image.
    """
    rows = 2 * batch_size * (ranks + 1) * (1 + num_regions) * embed_dim
    region_pairs = (batch_size * num_regions) ** 2 * ranks
    dense = 4.3 * region_pairs if region_pairs <= most_dense else 0.0
    return (rows + dense) * FLOAT


def losses_flops(batch_size: int, ranks: int, num_regions: int, embed_dim: int) -> float:
    """Products of this rank's rows with all columns: logits twice, two gradients, and conflicts twice."""
    pairs = batch_size**2 * ranks
    return 2 * embed_dim * (4 * pairs + 6 * pairs * num_regions**2)


def step_seconds(one_after_another: Mapping[str, float], meanwhile: Mapping[str, float]) -> tuple[float, str]:
    """How long a step takes, and which of its parts it waits for most."""
    busy, longest = sum(one_after_another.values()), max(meanwhile, key=lambda name: meanwhile[name])
    if meanwhile[longest] > busy:
        return meanwhile[longest], longest
    return busy, max(one_after_another, key=lambda name: one_after_another[name])


def weight_bytes(measured: Measured, parts: int, gathered: int) -> int:
    """Bytes that a rank sends in a step for weights and their gradients, were there infinitely many ranks.

    A ring all-reduce sends each gradient twice, once for all parts. FSDP gathers weights for each pass,
    forward and backward, of each part, and scatters each part's gradients; all parts but one pass forward
    twice.

    Args:
        measured: What the model measures.
        parts: Of the batch.
        gathered: Bytes of a weight as FSDP gathers it; 0 for DDP.
    """
    if not gathered:
        return 2 * measured.learning * FLOAT
    return (3 * parts - 1) * measured.parameters * gathered + parts * measured.learning * FLOAT


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
