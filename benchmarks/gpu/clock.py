"""How time is taken on a GPU: medians by its own events, competitors in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def take_turns(
    competitors: Mapping[str, Callable[[], object]],
    device: torch.device,
    rounds: int,
    warmup: int = 3,
    calls: int = 1,
) -> dict[str, float]:
    """Median milliseconds of each competitor, after some calls of each to warm up.

    Args:
        competitors: What is called.
        device: Where it runs.
        rounds: How often each is timed.
        warmup: Calls of each before.
        calls: So many of one competitor are timed as one, one behind the other as the steps of a run are.
    """
    for run in competitors.values():
        for _ in range(warmup):
            run()
    times: dict[str, list[float]] = {name: [] for name in competitors}
    for _ in range(rounds):
        for name, run in competitors.items():
            times[name].append(milliseconds(run, device, calls))
    return {name: statistics.median(found) for name, found in times.items()}


def milliseconds(run: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """How long the device works on one call of several, waits for the host included."""
    if device.type != "cuda":
        started = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - started)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / calls


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most memory of the device that one call takes beyond what is held; 0 on a CPU."""
    if device.type != "cuda":
        run()
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - held
