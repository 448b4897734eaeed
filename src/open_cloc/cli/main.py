"""`open-cloc VERB ...`: finds the verb's function and turns errors into one line and an exit code.

| code | what it means |
|---|---|
| 0 | done |
| 1 | the verb found what it was looking for: errors in data, a difference; or a run could not go on |
| 2 | the user's input is wrong: a file, an option, a name; one line says what was expected |
| 130, 143 | stopped by Ctrl-C or SIGTERM, as a shell counts them |

Anything else is a defect of ours or of a library, and shows its traceback. `--debug` shows every error's.
"""

from __future__ import annotations

import importlib
import os
import select
import sys
from collections.abc import Callable, Sequence

from open_cloc.cli.moved import check_options
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
    "interpolate": ("open_cloc.cli.interpolate:main", "average two checkpoints' weights"),
    "demo": ("open_cloc.cli.demo:main", "train CLIP and CLOC on generated scenes and compare them"),
    "doctor": ("open_cloc.cli.doctor:main", "print versions, devices and what each extra enables"),
}

# Wrong paths that nobody has looked at before the system did are the user's to mend too.
USER_ERRORS = (UserError, NotADirectoryError, IsADirectoryError, PermissionError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code.

    Args:
        argv: The verb and its options; what the shell gave unless given.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    if argv is None:
        # The process is ours: Python shall not look into the working folder for the modules of its children.
        os.environ.setdefault("PYTHONSAFEPATH", "1")
    try:
        code = run(args, debug)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _reader_has_left():
            raise
        return 0


def usage() -> str:
    """The verbs, a line each."""
    lines = [f"  {verb:12s} {text}" for verb, (_, text) in VERBS.items()]
    head = "usage: open-cloc VERB [options]   (open-cloc VERB --help for a verb's options)"
    return "\n".join([head, "", *lines, "", "  --debug      show the traceback of an error"])


def run(args: Sequence[str], debug: bool = False) -> int:
    """Run one verb and put its errors into words.

    Args:
        args: The verb and its options.
        debug: Let every error through, for its traceback.
    """
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0 if args else 2
    verb = args[0]
    if verb not in VERBS:
        print(f"open-cloc: unknown verb {verb!r}; expected one of {', '.join(VERBS)}", file=sys.stderr)
        return 2
    keep_freed_memory()
    try:
        check_options(args[1:])
        return _function_of(verb)(args[1:])
    except (*USER_ERRORS, RunError) as error:
        if debug:
            raise
        print(f"open-cloc {verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1 if isinstance(error, RunError) else 2


def _function_of(verb: str) -> Callable[[Sequence[str]], int]:
    """Import a verb's function; a library that is not there shows its traceback, as any defect."""
    module, _, name = VERBS[verb][0].partition(":")
    return getattr(importlib.import_module(module), name)


def _reader_has_left() -> bool:
    """Whether it is our standard output that nobody reads any more, as behind `| head`."""
    try:
        output = sys.stdout.fileno()
    except OSError:  # no file, but an object in its place
        return False
    poller = select.poll()
    poller.register(output, 0)
    if not poller.poll(0):
        return False
    # Python flushes once more at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


if __name__ == "__main__":
    sys.exit(main())
