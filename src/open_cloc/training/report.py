"""Where a run's numbers go: `log.jsonl`, TensorBoard, W&B when asked, and a progress bar."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from tqdm import tqdm

from open_cloc.errors import UserError
from open_cloc.files import speaking_of, write_text
from open_cloc.samples import RegionBatch
from open_cloc.training.ranks import Ranks
from open_cloc.training.recipe import RunConfig

LOG_NAME = "log.jsonl"
SURE_AFTER = 3  # logged steps

logger = logging.getLogger(__name__)


class Writer(Protocol):
    """One place that takes numbers."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonlWriter:
    """One JSON object a line in `log.jsonl`; a resumed run goes on behind the step it resumed from."""

    def __init__(self, folder: Path, start_step: int) -> None:
        self.path = folder / LOG_NAME
        write_text(self.path, "".join(_lines_up_to(self.path, start_step)))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        # Nothing stays in a buffer, which a full disk would have fail once more when it is closed.
        with speaking_of(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **scalars}) + "\n")

    def close(self) -> None:
        """Nothing is open."""


def _lines_up_to(path: Path, step: int) -> list[str]:
    if step == 0 or not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    # The last line of a killed run may be cut short.
    whole = [line for line in lines if line.endswith("}\n")]
    return [line for line in whole if json.loads(line)["step"] <= step]


class TensorBoardWriter:
    """Scalars under `tensorboard/`."""

    def __init__(self, folder: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = start_step + 1 if start_step else None  # what a run that got further has written
        self.writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self.writer.add_scalar(f"train/{name}", value, step)

    def close(self) -> None:
        self.writer.close()


class WandbWriter:
    """A W&B run named after the run folder, continued on resume."""

    def __init__(self, folder: Path, start_step: int) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError("report_to wandb needs the extra: pip install 'open-cloc[wandb]'") from error
        self.run = wandb.init(project="open-cloc", id=folder.name, name=folder.name, resume="allow")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self.run.log({f"train/{name}": value for name, value in scalars.items()}, step=step)

    def close(self) -> None:
        self.run.finish()


WRITERS: dict[str, Callable[[Path, int], Writer]] = {"tensorboard": TensorBoardWriter, "wandb": WandbWriter}


class Report:
    """All of a run's writers and its progress bar, which shows images per second and the time left.

    Only the first process writes and shows anything. The bar shows the numbers named in `shown`, which are
    losses: one that stays 0 is told of, as nothing would be learned from it.
    """

    def __init__(
        self, folder: Path, config: RunConfig, ranks: Ranks, *, start_step: int, shown: Sequence[str]
    ) -> None:
        unknown = sorted(set(config.report_to) - set(WRITERS))
        if unknown:
            raise UserError(f"unknown report_to {unknown[0]!r}; expected {' or '.join(WRITERS)}")
        self.batch_size, self.shown = config.global_batch_size, shown
        self._zeros = dict.fromkeys(shown, 0)  # losses that have never been anything else -> logged steps
        self.writers: list[Writer] = []
        if ranks.is_first:
            self.writers = [WRITERS[name](folder, start_step) for name in config.report_to]
            self.writers.append(JsonlWriter(folder, start_step))
        hidden: Any = (
            {} if config.progress and ranks.is_first else {"disable": True}
        )  # else TQDM_DISABLE decides
        self.bar = tqdm(
            total=config.samples,
            initial=start_step * self.batch_size,
            unit="img",
            unit_scale=True,
            dynamic_ncols=True,
            **hidden,
        )

    def __enter__(self) -> Report:
        return self

    def advance(self) -> None:
        """One step further."""
        self.bar.update(self.batch_size)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Hand numbers to every writer."""
        for writer in self.writers:
            writer.write(step, scalars)
        values = {name: f"{scalars[name]:.3f}" for name in self.shown if name in scalars}
        self.bar.set_postfix(values, refresh=False)
        self._zeros = {name: n + 1 for name, n in self._zeros.items() if scalars.get(name) == 0}
        self._tell_of_zeros([name for name, count in self._zeros.items() if count == SURE_AFTER])

    def _tell_of_zeros(self, names: Sequence[str]) -> None:
        for name in names if self.writers else ():
            logger.warning(
                "%s has been 0 each time it was logged (%d): nothing is learned from it. See that the data "
                "hold what it compares, captions or regions, and in %s how many pairs it leaves out",
                name,
                self._zeros[name],
                LOG_NAME,
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bar.close()
        if kind is None:  # a short run
            self._tell_of_zeros([name for name, count in self._zeros.items() if 0 < count < SURE_AFTER])
        for writer in self.writers:
            writer.close()


class Meter:
    """Throughput, waiting for data, and what the data were like, since the last reading."""

    def __init__(self) -> None:
        self.waiting_since = time.monotonic()
        self._reset()

    def _reset(self) -> None:
        self.since = time.monotonic()
        self.images, self.steps, self.data_time = 0, 0, 0.0
        self.texts, self.distinct = 0, 0

    def start_step(self, batch: RegionBatch) -> None:
        self.data_time += time.monotonic() - self.waiting_since
        self.images += len(batch.images)
        self.steps += 1
        self.texts += int(batch.region_mask.sum() + (batch.caption_index >= 0).sum())
        self.distinct += len(batch.texts)

    def end_step(self) -> None:
        self.waiting_since = time.monotonic()

    def read(self, ranks: Ranks) -> dict[str, float]:
        """Of all ranks; every rank must read at the same step."""
        elapsed = time.monotonic() - self.since
        counts = (self.images, self.data_time, self.texts, self.distinct)
        images, data_time, texts, distinct = ranks.sum(counts)
        read = {
            "images_per_s": images / elapsed,
            "step_time": elapsed / self.steps,
            "data_time": data_time / self.steps / ranks.size,
            "distinct_text_share": distinct / max(1, texts),
        }
        self._reset()
        return read
