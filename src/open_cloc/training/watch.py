"""What the steps of a run say, read without waiting for the device that computes them.

A step's losses, and what its ranks tell each other, are copied to the host in the background. From a GPU they
are read when the next step is on its way, so that the device never stands still for them; a CPU has them at
once. All ranks read the same numbers at the same step, and so decide alike.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from open_cloc.errors import NotFiniteError
from open_cloc.samples import RegionBatch

logger = logging.getLogger(__name__)

PATIENCE = 3  # batches without an outline


class Notes(NamedTuple):
    """What ranks tell each other in a step: of one rank, or added up over all.

    Attributes:
        asked: Ranks that were asked to stop.
        failed: Ranks whose checkpoint cannot be written.
        late: Whether the first rank's clock wants a checkpoint.
        tried: Samples that were tried.
        bad: Those of them that could not be used.
    """

    asked: int
    failed: int
    late: int
    tried: int
    bad: int


NOTHING_TOLD = Notes(0, 0, 0, 0, 0)


class Said(NamedTuple):
    """What a step says, still on the device.

    Attributes:
        losses: By name, and the gradient's norm: scalars of all ranks.
        notes: (5,) the sums of all ranks' `Notes`.
        health: Scalars of this rank's batch, in some steps.
    """

    losses: dict[str, Tensor]
    notes: Tensor
    health: Mapping[str, Tensor] = {}


class Watch:
    """What steps say on its way to the host.

    Attributes:
        values: Losses of the newest step that is known.
        notes: Its notes. What they ask for stays asked in each step until it is done.
        health: Of the newest step that has looked at it.
        skipped: Steps of the run, so far as is known, that changed nothing as something was not finite.
    """

    def __init__(self, skipped: int, most_skipped: int) -> None:
        """Begin behind what a resumed run has skipped already.

        Args:
            skipped: So many.
            most_skipped: One more ends the run.
        """
        self.skipped, self.most_skipped = skipped, most_skipped
        self.values: dict[str, float] = {}
        self.health: dict[str, float] = {}
        self.notes = NOTHING_TOLD
        self._coming: list[_Coming] = []

    def put(self, step: int, said: Said) -> None:
        """Take what update number `step` (from 1) says, and read what has come.

        Raises:
            NotFiniteError: If too many steps had to be skipped.
        """
        self._coming.append(_Coming(step, said))
        newest_may_wait = self._coming[-1].copied is not None
        self._read(len(self._coming) - newest_may_wait)

    def settle(self) -> None:
        """Wait for everything that is on its way.

        Raises:
            NotFiniteError: As from `put`.
        """
        self._read(len(self._coming))

    def take_health(self) -> dict[str, float]:
        """What has been seen of the run's health since the last time."""
        health, self.health = self.health, {}
        return health

    def _read(self, count: int) -> None:
        ready, self._coming = self._coming[:count], self._coming[count:]
        for coming in ready:
            self.values, health, self.notes = coming.read()
            self.health = health or self.health
            bad = next((name for name, value in self.values.items() if not math.isfinite(value)), "")
            if bad:
                self._skip(coming.step, bad)

    def _skip(self, step: int, bad: str) -> None:
        self.skipped += 1
        values = ", ".join(f"{name}={value:g}" for name, value in self.values.items())
        what = f"{bad} is not finite at step {step} ({values})"
        if self.skipped > self.most_skipped or self.skipped == step:
            raise NotFiniteError(
                f"{what}: {self.skipped} of {step} steps changed nothing for such a reason, and "
                f"run.max_skipped_steps is {self.most_skipped}; lower optim.lr, or look at the batches; "
                "checkpoints hold good weights"
            )
        logger.warning(
            "%s: this step changes nothing; such steps so far: %d, at most %d (run.max_skipped_steps)",
            what,
            self.skipped,
            self.most_skipped,
        )


class _Coming:
    """One step's numbers between device and host."""

    def __init__(self, step: int, said: Said) -> None:
        self.step, self.names, self.looked_at = step, tuple(said.losses), tuple(said.health)
        values = torch.stack([value.float() for value in (*said.losses.values(), *said.health.values())])
        self.values, self.notes = _to_host(values), _to_host(said.notes)
        self.copied: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self.copied = torch.cuda.Event()
            self.copied.record()

    def read(self) -> tuple[dict[str, float], dict[str, float], Notes]:
        if self.copied is not None:
            self.copied.synchronize()
        values = self.values.tolist()
        health = dict(zip(self.looked_at, values[len(self.names) :]))
        return dict(zip(self.names, values)), health, Notes(*self.notes.tolist())


def _to_host(tensor: Tensor) -> Tensor:
    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


class Outlines:
    """Says it if a run asks for regions by their outlines and its first batches have none."""

    def __init__(self, share: float) -> None:
        """Begin, with the share of regions that is asked for so."""
        self.left = PATIENCE if share else 0

    def look(self, batch: RegionBatch) -> None:
        """Look at a batch, until one has outlines or it has been said."""
        if not self.left:
            return
        self.left = self.left - 1 if batch.masks is None else 0
        if not self.left and batch.masks is None:
            logger.warning(
                "data.loader.masks: none of the first %d batches has an outline; readers with masks= "
                "read them, such as coco:FILE,masks=true",
                PATIENCE,
            )
