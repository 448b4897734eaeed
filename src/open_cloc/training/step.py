"""One update of a run, from a batch on the CPU to new weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from open_cloc.devices import copied
from open_cloc.model.cloc import CLOC
from open_cloc.objectives import Objectives
from open_cloc.samples import RegionBatch
from open_cloc.training import checkpoint, optim
from open_cloc.training.accumulate import Forward, split_batch
from open_cloc.training.gather import Begun, gather_with_notes
from open_cloc.training.health import health_of, separable
from open_cloc.training.parallelize import average_gradients, running_statistics, whole_state
from open_cloc.training.ranks import Ranks
from open_cloc.training.recipe import Recipe
from open_cloc.training.watch import NOTHING_TOLD, Notes, Said


@dataclass(frozen=True)
class Run:
    """What the steps of a run need.

    Attributes:
        recipe: The run, written down.
        ranks: The processes that do it.
        folder: Run folder.
        model: Whole, or its parameters this rank's shards.
        objectives: The terms of the loss, with parameters and a teacher of their own if they have any.
        network: Called in the model's place; reduces gradients over the ranks.
        optimizer: AdamW over what learns of the model and the objectives.
        compiled: Whether the model's blocks are compiled.
    """

    recipe: Recipe
    ranks: Ranks
    folder: Path
    model: CLOC
    objectives: Objectives
    network: nn.Module
    optimizer: torch.optim.Optimizer
    compiled: bool = False

    @property
    def global_batch_size(self) -> int:
        return self.recipe.run.global_batch_size

    @property
    def state(self) -> checkpoint.State:
        """All that a checkpoint holds."""
        return checkpoint.State(self.model, self.objectives, self.optimizer)

    @cached_property
    def statistics(self) -> list[Tensor]:
        """Running statistics of batch norms, which a forward pass changes."""
        return running_statistics(self.model)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The model's and the objectives' own."""
        return [*self.model.parameters(), *self.objectives.parameters()]


def train_step(run: Run, batch: RegionBatch, step: int, notes: Notes = NOTHING_TOLD) -> Said:
    """One update; none where a loss or the gradient is not finite, which the device decides.

    Args:
        run: What the step needs.
        batch: This rank's, on the CPU.
        step: Updates before this one.
        notes: What this rank tells the others.

    Returns:
        The losses by name and the gradient's norm, those of all ranks, all ranks' notes and, each
        `run.health_steps`, how this rank's part of the batch looks; on the device.
    """
    recipe, optimizer, objectives = run.recipe, run.optimizer, run.objectives
    forward = Forward(
        run.network,
        copied(split_batch(batch, recipe.run.accumulate), run.ranks.device),
        needs=objectives.needs,
        teacher=objectives.teacher,
        precision=recipe.run.precision,
        place=(recipe.run.seed, step, run.ranks.rank),
    )
    statistics = [(buffer, buffer.clone()) for buffer in run.statistics]
    begun = Begun(objectives.gathered)
    features = forward.features(begun)
    numbers = torch.tensor([*map(int, notes)])
    gathered, told = gather_with_notes(features, objectives.gathered, numbers, begun)
    looking = recipe.run.health_steps > 0 and (step + 1) % recipe.run.health_steps == 0
    if looking:
        gathered = separable(gathered)
    losses = objectives(gathered)
    health = health_of(gathered, losses, objectives.terms) if looking else {}
    optimizer.zero_grad()
    losses["total"].backward()
    forward.backward(features)  # for a batch in parts: from the features on, where the graph ended
    average_gradients(objectives, run.ranks)
    grad_norm = optim.clip_gradient(run.parameters, recipe.optim.grad_clip)
    losses = {name: value.detach() for name, value in losses.items()} | {"grad_norm": grad_norm}
    optim.update_if_finite(optimizer, losses, statistics)
    optim.clamp_logit_scale(run.model, recipe.optim.max_logit_scale)
    if objectives.teacher is not None:
        objectives.teacher.follow(whole_state(run.model))
    return Said(losses, told, health)
