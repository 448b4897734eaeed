"""`open-cloc label RECIPE INPUT OUTPUT [--section.field VALUE ...]`, `label report OUT`, `label diff A B`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from open_cloc.cli.parse import parse, parse_command
from open_cloc.cli.screen import say
from open_cloc.config import lookup
from open_cloc.errors import RunError, UserError
from open_cloc.labelling.diff import compare
from open_cloc.labelling.output import REPORT_PAGE
from open_cloc.labelling.recipe import LabelRecipe
from open_cloc.labelling.recipes import RECIPES
from open_cloc.labelling.report import LEFT_OUT, mean_text, write_report


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
    """How the verb is called, and the recipes in a line each."""
    lines = [f"  {name:16s} {(function.__doc__ or '').splitlines()[0]}" for name, function in RECIPES.items()]
    return (
        "usage: open-cloc label RECIPE INPUT OUTPUT [--section.field VALUE ...] [--overwrite]\n"
        "       open-cloc label RECIPE --help lists every field with its default\n"
        "       open-cloc label report OUTPUT   write OUTPUT/report.html anew\n"
        "       open-cloc label diff A B        what changed between two runs\n\nrecipes:\n"
        + "\n".join(lines)
    )


def main(argv: Sequence[str]) -> int:
    """Exit codes: 0 labelled, and as `open-cloc` for errors."""
    if not argv or argv[0] in ("-h", "--help"):
        say(usage())
        return 0 if argv else 2
    verbs: dict[str, Callable[..., int]] = {"report": _report, "diff": _diff}
    if argv[0] in verbs:
        return parse_command({"": verbs[argv[0]]}, argv[1:], f"open-cloc label {argv[0]}")()
    return _label(argv[0], argv[1:])


def _label(name: str, argv: Sequence[str]) -> int:
    recipe = lookup(RECIPES, name, "labelling recipe")()
    if not isinstance(recipe, LabelRecipe):
        raise UserError(f"recipe {name!r} must return a LabelRecipe; got {type(recipe).__name__}")
    default = Options(tyro.MISSING, tyro.MISSING, recipe)
    options = parse(Options, argv, f"open-cloc label {name}", default=default)
    from open_cloc.labelling.pipeline import label  # the stages' libraries take seconds

    try:
        outcome = label(options.recipe, options.source, options.output, options.overwrite)
    except KeyboardInterrupt as stop:
        stop.args = ("the same command goes on with what is left",)
        raise
    if outcome.counts or not outcome.unread:
        _report(options.output)
    if outcome.unread:
        raise RunError(unread_line(outcome.unread))
    return 0


def _report(output: tyro.conf.Positional[Path]) -> int:
    """Write the report of a labelling run.

    Args:
        output: Folder of the run.
    """
    say(summary_lines(write_report(output)))
    say(output / REPORT_PAGE)
    return 0


def _diff(one: tyro.conf.Positional[Path], other: tyro.conf.Positional[Path]) -> int:
    """Show what changed between two labelling runs: how they were made, and what came out.

    Args:
        one: Folder of the one run.
        other: Folder of the other run.
    """
    say(comparison_lines(compare(one, other)))
    return 0


def unread_line(unread: Mapping[str, str]) -> str:
    """Which shards of the input have no labels, and why the first of them has none."""
    unit, message = next(iter(unread.items()))
    return (
        f"{len(unread)} shards of the input could not be opened and have no labels; the same command tries "
        f"them again; the first one, {unit}: {message}"
    )


def summary_lines(report: Mapping[str, Any]) -> str:
    """A run's report in a few lines."""
    counts = report["counts"]
    lines = [
        f"{counts['written']:,} of {counts['pictures']:,} pictures written in {report['labelled_units']} "
        f"shards, {counts['regions']:,} regions, {counts['without_region']:,} pictures without one"
    ]
    lines += [f"  {name}: {mean_text(value, 1)}" for name, value in report["summary"].items()]
    if counts["captions_cut"]:
        lines.append(f"  captions cut off, kept in whole sentences: {counts['captions_cut']:,}")
    for name in LEFT_OUT:
        if counts[name]:
            causes = ", ".join(f"{cause} {count:,}" for cause, count in sorted(counts[name].items()))
            lines.append(f"  {name.replace('_', ' ')}: {causes}")
    return "\n".join(lines)


def comparison_lines(changes: Mapping[str, list[tuple[str, Any, Any]]]) -> str:
    """Differences of two runs, one a line."""
    lines = []
    for title, rows in changes.items():
        lines.append(f"{title}:" if rows else f"{title}: the same")
        lines += [f"  {what}: {_short(old)} -> {_short(new)}" for what, old, new in rows]
    return "\n".join(lines)


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
