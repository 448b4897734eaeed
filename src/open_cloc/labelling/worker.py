"""What runs in a worker process of a labelling run: reading, the stages, writing.

What goes wrong goes on as a value in place of the result: Ray would start a failing actor again for minutes,
and hide the reason in its own errors.

Ray imports this module before anything can be set up, so it imports little; the rest comes later.
"""

from __future__ import annotations

import pickle
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from open_cloc.errors import RunError, UserError, WorkerDiedError
from open_cloc.memory import import_quickly, without_collection

if TYPE_CHECKING:
    from open_cloc.labelling.recipe import LabelRecipe
    from open_cloc.labelling.stages import Stage
    from open_cloc.labelling.types import Batch, Unit

# A stage, and what it is made with.
Step = tuple["type[Stage]", tuple[Any, ...]]


class Read:
    """A row that names a unit -> a row for each of its batches.

    Args:
        batch_size: Pictures of a batch.
        path: Where the process that started the run imports from.
    """

    def __init__(self, batch_size: int, path: Sequence[str]) -> None:
        self.batch_size = batch_size
        self.path = path

    def __call__(self, row: dict[str, bytes]) -> Iterator[dict[str, bytes]]:
        _import_from(self.path)
        import_quickly("open_cloc.labelling.source")
        from open_cloc.labelling.source import failure_of, read_batches
        from open_cloc.labelling.types import UnreadUnit

        unit: Unit = pickle.loads(row["unit"])
        try:
            for batch in read_batches(unit, self.batch_size):
                yield {"batch": pickle.dumps(batch)}
        except Exception as error:  # a shard of any kind
            yield {"batch": pickle.dumps(UnreadUnit(unit.name, failure_of(error, unit.spec).message))}


class OnRows:
    """Stages as Ray Data calls them: on a row of a batch, for the row of what they make of it.

    Args:
        steps: A pickled `Sequence[Step]`: opened here, so that the stages' libraries come when all is set up.
        path: Where the process that started the run imports from.
    """

    def __init__(self, steps: bytes, path: Sequence[str]) -> None:
        _import_from(path)
        self.trouble: Trouble | None = None
        try:
            with without_collection():
                self.stages = [stage(*arguments) for stage, arguments in pickle.loads(steps)]
        except (Exception, SystemExit) as error:
            self.trouble = as_sent(error)

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        from open_cloc.labelling.types import Batch

        batch = pickle.loads(row["batch"])
        if not isinstance(batch, Batch):  # what went wrong first is what is told
            return row
        if self.trouble:
            return {"batch": pickle.dumps(self.trouble)}
        try:
            for stage in self.stages:
                batch = stage(batch)
            return {"batch": pickle.dumps(batch)}
        except (Exception, SystemExit) as error:  # a library that ends its process would be started for ever
            return {"batch": pickle.dumps(as_sent(error))}


def write_unit_or_tell(
    path: Sequence[str], folder: Path, recipe: LabelRecipe, unit: Unit, batches: Sequence[Batch] | None
) -> Trouble | None:
    """`output.write_unit` as Ray calls it; gives what went wrong."""
    _import_from(path)
    try:
        import_quickly("open_cloc.labelling.output")
        from open_cloc.labelling.output import write_unit

        write_unit(folder, recipe, unit, batches)
    except (Exception, SystemExit) as error:
        return as_sent(error)
    return None


class Trouble(NamedTuple):
    """What went wrong in a worker, as it is sent: plain texts, from which no error is made anew.

    Attributes:
        kind: `user` where it is the user's to mend, `run` where a run cannot go on, `worker` for all else.
        message: What it says, in one sentence.
        where: Its traceback.
        pickled: An error of ours itself, where it is the same after its way; else empty.
    """

    kind: str
    message: str
    where: str
    pickled: bytes = b""

    def error(self) -> Exception:
        """What the process that started the run raises; a traceback shows where it came from."""
        kinds: dict[str, type[Exception]] = {"user": UserError, "run": RunError, "worker": WorkerDiedError}
        error = _unpickled(self.pickled) or kinds[self.kind](self.message)
        error.__notes__ = [*getattr(error, "__notes__", ()), f"in a labelling worker:\n{self.where}"]
        return error


def as_sent(error: BaseException) -> Trouble:
    """An error as it leaves a worker."""
    where = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    if not isinstance(error, (UserError, RunError)):
        return Trouble("worker", f"a labelling worker failed: {type(error).__name__}: {error}", where)
    try:
        pickled = pickle.dumps(error)
    except Exception:  # whatever a class of someone else's does
        pickled = b""
    same = _unpickled(pickled)
    is_same = type(same) is type(error) and str(same) == str(error)
    kind = "user" if isinstance(error, UserError) else "run"
    return Trouble(kind, str(error), where, pickled if is_same else b"")


def _unpickled(pickled: bytes) -> Exception | None:
    """An error; None where there is none, or its class cannot be made from what was sent."""
    try:
        return pickle.loads(pickled) if pickled else None
    except Exception:  # whatever a class of someone else's does
        return None


def _import_from(path: Sequence[str]) -> None:
    """Let a worker import what the process that started the run can."""
    sys.path.extend(entry for entry in path if entry not in sys.path)
