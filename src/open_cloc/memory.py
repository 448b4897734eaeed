"""How this process gives memory back to the system."""

from __future__ import annotations

import ctypes
import os
import platform

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
