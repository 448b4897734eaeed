"""Results side by side: differences with their intervals, and a test that is paired by image.

Every result was bootstrapped over the same draws of images, so the difference of two is known on each draw:
what makes pictures easy or hard for both models falls out of it.

Shapes: S draws.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from open_cloc.errors import UserError
from open_cloc.evaluation.intervals import RESAMPLES, Interval, ends_of
from open_cloc.files import read_json

# What results must share, in their protocol or in themselves; a protocol may have less.
SHARED = {
    "task": "tasks",
    "rules": "rules",
    "images": "pictures",
    "annotations": "boxes or texts",
    "classes": "classes",
    "classes_digest": "class names",
    "averaging": "averaging rules",
    "duplicates": "readings of texts that repeat",
    "proposals": "proposals",
    "proposals_digest": "proposals",
    "point": "ways to point",
    "language": "languages",
    "intervals": "ways to draw images",
    "limit": "numbers of samples",
}
COUNTS = "num_"
ROUNDING = 1e-5  # of draws, which are kept as float32


@dataclass(frozen=True)
class Row:
    """A metric of one result against that of the first.

    Attributes:
        value: Of this result.
        difference: Less that of the first.
        interval: Of the difference; None where the results kept no draws.
        p: Chance of a difference as far from 0 if there were none, two-sided; None likewise.
    """

    value: float
    difference: float
    interval: Interval | None = None
    p: float | None = None


def written_draws(values: np.ndarray) -> str:
    """Draws (S,) as a result holds them: base64 of little-endian float32."""
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def read_result(path: Path) -> dict[str, Any]:
    """A result that `open-cloc eval --output` wrote.

    Raises:
        MissingFileError: If there is no such file.
        UserError: If it is something else.
    """
    found = read_json(path)
    parts = ("task", "metrics", "protocol")
    if not isinstance(found, dict) or any(part not in found for part in parts):
        raise UserError(f"{path} is no result of open-cloc eval: expected {', '.join(parts)}")
    if not isinstance(found["metrics"], dict) or not isinstance(found["protocol"], dict):
        raise UserError(f"{path} is no result of open-cloc eval: metrics and protocol must be tables")
    for name, value in found["metrics"].items():
        if type(value) not in (int, float) or not math.isfinite(value):
            raise UserError(
                f"{path} is no result of open-cloc eval: metric {name} must be a number; got {value!r:.40}"
            )
    rules = found["protocol"].get("rules")
    if isinstance(rules, dict) and rules.get("name") != found["protocol"].get("name"):
        raise UserError(
            f"{path} says protocol {found['protocol'].get('name')!r:.40} and has the rules of "
            f"{rules.get('name')!r:.40}: it was changed after it was measured"
        )
    return found


def compare(results: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, list[Row]]:
    """The metrics that results have in common, each result against the first.

    Args:
        results: At least two, as `evaluate` makes them.
        names: What to call each in messages.

    Returns:
        Rows by metric, one for each result; the first row's difference is 0.

    Raises:
        UserError: If two were not measured alike, or share no metric, or a file was damaged or changed.
    """
    if len(results) < 2:
        raise UserError(f"comparing needs at least two results; got {len(results)}")
    first = results[0]
    for name, other in zip(names[1:], results[1:]):
        _refuse_unlike(first, other, names[0], name)
    shared = [metric for metric in first["metrics"] if all(metric in other["metrics"] for other in results)]
    if not shared:
        raise UserError(f"{' and '.join(names)} have no metric in common")
    draws = [
        {metric: _draws(result, metric, name) for metric in shared} for result, name in zip(results, names)
    ]
    return {
        metric: [
            _row(metric, first, other, draws[0][metric], own[metric]) for other, own in zip(results, draws)
        ]
        for metric in shared
    }


def _refuse_unlike(first: Mapping[str, Any], other: Mapping[str, Any], one: str, two: str) -> None:
    for key, what in SHARED.items():
        mine, theirs = (_told(result, key) for result in (first, other))
        if mine != theirs:
            raise UserError(
                f"{one} and {two} cannot be compared: their {what} differ, {_brief(mine, theirs)} and "
                f"{_brief(theirs, mine)}"
            )
    counts = sorted(key for key in {*first["protocol"], *other["protocol"]} if key.startswith(COUNTS))
    for key in counts:
        mine, theirs = (result["protocol"].get(key) for result in (first, other))
        if mine != theirs:
            raise UserError(
                f"{one} and {two} cannot be compared: {key} is {mine} in one and {theirs} in the other"
            )


def _told(result: Mapping[str, Any], key: str) -> Any:
    return result["protocol"].get(key, result.get(key))


def _brief(value: Any, other: Any) -> str:
    """A value, unless it is a table: then its name, or what of it the other has not."""
    if not isinstance(value, dict):
        return f"{value!r:.120}"
    if value.get("name"):
        return f"protocol {value['name']}"
    if "name" in value and isinstance(other, dict) and other.get("name"):
        return "no protocol"
    own = {key: part for key, part in value.items() if not isinstance(other, dict) or other.get(key) != part}
    return f"{own!r:.120}"


def _row(
    metric: str,
    first: Mapping[str, Any],
    other: Mapping[str, Any],
    draws_of_first: np.ndarray | None,
    draws: np.ndarray | None,
) -> Row:
    value = other["metrics"][metric]
    difference = value - first["metrics"][metric]
    if other is first:
        return Row(value, 0.0)
    if draws_of_first is None or draws is None:
        return Row(value, difference)
    moved = draws.astype(np.float64) - draws_of_first
    moved = moved[np.isfinite(moved)]
    if not len(moved):
        return Row(value, difference)
    # As many draws on the other side of 0 as there are, and the one that was seen.
    beyond = min(np.sum(moved <= 0), np.sum(moved >= 0))
    return Row(value, difference, ends_of(moved), min(1.0, 2 * (float(beyond) + 1) / (len(moved) + 1)))


def _draws(result: Mapping[str, Any], metric: str, name: str) -> np.ndarray | None:
    """A metric on other draws of the images (S,); None where a result kept none.

    Raises:
        UserError: If they are damaged, or the metric cannot be of the pictures that were drawn.
    """
    written = result.get("draws", {})
    if not isinstance(written, dict) or written.get(metric) is None:
        return None
    try:
        found = np.frombuffer(base64.b64decode(written[metric], validate=True), "<f4")
    except (ValueError, TypeError) as error:
        raise UserError(f"{name}: the draws of {metric} are damaged: {error}") from None
    if len(found) != RESAMPLES:
        raise UserError(f"{name}: {metric} has {len(found)} draws, not {RESAMPLES}; the file is damaged")
    known = found[np.isfinite(found)]
    value = result["metrics"][metric]
    if len(known) and not known.min() - ROUNDING <= value <= known.max() + ROUNDING:
        raise UserError(
            f"{name}: {metric} is {value:g}, and its draws lie between {known.min():g} and {known.max():g}; "
            "the file was changed after it was measured"
        )
    return found


def comparison_table(rows: Mapping[str, Sequence[Row]], names: Sequence[str]) -> str:
    """A comparison as aligned lines: each metric's values, then what differs from the first."""
    lines, width = [], max(map(len, names))
    for metric, row in rows.items():
        lines.append(metric)
        for name, one in zip(names, row):
            lines.append(f"  {name:{width}}  {one.value:8.4f}{_difference(one)}".rstrip())
    return "\n".join(lines)


def _difference(row: Row) -> str:
    if row.interval is None:
        return "" if row.difference == 0 else f"  {row.difference:+.4f}"
    low, high = row.interval
    return f"  {row.difference:+.4f}  [{low:+.4f}, {high:+.4f}]  p {row.p:.3f}"


def times_table(results: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """What a region took in each result, picture's pass included; empty where none of them says it."""
    times = {name: result.get("seconds_per_region") for name, result in zip(names, results)}
    known = {name: time for name, time in times.items() if isinstance(time, float)}
    if not known:
        return ""
    width = max(map(len, names))
    devices = {name: result["protocol"].get("device", "") for name, result in zip(names, results)}
    lines = [
        f"  {name:{width}}  {1000 * time:8.2f}  {devices[name]}".rstrip() for name, time in known.items()
    ]
    return "\n".join(["ms a region, its picture's pass included", *lines])
