"""Processes that tests start.

They are forks of a server in which neither Ray nor a test has been: a fork of a process in which Ray has been
may hang, and one that is spawned imports torch for seconds.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["open_cloc.data.shards.remote", "open_cloc.objectives", "open_cloc.training.gather"]
)
START_METHOD = CONTEXT.get_start_method()


def wait_until(there: Callable[[], object], seconds: float = 120) -> None:
    """Return once `there()` holds; fails the test where it does not in time: one that hangs says nothing."""
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, f"waited for {seconds:g} seconds in vain"
        time.sleep(0.01)
