"""Checkpoints by torch.distributed.checkpoint: each rank writes its share, in the background, whole or not.

`checkpoints/step_00001000/` holds `state/`, weights and AdamW's moments by parameter name in shards that any
number of ranks can read; `config.json`, so that every command takes the folder as `--weights`; and
`training_state.json`. The folder has a temporary name until all are there: what has its final name is whole.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from open_cloc.data.permutation import WRITTEN
from open_cloc.errors import MissingFileError, RunError, UserError
from open_cloc.model import sharded, weights
from open_cloc.model.adapters import is_adapter
from open_cloc.model.cloc import CLOC
from open_cloc.training.optim import OBJECTIVES_PREFIX
from open_cloc.training.parallelize import (
    share_buffers,
)
from open_cloc.training.ranks import Ranks
from open_cloc.training.recipe import RunConfig

logger = logging.getLogger(__name__)

STATE_NAME = "training_state.json"

WRITING = ".writing_"

STEP_FOLDER = re.compile(r"step_(\d{8})")


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        step: Updates made.
        global_batch_size: Images in each of them, over all ranks.
        world_size: Ranks that made them.
        tried: Samples that were tried.
        bad: Those of them that could not be used.
        skipped: Updates that were left out, as a loss or the gradient was not finite.
        order: How the order of many samples comes about, as for `permutation`; version 0.1 did not say it.
    """

    step: int
    global_batch_size: int
    world_size: int
    tried: int = 0
    bad: int = 0
    skipped: int = 0
    order: int = WRITTEN


class State(NamedTuple):
    """What changes from step to step.

    Attributes:
        model: Whole, or its parameters this rank's shards.
        objectives: With parameters and a teacher of their own, if they have any.
        optimizer: AdamW over what learns of both.
    """

    model: CLOC
    objectives: nn.Module
    optimizer: torch.optim.Optimizer


def state_tensors(state: State) -> dict[str, Tensor]:
    """Every tensor of a state, in place: `model.NAME`, `objectives.NAME`, `optimizer.NAME.exp_avg`, ..."""
    model, objectives, optimizer = state
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    names |= {p: f"{OBJECTIVES_PREFIX}{name}" for name, p in objectives.named_parameters()}
    tensors = {f"{sharded.MODEL_PREFIX}{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"{OBJECTIVES_PREFIX}{name}": t for name, t in objectives.state_dict().items()}
    for parameter, moments in optimizer.state.items():
        tensors |= {f"optimizer.{names[parameter]}.{key}": value for key, value in moments.items()}
    return tensors


class Saver:
    """Writes a run's checkpoints in the background, one at a time, and drops all but the newest `keep`.

    Use as a context: leaving it waits for the last one. Every rank must call `save` at the same steps.
    """

    def __init__(self, folder: Path, state: State, ranks: Ranks, *, keep: int) -> None:
        self.folder, self.state, self.ranks, self.keep = folder, state, ranks, keep
        self.thread = ThreadPoolExecutor(1)
        self.pending: Future[Path] | None = None
        ranks.on_first(self._clear_leftovers)

    def _clear_leftovers(self) -> None:
        for leftover in self.folder.glob(f"{WRITING}*"):  # of a run that was killed while it saved
            shutil.rmtree(leftover)

    def save(self, progress: Progress) -> None:
        """Copy the state and begin to write it as `step_XXXXXXXX`; waits for the one before.

        Raises:
            RunError: If the one before could not be written.
            UserError: If the ranks do not share the folder.
        """
        self.wait()
        share_buffers(self.state.model, self.ranks)
        temporary = self.folder / f"{WRITING}step_{progress.step:08d}"
        written = dcp.async_save(
            state_tensors(self.state),
            storage_writer=dcp.FileSystemWriter(temporary / sharded.SHARDS_FOLDER),
            process_group=self.ranks.saving,
        )
        assert isinstance(written, Future)
        self.pending = self.thread.submit(self._complete, written, temporary, progress)

    def _complete(self, written: Future[Any], temporary: Path, progress: Progress) -> Path:
        """Once every rank has written its share, the first one gives the folder its name."""
        target = self.folder / temporary.name.removeprefix(WRITING)

        def give_name() -> None:
            _require_all_shards(temporary)
            weights.save_config(self.state.model, temporary)
            (temporary / STATE_NAME).write_text(json.dumps(asdict(progress)) + "\n", encoding="utf-8")
            temporary.rename(target)

        try:
            written.result()
            self.ranks.on_first(give_name, self.ranks.saving)
        except (OSError, UserError, dcp.CheckpointException) as error:
            if self.ranks.is_first:
                shutil.rmtree(temporary, ignore_errors=True)  # what is there of it takes the space that lacks
            whole = list_checkpoints(self.folder)
            kept = f"the last whole one is {whole[-1]}" if whole else "there is none before it"
            kind = (
                UserError if isinstance(error, UserError) else RunError
            )  # what the disk cannot do is no mistake
            raise kind(f"checkpoint {target} cannot be written: {_reason(error)}; {kept}") from error
        if self.ranks.is_first:
            self._drop_old()
        return target

    def _drop_old(self) -> None:
        for old in list_checkpoints(self.folder)[: -self.keep]:
            # Half gone it must not have its name any more.
            shutil.rmtree(old.rename(self.folder / f"{WRITING}{old.name}"), ignore_errors=True)

    def has_failed(self) -> bool:
        """Whether the one being written is known to have failed; `wait` then says why."""
        return self.pending is not None and self.pending.done() and self.pending.exception() is not None

    def wait(self) -> None:
        """Wait until the one being written is whole.

        Raises:
            RunError: If it could not be written.
            UserError: If the ranks do not share the folder.
        """
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.wait()
            elif self.pending is not None:
                wait([self.pending])  # a run that fails later on still leaves it
        finally:
            self.thread.shutdown()


def _require_all_shards(folder: Path) -> None:
    """Each rank's file must be where the first rank looks: on several machines `/tmp` is not.

    Raises:
        MissingFileError: If one is elsewhere.
    """
    names = sharded.shard_names(folder)
    lacking = [name for name in names if not (folder / sharded.SHARDS_FOLDER / name).is_file()]
    if lacking:
        raise MissingFileError(
            f"{lacking[0]} is not where the first rank looks; the run folder must lie on storage that all "
            "ranks share"
        )


def _reason(error: BaseException) -> str:
    """The first line of what went wrong, on whichever rank it did."""
    if isinstance(error, dcp.CheckpointException) and error.failures:
        rank, (cause, _) = next(iter(error.failures.items()))
        return f"{_reason(cause)} (rank {rank})"
    said = (str(error) or type(error).__name__).splitlines()[0]
    below: BaseException | None = error
    while below is not None:  # torch's own complaint may hide what the system said
        if isinstance(below, OSError) and below.strerror:
            return below.strerror
        below = below.__cause__ or below.__context__
    return f"{said}: is the disk full?" if "inline_container" in said else said


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if STEP_FOLDER.fullmatch(path.name))


