"""`open-cloc VERB ...`: finds the verb's function and turns user errors into one line and exit code 2."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from open_cloc.memory import keep_freed_memory

# verb -> (module:function taking argv, one line for the help). A module is imported only when its verb runs.
VERBS = {
    "train": ("open_cloc.training.command:main", "train a model from a recipe"),
    "plan": ("open_cloc.training.plan_command:main", "predict memory, time and what bounds a recipe's run"),
    "eval": ("open_cloc.evaluation.command:main", "measure a model and write one result JSON"),
    "predict": (
        "open_cloc.inference.command:main",
        "label or ground regions of a picture and draw the result",
    ),
    "data": ("open_cloc.data.command:main", "convert, check or show region-text data"),
    "label": ("open_cloc.labelling.command:main", "label pictures with boxes and phrases"),
    "interpolate": ("open_cloc.model.command:interpolate", "average two checkpoints' weights"),
    "demo": ("open_cloc.demo:main", "train CLIP and CLOC on generated scenes and compare them"),
    "doctor": ("open_cloc.doctor:main", "print versions, devices and what each extra enables"),
}

USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)


def usage() -> str:
    lines = [f"  {verb:12s} {text}" for verb, (_, text) in VERBS.items()]
    return "usage: open-cloc VERB [options]   (open-cloc VERB --help for a verb's options)\n\n" + "\n".join(
        lines
    )


def load(target: str):  # type: ignore[no-untyped-def]
    """Import `package.module:name`."""
    module, name = target.split(":")
    return getattr(importlib.import_module(module), name)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Exit codes: 0 done, 1 the verb found problems, 2 the user's input is wrong."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    sys.path.append(os.getcwd())  # for readers and recipes given as module:name
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0 if args else 2
    verb = args[0]
    if verb not in VERBS:
        print(f"open-cloc: unknown verb {verb!r}; expected one of {', '.join(VERBS)}", file=sys.stderr)
        return 2
    keep_freed_memory()
    try:
        return load(VERBS[verb][0])(args[1:])
    except USER_ERRORS as error:
        if debug:
            raise
        print(f"open-cloc {verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (FloatingPointError, TimeoutError, ChildProcessError) as error:
        if debug:
            raise
        print(f"open-cloc {verb}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
