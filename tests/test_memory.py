import os
import platform
import resource
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from open_cloc.memory import keep_freed_memory

def faults():
    if sys.argv[1:] == ["quick"]:
        return 0
    for _ in range(20):  # until the heap has found its size
        torch.ones(16 * 2**20)  # 64 MiB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(16 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(), keep_freed_memory(), faults())
"""


def page_faults(*argv: str, **env: str) -> tuple[int, str, int]:
    """Faults of ten tensors in a fresh process, whether it keeps freed memory now, and the faults after."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, *argv], env=clean | env, capture_output=True, text=True, check=True
    )
    before, answer, after = done.stdout.split()
    return int(before), answer, int(after)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this malloc is not glibc's")
def test_freed_memory_is_used_again() -> None:
    before, answer, after = page_faults()
    assert before > 5 * 2**26 // resource.getpagesize()
    assert answer == "True"
    assert after < 100


def test_the_users_own_settings_stay() -> None:
    assert page_faults("quick", MALLOC_ARENA_MAX="2")[1] == "False"


def test_the_collector_rests_for_a_first_import_alone_and_then_works_again() -> None:
    script = """
import gc, sys, types
from open_cloc.memory import import_quickly
class Finder:
    def find_spec(name, path=None, target=None):
        if name == "open_cloc.samples":
            print(gc.isenabled())
sys.meta_path.insert(0, Finder)
import_quickly("open_cloc.samples")
frozen = gc.get_freeze_count()
print(gc.isenabled(), frozen > 50_000)
kept = [[] for _ in range(1000)]
import_quickly("open_cloc.samples")
print(gc.get_freeze_count() - frozen < 1000)
try:
    import_quickly("open_cloc.not_there")
except ModuleNotFoundError:
    print(gc.isenabled())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True", "True", "True"]
