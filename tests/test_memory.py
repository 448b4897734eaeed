import os
import platform
import resource
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from open_cloc.memory import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else None)
for _ in range(20):  # until the heap has found its size
    torch.ones(16 * 2**20)  # 64 MiB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(16 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str, **env: str) -> tuple[str, int]:
    """What keep_freed_memory() returned in a fresh process, and the page faults of ten tensors after it."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, mode], env=clean | env, capture_output=True, text=True, check=True
    )
    answer, faults = done.stdout.split()
    return answer, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this malloc is not glibc's")
def test_freed_memory_is_used_again() -> None:
    answer, faults = page_faults("keep")
    assert answer == "True"
    assert faults < 100
    assert page_faults("leave")[1] > 5 * 2**26 // resource.getpagesize()


def test_the_users_own_settings_stay() -> None:
    assert page_faults("keep", MALLOC_ARENA_MAX="2")[0] == "False"
