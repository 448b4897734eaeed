"""`open-cloc VERB ...`: finds the verb's function and turns errors into one line and an exit code.

| code | what it means |
|---|---|
| 0 | done |
| 1 | the verb found what it was looking for: errors in data, a difference; or a run could not go on |
| 2 | the user's input is wrong: a file, an option, a name; one line says what was expected |
| 130, 143 | stopped by Ctrl-C or SIGTERM, as a shell counts them |

Of the system's own errors those of the machine, such as a full disk, are 1, those of a path are 2. Anything
else is a defect of ours or of a library, and shows its traceback. `--debug` shows every error's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

# Nothing more: a signal that comes before `Stops.listen` shows a traceback.
from open_cloc.cli.failures import Stopped, explain
from open_cloc.cli.stops import Stops
from open_cloc.errors import UserError

# verb -> (module:function taking argv, one line for the help). A module is imported only when its verb runs.
VERBS = {
    "train": ("open_cloc.cli.train:main", "train a model from a recipe"),
    "plan": ("open_cloc.cli.plan:main", "predict memory, time and what bounds a recipe's run"),
    "eval": ("open_cloc.cli.eval:main", "measure a model and write one result JSON"),
    "compare": ("open_cloc.cli.compare:main", "put results of eval side by side, with intervals"),
    "predict": (
        "open_cloc.cli.predict:main",
        "label or ground regions of a picture and draw the result",
    ),
    "data": ("open_cloc.cli.data:main", "convert, check or show region-text data"),
    "label": ("open_cloc.cli.label:main", "label pictures with boxes and phrases"),
    "interpolate": ("open_cloc.cli.interpolate:main", "average two checkpoints' weights"),
    "index": ("open_cloc.cli.index:main", "find regions among many pictures"),
    "serve": ("open_cloc.cli.serve:main", "answer over HTTP, with a page to try it"),
    "export": ("open_cloc.cli.export:main", "write a model's towers for another tool, and check them"),
    "mllm": ("open_cloc.cli.mllm:main", "teach a language model to see through CLOC, and ask it"),
    "demo": ("open_cloc.cli.demo:main", "train CLIP and CLOC on generated scenes and compare them"),
    "doctor": ("open_cloc.cli.doctor:main", "print versions, devices and what each extra enables"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code.

    Args:
        argv: The verb and its options. Unless given, what the shell gave: this process is the command's own
            then, and its signals and streams are taken over.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    stops = Stops(f"open-cloc {args[0]}" if args and args[0] in VERBS else "open-cloc")
    if argv is None:
        # The process is ours: Python shall not look into the working folder for the modules of its children.
        os.environ.setdefault("PYTHONSAFEPATH", "1")
        stops.listen()
    from open_cloc.cli import screen

    if argv is None:
        screen.use_utf8()
        screen.prepare_streams()
    screen.show_warnings_as_text()
    try:
        return run(args, stops, debug)
    finally:
        screen.let_go_of_output()
        if stops.asked and not debug:
            stops.leave()


def usage() -> str:
    """The verbs, a line each."""
    lines = [f"  {verb:12s} {text}" for verb, (_, text) in VERBS.items()]
    head = "usage: open-cloc VERB [options]   (open-cloc VERB --help for a verb's options)"
    return "\n".join([head, "", *lines, "", "  --debug      show the traceback of an error"])


def run(args: Sequence[str], stops: Stops, debug: bool = False) -> int:
    """Run one verb and put its errors into words.

    Args:
        args: The verb and its options.
        stops: Is told that there is work to undo, and tells whether a signal has come.
        debug: Let every error through, for its traceback.
    """
    from open_cloc.cli import screen

    try:
        try:
            return _run_verb(args, stops)
        finally:
            screen.flush_output()
    except BaseException as error:
        if isinstance(error, BrokenPipeError) and screen.reader_has_left():
            return 0
        if stops.asked:
            stops.settle()
            if not isinstance(error, KeyboardInterrupt):
                error = Stopped(stops.asked)  # what the signal has become on its way, such as a failed import
        told = explain(error)
        if debug or told is None:
            raise
        sentence, code = told
        if not (isinstance(error, KeyboardInterrupt) and _is_one_of_many()):
            screen.say(f"{stops.name}: {' '.join(sentence.split())}", to_errors=True)
        return code


def _is_one_of_many() -> bool:
    """Whether another process of the same run tells of a signal that has come to all of them."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) != "0"


def _run_verb(args: Sequence[str], stops: Stops) -> int:
    from open_cloc.cli.moved import check_options
    from open_cloc.cli.screen import say
    from open_cloc.memory import keep_freed_memory

    if not args or args[0] in ("-h", "--help"):
        say(usage())
        return 0 if args else 2
    verb = args[0]
    if verb not in VERBS:
        say(f"{stops.name}: unknown verb {verb!r}; expected one of {', '.join(VERBS)}", to_errors=True)
        return 2
    _require_working_folder()
    keep_freed_memory()
    check_options(args[1:])
    function = _function_of(verb)
    stops.is_working = True
    code = function(args[1:])
    stops.come_now()
    return code


def _require_working_folder() -> None:
    """Libraries end the process with words of their own where there is none."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the working folder has been removed: change to one that is there") from None


def _function_of(verb: str) -> Callable[[Sequence[str]], int]:
    """Import a verb's function; a library that is not there shows its traceback, as any defect."""
    from open_cloc.memory import import_quickly

    module, _, name = VERBS[verb][0].partition(":")
    return getattr(import_quickly(module), name)


if __name__ == "__main__":
    sys.exit(main())
