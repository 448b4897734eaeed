"""`open-cloc plan RECIPE [--section.field VALUE ...] [--hardware.devices N ...] [--check]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from math import ceil
from pathlib import Path

import torch

from open_cloc.cli.parse import check_result_file
from open_cloc.cli.recipe import RecipeField, parse_options
from open_cloc.cli.screen import say
from open_cloc.devices import choose_device
from open_cloc.errors import UserError
from open_cloc.files import write_json
from open_cloc.objectives.pairs.losses import most_dense_pairs
from open_cloc.shown import hide_secrets
from open_cloc.training.measure import measure, measure_step, start
from open_cloc.training.plan import Hardware, Measured, Plan, make_plan, memory_of
from open_cloc.training.recipe import Recipe

GIB = 2**30

SMALL_REGION_COST = 0.15  # of the forward pass: below, fewer regions would save little


@dataclass(frozen=True)
class Options:
    """Predict what a run needs, from a few measured steps.

    Attributes:
        recipe: What to plan; every field can be overridden. The batch is shared by all devices.
        hardware: What it will run on.
        check: Measure a step at the recipe's batch size too, and print it beside the prediction.
        output: JSON file to write, if any.
    """

    recipe: RecipeField
    hardware: Hardware = field(default_factory=Hardware)
    check: bool = False
    output: Path | None = None


def main(argv: Sequence[str]) -> int:
    """Exit codes: 0 planned, 2 wrong input."""
    if not argv or argv[0] in ("-h", "--help"):
        say("usage: open-cloc plan RECIPE [--section.field VALUE ...] [--hardware.devices N] [--check]")
        return 0 if argv else 2
    options = parse_options(Options, "plan", argv)
    check_result_file(options.output, ("recipe", "measured", "plan"))
    recipe, hardware = options.recipe, options.hardware
    measured, embed_dim = measure(recipe, hardware.devices)
    plan = make_plan(recipe, hardware, measured, embed_dim)
    lines = describe(recipe, hardware, measured, plan)
    result = {"recipe": asdict(recipe), "measured": asdict(measured), "plan": asdict(plan)}
    if options.check:
        checked, told = _check(alone_on_one(recipe, hardware), hardware, measured, embed_dim)
        result["checked"] = checked
        lines += told
    if options.output:
        write_json(options.output, hide_secrets(result))
    say("\n".join(lines))
    return 0


def alone_on_one(recipe: Recipe, hardware: Hardware) -> Recipe:
    """The recipe of one device's share of the batch."""
    size = recipe.run.rank_batch_size(hardware.devices)
    return replace(recipe, run=replace(recipe.run, global_batch_size=size))


def _check(
    recipe: Recipe, hardware: Hardware, measured: Measured, embed_dim: int
) -> tuple[dict[str, float], list[str]]:
    """A measured step of a batch on one device, and lines that show it beside its plan."""
    size = recipe.run.global_batch_size
    alone = make_plan(recipe, replace(hardware, devices=1), measured, embed_dim)
    try:
        seconds, activations = measure_step(start(recipe), size)
    except torch.OutOfMemoryError as error:
        raise UserError(f"nothing to check: {size} images do not fit this device") from error
    lines = [
        f"\nchecked at {size} images: predicted, measured",
        f"  seconds a step   {alone.compute_seconds + alone.loss_seconds:10.3f} {seconds:10.3f}",
        f"  activations, GiB {alone.activation_bytes / GIB:10.3f} {activations / GIB:10.3f}",
    ]
    return {"seconds": seconds, "activations": activations}, lines


def describe(recipe: Recipe, hardware: Hardware, measured: Measured, plan: Plan) -> list[str]:
    """The plan in words and numbers, a line each."""
    loader = recipe.data.loader
    size, world = recipe.run.rank_batch_size(hardware.devices), recipe.run.global_batch_size
    step = world / plan.images_per_second
    shares = ", ".join(f"{name} {share:.0%}" for name, share in measured.shares.items())
    return [
        f"{recipe.name}: {hardware.devices} x {size} = {world:,} images and up to "
        f"{world * loader.num_regions:,} regions a step",
        f"measured here at {measured.batch_sizes[0]} and {measured.batch_sizes[1]} images: "
        f"{measured.seconds[0]:.3f} and {measured.seconds[1]:.3f} s a step",
        "",
        f"memory a rank    {plan.total_bytes / GIB:8.2f} GiB of {memory_of(hardware) / GIB:.0f}",
        f"  states         {plan.state_bytes / GIB:8.2f}     {measured.parameters / 1e6:.1f} M parameters, "
        f"{measured.learning / 1e6:.1f} M of them learn",
        f"  activations    {plan.activation_bytes / GIB:8.2f}",
        f"  loss           {plan.loss_bytes / GIB:8.2f}     {loss_form(recipe, hardware)}",
        "",
        f"step             {step:8.3f} s",
        f"  computation    {plan.compute_seconds:8.3f}     forward: {shares}",
        f"  loss, beyond   {plan.loss_seconds:8.3f}     {plan.loss_seconds / step:.2%} of the step",
        f"  data           {plan.data_seconds:8.3f}     "
        f"{f'{loader.num_workers} workers, meanwhile' if loader.num_workers else 'no workers: on top'}",
        f"  communication  {plan.send_seconds:8.3f}     {plan.sent_bytes / 1e9:.2f} GB, nothing hidden",
        "",
        f"{plan.images_per_second:,.1f} images/s; {recipe.run.samples:,} images take {plan.hours:,.1f} hours",
        f"bound by {plan.bound}",
        *(f"- {line}" for line in suggestions(recipe, hardware, measured, plan)),
    ]


def loss_form(recipe: Recipe, hardware: Hardware) -> str:
    """Which form the region loss takes: it chooses by size."""
    pairs = recipe.run.rank_batch_size(hardware.devices) * max(1, recipe.data.loader.num_regions)
    most = most_dense_pairs(choose_device(recipe.run.device or None))
    dense = pairs * pairs * hardware.devices <= most
    return "dense matrices" if dense else "tiles, nothing quadratic"


def suggestions(recipe: Recipe, hardware: Hardware, measured: Measured, plan: Plan) -> list[str]:
    """What to change, if anything."""
    loader, lines = recipe.data.loader, []
    size = recipe.run.rank_batch_size(hardware.devices)
    if plan.largest_batch < 8:
        lines.append(
            "memory: not even 8 images fit: shard the states with --run.parallel fsdp on more devices"
        )
    elif plan.largest_batch < size:
        parts = next(m for m in range(1, size + 1) if size % m == 0 and size // m <= plan.largest_batch)
        lines.append(f"batch: {plan.largest_batch} images fit at once: use --run.accumulate {parts}")
    else:
        lines.append(f"batch: up to {plan.largest_batch} images a rank fit")
    share = measured.shares["Prompter"]
    if loader.num_regions and share > SMALL_REGION_COST:
        lines.append(
            f"regions: the Prompter takes {share:.0%} of the forward pass with M = {loader.num_regions}; "
            "M = 2 is nearly as good in the paper (its ablation table, row 12)"
        )
    elif loader.num_regions:
        lines.append(
            f"regions: M = {loader.num_regions} costs {share:.0%} of the forward pass: fewer save little"
        )
    if measured.loader_rate:
        needed = size / plan.seconds_without_data / measured.loader_rate
        lines.append(
            f"data: one worker prepares {measured.loader_rate:,.0f} images/s; a rank needs {ceil(needed)}"
        )
    return lines
