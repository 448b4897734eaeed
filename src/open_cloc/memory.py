"""How this process gives memory back: to the system, and from objects that nobody holds any more."""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let malloc keep what is freed for the next tensor, instead of handing it to the kernel each time.

    glibc takes every block above 32 MiB from the kernel anew and gives it back when it is freed. A layer's
    feature maps are larger than that from about 500 px, and the kernel clears each page again: two thirds of
    a frozen EfficientNet-lite2's time at 672 px. The price is that the process stays as large as its peak.

    Nothing happens where malloc is not glibc's, or is set by its own `MALLOC_...` variables.

    Returns:
        Whether it was done.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # No block straight from the kernel, and none given back: -1 is the largest size there is.
    return mallopt(M_MMAP_MAX, 0) == 1 and mallopt(M_TRIM_THRESHOLD, -1) == 1


@contextmanager
def without_collection() -> Iterator[None]:
    """Import libraries and make models while the garbage collector rests, in a process of our own.

    What is made lives as long as the process, yet the collector looks through all of it each time that it has
    grown by a quarter: a third of the time that torch and transformers take to import. It leaves these
    objects alone for good, so this is not for what comes again and again.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


def import_quickly(name: str) -> ModuleType:
    """A module, imported without garbage collection if it is the first time; in a process of our own."""
    if name in sys.modules:
        return sys.modules[name]
    with without_collection():
        return importlib.import_module(name)
