"""The Ray cluster that a run works on: found or started, ended with the run, its failures in a sentence."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from open_cloc.config import require
from open_cloc.errors import RunError, UserError, WorkerDiedError

# Characters of a folder below which Ray's sockets find place: their paths may have 107, and it adds 70.
LONGEST_TEMPORARY = 30
# Times that a batch is given to a worker once more after one has died: a picture on which a library crashes
# does so for ever. On a cluster a machine may vanish: for a quarter of a minute Ray does not know, and each
# second counts as a death.
RETRIES_HERE, RETRIES_ON_CLUSTER = 3, 30
SHOWN = 300  # characters of Ray's own words that are shown


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A Ray cluster: the one at an address, or one of this machine alone that ends with the block.

    Raises:
        UserError: If there is no cluster at the address.
        WorkerDiedError: If the cluster itself fails while the block runs.
        RunError: If none can be started.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what concerns the user is raised
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "retries remaining")
    ray = require("ray", "label")
    context = require("ray.data", "label").DataContext.get_current()
    context.enable_progress_bars = False  # ours counts pictures
    context.issue_detectors_config.detectors = []
    # A block a batch, so that a unit's batches spread over all actors.
    context.target_max_block_size = 1
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        with _told():
            yield
        return
    with folder_for_sockets() as folder:
        # `local`: else Ray takes whatever cluster is up on this machine, and refuses to be told its size.
        place = {"address": "local", "num_cpus": os.cpu_count(), "include_dashboard": False, **folder}
        try:
            _start(ray, {"address": address} if address else place, address)
            with _told():
                yield
        finally:
            ray.shutdown()


@contextmanager
def _told() -> Iterator[None]:
    ray = require("ray", "label")
    try:
        with warnings.catch_warnings():  # of Ray, about how it is called
            warnings.filterwarnings("ignore", module=r"ray\.|open_cloc\.labelling\.actors")
            yield
    except ray.exceptions.RayError as error:
        raise WorkerDiedError(told(error)) from error


def _start(ray: Any, place: dict[str, Any], address: str) -> None:
    # Else Ray has its workers look into the working folder before all libraries, as it does for scripts.
    own = require("ray.job_config", "label").JobConfig(_client_job=True)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(**place, job_config=own, logging_level="ERROR", log_to_driver=False)
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():  # Ray's own print its stack, and end nothing
                signal.signal(number, handler)
    except Exception as error:  # of many kinds, a plain one on a machine with too much to do
        reason = _first_line(error)
        if address:
            raise UserError(f"no Ray cluster at run.address {address!r}: {reason}") from error
        raise RunError(f"Ray could not be started on this machine: {reason}") from error


@contextmanager
def folder_for_sockets() -> Iterator[dict[str, str]]:
    """What to tell Ray of its own folder: nothing, unless the path for temporary files is too long for it."""
    usual = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")
    if usual.is_dir() and len(str(usual)) <= LONGEST_TEMPORARY:
        yield {}
        return
    short = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    try:
        yield {"_temp_dir": short}
    finally:
        shutil.rmtree(short, ignore_errors=True)


def told(error: Exception) -> str:
    """What a user is told of a failure of Ray's, whose own words fill a page."""
    name = type(error).__name__
    if "OutOfMemory" in name:
        return "a labelling worker was ended for lack of memory; take fewer run.detectors or run.captioners"
    if "Died" in name or "Crashed" in name or "Unavailable" in name or "RayActorError" in name:
        return (
            "a worker was killed again and again over the same pictures, by the system for lack of memory "
            "or by a library that crashed; fewer run.detectors or less run.batch_size help"
        )
    return f"the Ray cluster failed: {name}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:SHOWN] if lines else type(error).__name__
