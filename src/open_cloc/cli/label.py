"""`open-cloc label RECIPE INPUT OUTPUT [--section.field VALUE ...]`, `label report OUT`, `label diff A B`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from open_cloc.config import lookup
from open_cloc.errors import UserError
from open_cloc.labelling.diff import compare, format_comparison
from open_cloc.labelling.recipe import LabelRecipe
from open_cloc.labelling.recipes import RECIPES
from open_cloc.labelling.report import format_summary, write_report

INTERRUPTED = 130  # what a shell reports for Ctrl-C


@dataclass(frozen=True)
class Options:
    """Label region-text data.

    Attributes:
        source: A path whose format is recognised, or FORMAT:PATH[,name=value...].
        output: Folder of the labelled shards. A stopped run goes on when it is started again; another filter
            reruns the last stage alone.
        recipe: What to do; every field can be overridden.
        overwrite: Delete what an earlier labelling run left in the output folder.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INPUT")]
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    recipe: Annotated[LabelRecipe, tyro.conf.arg(name="")]
    overwrite: bool = False


def usage() -> str:
    lines = [f"  {name:16s} {(function.__doc__ or '').splitlines()[0]}" for name, function in RECIPES.items()]
    return (
        "usage: open-cloc label RECIPE INPUT OUTPUT [--section.field VALUE ...] [--overwrite]\n"
        "       open-cloc label RECIPE --help lists every field with its default\n"
        "       open-cloc label report OUTPUT   write OUTPUT/report.html anew\n"
        "       open-cloc label diff A B        what changed between two runs\n\nrecipes:\n"
        + "\n".join(lines)
    )


def main(argv: Sequence[str]) -> int:
    """Exit codes: 0 labelled, 130 interrupted, and as `open-cloc` for errors."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    verbs: dict[str, Callable[..., int]] = {"report": _report, "diff": _diff}
    if argv[0] in verbs:
        return tyro.cli(verbs[argv[0]], args=list(argv[1:]), prog=f"open-cloc label {argv[0]}")
    recipe = lookup(RECIPES, argv[0], "labelling recipe")()
    if not isinstance(recipe, LabelRecipe):
        raise UserError(f"recipe {argv[0]!r} must return a LabelRecipe; got {type(recipe).__name__}")
    options = tyro.cli(
        Options,
        args=list(argv[1:]),
        default=Options(tyro.MISSING, tyro.MISSING, recipe),
        prog=f"open-cloc label {argv[0]}",
    )
    from open_cloc.labelling.pipeline import label  # the stages' libraries take seconds

    try:
        label(options.recipe, options.source, options.output, options.overwrite)
    except KeyboardInterrupt:
        print("stopped; the same command goes on with what is left", file=sys.stderr)
        return INTERRUPTED
    return _report(options.output)


def _report(output: tyro.conf.Positional[Path]) -> int:
    """Write the report of a labelling run.

    Args:
        output: The run's folder.
    """
    print(format_summary(write_report(output)))
    print(output / "report.html")
    return 0


def _diff(one: tyro.conf.Positional[Path], other: tyro.conf.Positional[Path]) -> int:
    """Show what changed between two labelling runs: how they were made, and what came out.

    Args:
        one: A run's folder.
        other: Another's.
    """
    print(format_comparison(compare(one, other)))
    return 0
