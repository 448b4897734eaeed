"""Compiled blocks: the towers' repeated blocks and the Prompter's layer, one by one and in place.

Blocks of one kind share their graphs, so that compiling takes seconds and not the minutes of a whole model,
and everything around the blocks (DDP, FSDP, recomputation, accumulation) stays as it is. Names of parameters
do not change either.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from open_cloc.errors import first_line
from open_cloc.model.cloc import CLOC
from open_cloc.training.parallelize import repeated_blocks
from open_cloc.training.recipe import Compile

logger = logging.getLogger(__name__)

BACKEND = "inductor"
# Blocks of all towers are one entry in torch's books, and each of these is a graph of its own: an image
# block, a text block, the Prompter's layer; with and without gradients; the shapes met before a size varies.
MOST_GRAPHS = 32


def compile_blocks(model: CLOC, wanted: Compile, device: torch.device) -> bool:
    """Have the model's blocks compiled when they are first called; whether they will be.

    Args:
        model: On its device.
        wanted: `auto` compiles on GPUs, where starting kernels costs most.
        device: Where the model runs; without a compiler there, a warning says so and blocks stay as they are.
    """
    if wanted == "off" or (wanted == "auto" and device.type != "cuda"):
        return False
    reason = reason_against(device)
    if reason:
        logger.warning("run.compile: no compiler works here, blocks run slower without one: %s", reason)
        return False
    dynamo: Any = torch._dynamo
    dynamo.config.recompile_limit = MOST_GRAPHS
    dynamo.config.suppress_errors = True  # a block that cannot be compiled runs as it is
    for block in repeated_blocks(model.clip.visual):
        block.compile(backend=BACKEND)
    for block in repeated_blocks(model.clip.text):
        block.compile(backend=BACKEND, dynamic=True)  # numbers and lengths of texts vary
    layer = model.prompter.layer
    layer.compile(backend=BACKEND)
    layer.prepare = torch.compile(layer.prepare, backend=BACKEND)  # type: ignore[method-assign]
    return True


def reason_against(device: torch.device) -> str:
    """Why nothing can be compiled on a device, such as a missing C compiler; empty if it can."""
    dynamo: Any = torch._dynamo
    try:
        with dynamo.config.patch(suppress_errors=False):
            torch.compile(_one_more, backend=BACKEND)(torch.zeros(2, device=device))
    except Exception as error:  # of many kinds: each compiler has its own
        return first_line(getattr(error, "inner_exception", error))
    return ""


def _one_more(tensor: torch.Tensor) -> torch.Tensor:
    return tensor + 1


def num_graphs() -> int:
    """Graphs that this process has compiled; past the first steps it should grow no more."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run blocks as they are: shapes of an evaluation are not worth graphs of their own."""
    with torch.compiler.set_stance("force_eager"):
        yield
