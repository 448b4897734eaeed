"""The JSON files of a run's folder, read by what they must hold.

They say what is whole, what made it, and which files to remove, and lie where anybody may write. Whatever is
in them is the file's fault, told with its name; nothing later has to look again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from open_cloc.data.fields import FieldError, as_number, as_text, as_whole, field_of, shown
from open_cloc.errors import MissingFileError, UserError
from open_cloc.files import read_json
from open_cloc.labelling.provenance import in_todays_words

# The only form of a unit's name: files are removed by it.
UNIT_NAME = re.compile(r"[0-9]{5,12}")
BIN_NAME = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,6})?")
DEEPEST = 40  # tables in tables; our own have six
LARGEST_COUNT = 2**62
TABLES = ("failures", "phrases_dropped", "boxes_dropped", "filtered", "top_phrases")
NUMBERS = (
    *("pictures", "written", "phrases", "without_phrase", "raw_boxes", "regions", "without_region"),
    "given_regions_replaced",
)
# What version 0.1 did not look at.
NOT_COUNTED_BEFORE: Mapping[str, Any] = {"captions_cut": 0, "not_read": {}}


def read_certificate(path: Path) -> dict[str, Any] | None:
    """What `label.json` says a run is: name, source, units, recipe, filter; None where there is none.

    Raises:
        UserError: If it says anything else.
    """
    return _read(path, _check_certificate, "is no certificate of a labelling run")


def read_raw_mark(path: Path) -> dict[str, Any] | None:
    """What made a unit's raw detections: recipe, made_by, software; None where there is no mark.

    Raises:
        UserError: If it says anything else.
    """
    return _read(path, _check_mark, "delete it to make its shard again")


def read_label_mark(path: Path) -> dict[str, Any] | None:
    """What made a unit's labelled shard, and its counts; None where there is no mark.

    Raises:
        UserError: If it says anything else.
    """
    mark = _read(path, _check_label_mark, "delete it to make its shard again")
    if mark is not None:
        mark["counts"] = {**NOT_COUNTED_BEFORE, **mark["counts"]}
    return mark


def _read(path: Path, check: Callable[[Mapping[str, Any]], None], advice: str) -> dict[str, Any] | None:
    try:
        document = read_json(path)
    except MissingFileError:
        return None
    except UserError as error:
        raise UserError(f"{error}; {advice}") from None
    try:
        if _depth(document) > DEEPEST:
            raise FieldError(f"more than {DEEPEST} tables lie in each other")
        check(_table(document, "the file"))
    except FieldError as error:
        raise UserError(f"{error} ({path}); {advice}") from None
    return in_todays_words(document)


def _check_certificate(document: Mapping[str, Any]) -> None:
    for name in ("name", "source"):
        as_text(field_of(document, name), name)
    for name in ("recipe", "filter"):
        _table(field_of(document, name), name)
    units = field_of(document, "units")
    if not isinstance(units, list):
        raise FieldError(f"units must be a list; got {shown(units)}")
    names = [_check_unit(_table(unit, "a unit")) for unit in units]
    if len(set(names)) < len(names):
        raise FieldError("two units have one name")


def _check_unit(unit: Mapping[str, Any]) -> str:
    name = field_of(unit, "name")
    if not isinstance(name, str) or not UNIT_NAME.fullmatch(name):
        raise FieldError(f"a unit's name must be five digits or more; got {shown(name)}")
    as_text(field_of(unit, "spec"), "spec")
    as_whole(field_of(unit, "start"), "start")
    if field_of(unit, "stop") is not None:
        as_whole(unit["stop"], "stop")
    return name


def _check_mark(document: Mapping[str, Any]) -> None:
    for name in ("recipe", "made_by", "software"):
        _table(field_of(document, name), name)
    _counts(document.get("not_read", {}), "not_read")


def _check_label_mark(document: Mapping[str, Any]) -> None:
    _check_mark(document)
    counts = _table(field_of(document, "counts"), "counts")
    for name in NUMBERS:
        _count(field_of(counts, name), name)
    for name in TABLES:
        _counts(field_of(counts, name), name)
    counts = {**NOT_COUNTED_BEFORE, **counts}
    _count(counts["captions_cut"], "captions_cut")
    _counts(counts["not_read"], "not_read")
    for name, bins in _table(field_of(counts, "histograms"), "histograms").items():
        _counts(bins, f"histogram {name!r}")
        wrong = next((key for key in bins if not BIN_NAME.fullmatch(key)), None)
        if wrong is not None:
            raise FieldError(f"histogram {name!r} must be of numbers; got {shown(wrong)}")
    for cause, messages in _table(field_of(counts, "failure_examples"), "failure_examples").items():
        if not isinstance(messages, list) or not all(isinstance(message, str) for message in messages):
            raise FieldError(f"examples of {cause!r} must be a list of texts; got {shown(messages)}")
    _check_worst(field_of(counts, "worst_cycle"))


def _check_worst(rows: Any) -> None:
    """Regions of the lowest cycle scores: cosine, key, text, score."""
    if not isinstance(rows, list):
        raise FieldError(f"worst_cycle must be a list; got {shown(rows)}")
    for row in rows:
        if not isinstance(row, list) or len(row) != 4:
            raise FieldError(f"worst_cycle must hold rows of 4; got {shown(row)}")
        cosine, key, text, score = row
        as_number(cosine, "cosine")
        as_number(score, "score")
        if not isinstance(key, str) or not isinstance(text, str):
            raise FieldError(f"worst_cycle must name key and text; got {shown(row)}")


def _table(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise FieldError(f"{name} must be a table; got {shown(value)}")
    return value


def _count(value: Any, name: str) -> None:
    if type(value) is not int or not 0 <= value < LARGEST_COUNT:
        raise FieldError(f"{name} must be a count; got {shown(value)}")


def _counts(value: Any, name: str) -> None:
    for key, count in _table(value, name).items():
        if type(count) is not int or not 0 <= count < LARGEST_COUNT:  # a shard has thousands of them
            raise FieldError(f"{name}, {key!r} must be a count; got {shown(count)}")


def _depth(document: Any) -> int:
    """How many tables and lists lie in each other."""
    depth, level = 0, [document]
    while level:
        level = [part for value in level for part in _parts(value)]
        depth += 1
    return depth


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, (dict, list)):
        yield from (part for part in (value.values() if isinstance(value, dict) else value) if _nests(part))


def _nests(value: Any) -> bool:
    return isinstance(value, (dict, list))
