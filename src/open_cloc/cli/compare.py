"""`open-cloc compare A.json B.json ...`: results of `open-cloc eval` side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from open_cloc.cli.parse import check_result_file, parse
from open_cloc.cli.screen import say
from open_cloc.errors import UserError
from open_cloc.evaluation.compare import compare, comparison_table, read_result, times_table
from open_cloc.evaluation.intervals import LEVEL
from open_cloc.files import write_json

KEYS = ("results", "metrics")


@dataclass(frozen=True)
class Options:
    """Compare results with the first of them: differences, intervals over images, a paired test.

    Attributes:
        results: Files that `open-cloc eval --output` wrote, of one task, protocol and data set.
        output: File for the comparison as JSON.
    """

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    output: Path | None = None


def main(argv: Sequence[str]) -> int:
    """Run the verb; 0 when the table is there."""
    options = parse(Options, argv, "open-cloc compare")
    if len(options.results) < 2:
        raise UserError(f"comparing needs at least two results; got {len(options.results)}")
    check_result_file(options.output, KEYS)
    names = [str(path) for path in options.results]
    found = [read_result(path) for path in options.results]
    rows = compare(found, names)
    if options.output is not None:
        document = {metric: [asdict(row) for row in each] for metric, each in rows.items()}
        write_json(options.output, {"results": names, "metrics": document})
    first = found[0]
    say(f"{first['task']} on {first.get('dataset', '')}, against {names[0]}")
    say(comparison_table(rows, names))
    times = times_table(found, names)
    if times:
        say(times)
    if any(row.interval is not None for each in rows.values() for row in each):
        say(f"in brackets: {LEVEL:.0%} intervals of the difference, paired by image; p is two-sided")
        if any(row.interval is None for each in rows.values() for row in each[1:]):
            say("no interval where a result kept no draws, or a metric has one value on all of them")
    else:
        say("no intervals: these results kept no draws, which eval --output does now")
    if options.output is not None:
        say(f"written to {options.output}")
    return 0
