"""How this folder measures: competitors in turn, one thread, CPU time, the minimum over rounds.

CPU time of one thread is what other jobs on the machine disturb least. Only ratios within one run are
compared.
"""

from __future__ import annotations

import ctypes
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

OUTPUT = Path("runs/bench")


def take_turns(competitors: Mapping[str, Callable[[], object]], rounds: int = 5) -> dict[str, list[float]]:
    """CPU seconds of each competitor in each round, after one round of warming up."""
    seconds: dict[str, list[float]] = {name: [] for name in competitors}
    for number in range(rounds + 1):
        for name, run in competitors.items():
            started = time.process_time()
            run()
            if number:
                seconds[name].append(time.process_time() - started)
    return seconds


def ratios(seconds: Mapping[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Per competitor: fastest round, median, slowest over fastest, and ratio of the fastest to the base's."""
    least = min(seconds[base])
    return {
        name: {
            "seconds": min(rounds),
            "median": statistics.median(rounds),
            "spread": max(rounds) / min(rounds),
            "ratio": min(rounds) / least,
        }
        for name, rounds in seconds.items()
    }


def print_table(rows: Mapping[str, Mapping[str, float]]) -> None:
    """One line per competitor."""
    width = max(len(name) for name in rows)
    columns = list(next(iter(rows.values())))
    print(" " * width + "".join(f"{column:>12s}" for column in columns))
    for name, row in rows.items():
        print(f"{name:{width}s}" + "".join(f"{row[column]:12.4g}" for column in columns), flush=True)


def verdict(what: str, got: float, aim: float, *, least: bool = False) -> dict[str, Any]:
    """Compare a number with its aim, which is a limit from above or, with `least`, from below; say so."""
    met = got >= aim if least else got <= aim
    sign = ">=" if least else "<="
    print(f"{what}: {got:.4g}, aim {sign} {aim:g}: {'met' if met else 'SHORT'}", flush=True)
    return {"what": what, "got": got, "aim": aim, "least": least, "met": met}


def write_json(name: str, result: Mapping[str, Any]) -> Path:
    """`runs/bench/NAME.json`, with what machine and torch it was."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    path = OUTPUT / f"{name}.json"
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
    path.write_text(json.dumps({"benchmark": name, **machine, **result}, indent=2) + "\n")
    return path


def kept_for_backward(run: Callable[[], object], model: torch.nn.Module) -> int:
    """Bytes of the activations that autograd keeps while `run` is under way, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}  # the tensor keeps its address from being used again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(size for size, _ in kept.values())


class PeakMemory:
    """Bytes by which resident memory rose above its level at entry, from the kernel's high-water mark."""

    peak = 0

    def __enter__(self) -> PeakMemory:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # or freed heap hides the first megabytes
        Path("/proc/self/clear_refs").write_text("5")
        self.base = _resident("VmRSS")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.peak = _resident("VmHWM") - self.base


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")
