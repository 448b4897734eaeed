"""The teacher of a run: a copy of the model that learns nothing by itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from open_cloc.samples import Features, RegionBatch

PREFIX = "teacher."  # starts the paths of what objectives need of it


class Teacher(nn.Module):
    """A frozen copy of the model, or the running mean of its weights (EMA); part of each checkpoint.

    Attributes:
        model: The copy.
        momentum: Share of its own weights that it keeps in each step; 1 is frozen.
    """

    def __init__(self, model: nn.Module, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.model: Any = deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, batch: RegionBatch, needs: Collection[str]) -> Features:
        """The batch's features that are needed as `teacher.NAME`."""
        return self.model(batch, {path.removeprefix(PREFIX) for path in needs if path.startswith(PREFIX)})

    def train(self, mode: bool = True) -> Teacher:
        """It stays in eval mode: no dropout, no statistics."""
        return super().train(False)

    @torch.no_grad()
    def follow(self, student: Mapping[str, Tensor]) -> None:
        """Move towards a student's state, its tensors by name."""
        if self.momentum == 1:
            return
        for name, own in self.model.state_dict().items():
            new = student[name].to(own.device)
            if own.is_floating_point():
                own.lerp_(new.to(own.dtype), 1 - self.momentum)
            else:
                own.copy_(new)
