"""What a step starts and waits for, counted without a GPU: python -m benchmarks.gpu.counts

Operations are those that reach a device as kernels: views are left out. A compiled block counts as one, which
it is not, but its kernels are few. Waits are operations whose result the host must know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest import mock

import torch
import tyro

from benchmarks.gpu.steps import clip_step, make_batch, make_run
from benchmarks.gpu.watched import Watched
from benchmarks.timing import print_table, write_json
from open_cloc.model import text_buckets
from open_cloc.model.gelu_sum import TILE_ELEMENTS
from open_cloc.training.step import train_step

CPU = torch.device("cpu")
# Parts of names of operations that only look at memory in another way.
VIEWS = (
    "view", "reshape", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze", "detach",
    "aten.t.", "alias", "split", "chunk", "unbind", "as_strided", "diagonal.", "aten.empty", "new_empty",
    "lift_fresh",
)  # fmt: skip


@dataclass
class Options:
    """Attributes:
    towers: Their number of layers is what counts, not their width.
    batch_size: Pictures; no count depends on it.
    """

    towers: str = "open_clip:ViT-B-16"
    batch_size: int = 2


def counted(step: Callable[[], object]) -> dict[str, float]:
    """Of one step, once it has been made before."""
    step()
    with Watched() as watched:
        step()
    started = [name for name in watched.names if not any(word in name for word in VIEWS)]
    return {"operations": len(started), "waits": len(watched.waits)}


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """The read-out's sum in one tile: a GPU has one kernel there each way. Texts in few passes."""
    whole, few = {"cpu": 2**40}, {"cpu": text_buckets.ON_ACCELERATORS}
    with mock.patch.dict(TILE_ELEMENTS, whole), mock.patch.dict(text_buckets.BY_DEVICE, few):
        yield


def main(options: Options) -> None:
    rows = {}
    run = make_run(options.towers, "prompt", CPU)
    batch, captions = make_batch(run.model, options.batch_size, 0)
    rows["CLIP, open_clip's step"] = counted(clip_step(run.model, batch, captions, CPU))
    for readout in ("prompt", "mean"):
        run = make_run(options.towers, readout, CPU)
        for name, own in {"texts packed": batch, "in two passes": replace(batch, packing=None)}.items():
            with as_on_a_gpu():
                rows[f"CLOC `{readout}`, {name}"] = counted(
                    lambda run=run, own=own: train_step(run, own, 1)  # type: ignore[misc]
                )
    print_table(rows)
    print(write_json("gpu_counts", {"rows": rows}))


if __name__ == "__main__":
    main(tyro.cli(Options))
