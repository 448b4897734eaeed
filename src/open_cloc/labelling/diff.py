"""What changed between two labelling runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from open_cloc.labelling.output import RunFolder
from open_cloc.labelling.provenance import differences
from open_cloc.labelling.report import LEFT_OUT, TOTALS, collect, summary


def compare(one: Path, other: Path) -> dict[str, list[tuple[str, Any, Any]]]:
    """Differences in how two runs were made, and in what came out.

    Args:
        one: Folder of the one run.
        other: Folder of the other run.

    Returns:
        The differences in two lists, `made` and `came out`, each as (what, in the one, in the other).

    Raises:
        MissingFileError: If a folder holds no labelling run.
    """
    a, b = collect(RunFolder.load(one)), collect(RunFolder.load(other))
    made = [
        change
        for name in ("source", "recipe", "made_by", "software")
        for change in differences(a[name], b[name], name)
    ]
    return {"made": made, "came out": list(differences(_outcome(a), _outcome(b)))}


def _outcome(report: dict[str, Any]) -> dict[str, Any]:
    counts = report["counts"]
    if not counts:
        return {}
    means = {name: value and round(value, 2) for name, value in summary(counts).items()}
    return {name: counts[name] for name in (*TOTALS, *LEFT_OUT)} | means
