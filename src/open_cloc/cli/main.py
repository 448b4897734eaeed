"""`open-cloc VERB ...`: finds the verb's function and turns user errors into one line and exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from open_cloc.config import import_object
from open_cloc.errors import RunError, UserError
from open_cloc.memory import keep_freed_memory

# verb -> (module:function taking argv, one line for the help). A module is imported only when its verb runs.
VERBS = {
    "train": ("open_cloc.cli.train:main", "train a model from a recipe"),
    "plan": ("open_cloc.cli.plan:main", "predict memory, time and what bounds a recipe's run"),
    "eval": ("open_cloc.cli.eval:main", "measure a model and write one result JSON"),
    "predict": (
        "open_cloc.cli.predict:main",
        "label or ground regions of a picture and draw the result",
    ),
    "data": ("open_cloc.cli.data:main", "convert, check or show region-text data"),
    "label": ("open_cloc.cli.label:main", "label pictures with boxes and phrases"),
    "interpolate": ("open_cloc.cli.interpolate:interpolate", "average two checkpoints' weights"),
    "demo": ("open_cloc.cli.demo:main", "train CLIP and CLOC on generated scenes and compare them"),
    "doctor": ("open_cloc.cli.doctor:main", "print versions, devices and what each extra enables"),
}

# Wrong paths that nobody has looked at before the system did are the user's to mend too.
USER_ERRORS = (UserError, NotADirectoryError, IsADirectoryError, PermissionError)


def usage() -> str:
    lines = [f"  {verb:12s} {text}" for verb, (_, text) in VERBS.items()]
    return "usage: open-cloc VERB [options]   (open-cloc VERB --help for a verb's options)\n\n" + "\n".join(
        lines
    )


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
        return import_object(VERBS[verb][0], "verb")(args[1:])
    except USER_ERRORS as error:
        if debug:
            raise
        print(f"open-cloc {verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except RunError as error:
        if debug:
            raise
        print(f"open-cloc {verb}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
