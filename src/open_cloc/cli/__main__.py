"""`python -m open_cloc.cli`."""

import importlib
import os
import sys


def leave_out_the_working_folder() -> None:
    """`-m` has it searched before all libraries, and a file there may be called as one of them."""
    is_first = sys.path[:1] == [""] or (sys.path and os.path.isdir(sys.path[0]) and _is_here(sys.path[0]))
    if is_first and not getattr(sys.flags, "safe_path", False):  # which Python 3.10 does not know
        del sys.path[0]


def _is_here(folder: str) -> bool:
    return os.path.samefile(folder, os.curdir)


leave_out_the_working_folder()
sys.exit(importlib.import_module("open_cloc.cli.main").main())