def find_checkpoint(resume: str, folder: Path) -> Path | None:
    """The checkpoint that `--resume` names.

    Args:
        resume: `latest`, a checkpoint's path, or `auto`: the latest, or None where there is none.
        folder: The run's folder of checkpoints, which will get further ones.

    Raises:
        MissingFileError: If there is none.
        UserError: If the run has come further than the one named.
    """
    own = list_checkpoints(folder)
    if resume in ("latest", "auto"):
        if not own and resume == "latest":
            raise MissingFileError(f"nothing to resume: {folder} holds no checkpoint")
        return own[-1] if own else None
    path = Path(resume)
    if not (path / STATE_NAME).is_file():
        raise MissingFileError(f"{path} is no checkpoint to resume from: it holds no {STATE_NAME}")
    step = read_progress(path).step
    if own and int(own[-1].name.removeprefix("step_")) > step:
        raise UserError(
            f"run folder {folder.parent} has come to {own[-1].name} already: to go on from step {step} of "
            f"{path}, give another --run.output"
        )
    return path


def read_progress(path: Path) -> Progress:
    """How far the run had come that wrote a checkpoint.

    Raises:
        UserError: If the file is damaged.
    """
    try:
        return Progress(**json.loads((path / STATE_NAME).read_text(encoding="utf-8")))
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"{path / STATE_NAME} cannot be read: {_reason(error)}") from error


def load_checkpoint(path: Path, state: State, ranks: Ranks, global_batch_size: int) -> Progress:
    """Put a run back where it was, on any number of ranks; tells how far it had come.

    Learning rates and the like stay as the optimizer has them, so that a resumed run may change them.

    Raises:
        UserError: If the checkpoint is of another architecture, another set of learned parameters, another
            global batch size or another cleaning of texts, or damaged.
    """
    progress = read_progress(path)
    if progress.global_batch_size != global_batch_size:
        raise UserError(
            f"{path} was written with batches of {progress.global_batch_size} over all ranks; got batches of "
            f"{global_batch_size}: the samples to come would not be those of an unbroken run"
        )
    trained = weights.read_config(path)["texts"]["lower_case"]
    if trained != state.model.cleaning.lower_case:
        raise UserError(
            f"{path} was trained with model.lower_case {trained}; got {state.model.cleaning.lower_case}: its "
            "texts would no longer be those that it knows"
        )
    _make_moments(state.optimizer)
    tensors = state_tensors(state)
    own = {name: tensor.shape for name, tensor in tensors.items()}
    saved = sharded.read_shapes(path)
    if any(map(is_adapter, own)) != any(map(is_adapter, saved)):
        how = "with" if any(map(is_adapter, saved)) else "without"
        raise UserError(f"{path} was trained {how} adapters: go on with the same --optim.lora-rank")
    if any(saved.get(name, shape) != shape for name, shape in own.items() if is_adapter(name)):
        raise UserError(f"{path} was trained with adapters of another rank: go on with its --optim.lora-rank")
    weights.require_same_shapes(sharded.of_model(own), sharded.of_model(saved), str(path))
    if saved.keys() != own.keys():
        raise UserError(
            f"{path} was written by a run with another set of learned parameters: resume it with the same "
            "locked towers, objectives and number of regions"
        )
    sharded.load_shards(path, tensors, process_group=ranks.saving)
    return progress


def _make_moments(optimizer: torch.optim.Optimizer) -> None:
    """AdamW's state as its first step makes it, to be filled."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


class SaveClock:
    """Knows when a checkpoint is due."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.reset()

    def reset(self) -> None:
        """One has been written."""
        self.saved_at = time.monotonic()

    def is_due(self, step: int) -> bool:
        """By the number of steps, which all ranks agree on."""
        return self.config.save_steps > 0 and step % self.config.save_steps == 0

    def is_late(self) -> bool:
        """By this process's clock."""
        return time.monotonic() - self.saved_at > 60 * self.config.save_minutes
