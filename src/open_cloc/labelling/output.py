"""The folder of a labelling run: which files it holds, which of them are whole, and what made them.

    label.json                                              what the run is
    raw/00000_pictures.parquet, raw/00000_boxes.parquet     a unit's raw detections
    raw/00000.json                                          the mark that these are whole
    00000.tar, 00000_index.npz, 00000_stats.json            its labelled shard
    00000_label.json                                        the mark that this is whole
    sizes.json                                              samples of each shard, in the end
    report.html, report.json, sheet.jpg                     from `report`

A mark is written last, so that where it exists all else is whole. Nothing in these files tells time: the same
input gives the same bytes. Nobody but this file knows the names; `marks` reads them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from open_cloc.data.shards.index import index_file
from open_cloc.data.shards.write import Storage, write_shard
from open_cloc.errors import ExistingFileError, MissingFileError, UserError
from open_cloc.files import is_free, write_json
from open_cloc.labelling.filter import LabelledSamples
from open_cloc.labelling.marks import read_certificate, read_label_mark, read_raw_mark
from open_cloc.labelling.provenance import describe, differences, downstream, software, upstream
from open_cloc.labelling.raw import read_raw, write_raw
from open_cloc.labelling.recipe import LabelRecipe
from open_cloc.labelling.stats import Totals, picture_stats
from open_cloc.labelling.types import Batch, Picture, Unit, UnreadUnit
from open_cloc.shown import hide_secrets, without_secrets

RUN_FILE, SIZES, RAW = "label.json", "sizes.json", "raw"
REPORT_PAGE, REPORT_NUMBERS, REPORT_SHEET = "report.html", "report.json", "sheet.jpg"

# Has a unit written: from its batches, or, where these are None, from the raw detections that are there.
Write = Callable[[Unit, "Sequence[Batch] | None"], object]


class Todo(NamedTuple):
    """What is left to do.

    Attributes:
        detect: Units without raw detections.
        filter: Units whose raw detections are there, but not the shard that this filter makes of them.
    """

    detect: list[Unit]
    filter: list[Unit]


@dataclass(frozen=True)
class UnitFiles:
    """Where the files of one unit lie.

    Attributes:
        folder: The run's folder.
        unit: Name of the unit.
    """

    folder: Path
    unit: str

    @property
    def raw_mark(self) -> Path:
        return self.folder / RAW / f"{self.unit}.json"

    @property
    def raw(self) -> tuple[Path, Path]:
        """The files of pictures and of boxes."""
        raw = self.folder / RAW
        return raw / f"{self.unit}_pictures.parquet", raw / f"{self.unit}_boxes.parquet"

    @property
    def label_mark(self) -> Path:
        return self.folder / f"{self.unit}_label.json"

    @property
    def tar(self) -> Path:
        return self.folder / f"{self.unit}.tar"

    def remove_shard(self) -> None:
        """Remove the labelled shard, its mark first."""
        for path in (
            self.label_mark,
            self.tar,
            self.folder / f"{self.unit}_stats.json",
            index_file(self.tar),
        ):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove all of the unit's files; marks go before what they vouch for."""
        self.remove_shard()
        for path in (self.raw_mark, *self.raw):
            path.unlink(missing_ok=True)


class RunFolder:
    """The folder of a run, as the process sees it that started the run, or that looks at what came out.

    Args:
        path: The folder.
        certificate: What `label.json` says: name, source, units, recipe, filter.
        units: The parts of the input; those that the certificate names, which hold no secrets of URLs, unless
            they are to be read.

    Attributes:
        units: The parts of the input, one for each shard, by name.
        unread: Units that could not be opened, each with the reason.
    """

    def __init__(self, path: Path, certificate: dict[str, Any], units: Sequence[Unit] = ()) -> None:
        self.path = path
        self.certificate = certificate
        named = units or [Unit(**unit) for unit in certificate["units"]]
        self.units = {unit.name: unit for unit in named}
        self.unread: dict[str, str] = {}
        self._parts: dict[str, list[Batch]] = {}

    @classmethod
    def open(
        cls,
        path: str | Path,
        recipe: LabelRecipe,
        source: str,
        units: Sequence[Unit],
        overwrite: bool = False,
    ) -> RunFolder:
        """Make a folder, or make sure that what it holds was made by this recipe from this input.

        Args:
            path: The folder.
            recipe: What is going to be done.
            source: The input, as the user gave it.
            units: The input in parts.
            overwrite: Remove the files of an earlier run there, whatever made them, and nothing else.

        Raises:
            ExistingFileError: If the folder holds something else than a run.
            UserError: If it holds labels that were made otherwise.
        """
        path = Path(path).resolve()
        earlier = read_certificate(path / RUN_FILE)
        if earlier is None and not is_free(path):
            raise ExistingFileError(
                f"output folder must be new, empty or of an earlier labelling run; got {path}"
            )
        if (path / RAW).is_symlink():
            raise UserError(f"{path / RAW} is a link; raw detections lie in the run's own folder")
        now: dict[str, Any] = {"source": without_secrets(source), "units": [_named(unit) for unit in units]}
        now |= {"recipe": upstream(recipe)}
        if earlier is not None and overwrite:
            cls(path, earlier)._remove()
        elif earlier is not None:
            # An earlier version wrote URLs out.
            _refuse_changes(path, hide_secrets({name: earlier[name] for name in now}), now)
        certificate = {"name": recipe.name, **now, **downstream(recipe)}
        write_json(path / RUN_FILE, certificate)
        return cls(path, certificate, units)

    @classmethod
    def load(cls, path: str | Path) -> RunFolder:
        """The folder of an earlier run.

        Raises:
            MissingFileError: If it holds none.
            UserError: If its `label.json` is none of a run.
        """
        certificate = read_certificate(Path(path) / RUN_FILE)
        if certificate is None:
            raise MissingFileError(f"no labelling run in {path}: it has no {RUN_FILE}")
        return cls(Path(path), certificate)

    def todo(self) -> Todo:
        """The units that are not yet as the certificate has them."""
        whole = self.certificate["recipe"] | {"filter": self.certificate["filter"]}
        labelled = {unit for unit, mark in self.marks() if mark["recipe"] == whole}
        left = [unit for name, unit in self.units.items() if name not in labelled]
        raw = _names(self.path / RAW)
        detected = {unit.name for unit in left if self._files(unit.name).raw_mark.name in raw}
        return Todo(
            [unit for unit in left if unit.name not in detected],
            [unit for unit in left if unit.name in detected],
        )

    def add(self, batch: Batch | UnreadUnit, write: Write) -> None:
        """Take in a batch, and have its unit written once this was the last one that was missing.

        Raises:
            UserError: If other models made it than the raw detections that were there before.
        """
        if isinstance(batch, UnreadUnit):
            self.unread[batch.unit] = batch.message
            return
        before = self._made_by
        if before is not None and batch.made_by.keys() == before.keys():
            _refuse_changes(self.path, before, batch.made_by)
        part = self._parts.setdefault(batch.unit, [])
        part.append(batch)
        if len(part) == batch.of:
            write(self.units[batch.unit], self._parts.pop(batch.unit))

    def finish(self) -> dict[str, Any]:
        """Write the sizes of the shards, as readers of shards look for them; returns the counts of all."""
        assert not self._parts, f"batches are missing of {', '.join(self._parts)}"
        totals, sizes = Totals(), dict[str, int]()
        for unit, mark in self.marks():
            totals.add(mark["counts"])
            if mark["counts"]["written"]:
                sizes[self._files(unit).tar.name] = mark["counts"]["written"]
        write_json(self.path / SIZES, sizes)
        return totals.as_json()

    def marks(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The name and the mark of each unit that is labelled: recipe, made_by, software, counts."""
        there = _names(self.path)
        for unit in self.units:
            path = self._files(unit).label_mark
            mark = read_label_mark(path) if path.name in there else None
            if mark is not None:
                yield unit, mark

    def tar(self, unit: str) -> Path:
        """The labelled shard of a unit."""
        return self._files(unit).tar

    @cached_property
    def _made_by(self) -> dict[str, Any] | None:
        """What the stages said of themselves before; None if nothing was there."""
        there = _names(self.path / RAW)
        paths = (self._files(unit).raw_mark for unit in self.units)
        marks = (read_raw_mark(path) for path in paths if path.name in there)
        return next((mark["made_by"] for mark in marks if mark is not None), None)

    def _files(self, unit: str) -> UnitFiles:
        return UnitFiles(self.path, unit)

    def _remove(self) -> None:
        """Remove the run's files. What makes the folder a run goes last: it can be removed again."""
        for unit in self.units:
            self._files(unit).remove()
        for name in (SIZES, REPORT_PAGE, REPORT_NUMBERS, REPORT_SHEET, RUN_FILE):
            (self.path / name).unlink(missing_ok=True)


def write_unit(folder: Path, recipe: LabelRecipe, unit: Unit, batches: Sequence[Batch] | None) -> None:
    """Write a unit's files; this is what a writer does, in a process of its own.

    Args:
        folder: The run's folder.
        recipe: What is done.
        unit: The part of the input.
        batches: All of the unit's, in any order; None takes the raw detections that are there.

    Raises:
        UserError: If the raw detections, or the input as a whole, cannot be read any more.
    """
    files = UnitFiles(folder, unit.name)
    if batches is not None:
        _write_raw(files, recipe, unit, sorted(batches, key=lambda batch: batch.number))
    _write_labelled(files, recipe, unit)


def _write_raw(files: UnitFiles, recipe: LabelRecipe, unit: Unit, batches: Sequence[Batch]) -> None:
    pictures: list[Picture] = []
    made_by: dict[str, Any] = {}
    not_read: dict[str, int] = {}
    for batch in batches:
        pictures += batch.pictures
        made_by |= batch.made_by
        not_read |= batch.not_read
    write_raw(pictures, *files.raw)
    mark = {
        "unit": {"spec": without_secrets(unit.spec), "start": unit.start, "stop": unit.stop},
        "recipe": upstream(recipe),
        "made_by": made_by,
        "software": software(),
        "not_read": not_read,
    }
    write_json(files.raw_mark, mark)


def _write_labelled(files: UnitFiles, recipe: LabelRecipe, unit: Unit) -> None:
    """Filter a unit's raw detections and write the shard."""
    certificate = read_raw_mark(files.raw_mark)
    assert certificate is not None, unit
    files.remove_shard()
    pictures = _detected(files)
    samples = LabelledSamples(unit, [p for p in pictures if p.failure is None], recipe)
    if samples.pictures and not write_shard(samples, files.tar, Storage()):
        files.remove_shard()
    became = [replace(p, failure=samples.failures.get(p.index, p.failure)) for p in pictures]
    not_read = certificate.pop("not_read", {})
    mark = {
        **certificate,
        "name": recipe.name,
        "recipe": certificate["recipe"] | downstream(recipe),
        "counts": {**picture_stats(became), **samples.stats.as_json(), "not_read": not_read},
    }
    write_json(files.label_mark, mark)


def _detected(files: UnitFiles) -> list[Picture]:
    try:
        return read_raw(*files.raw)
    except UserError as error:
        raise UserError(f"{error}; delete {files.raw_mark} to have them made again") from None


def _named(unit: Unit) -> dict[str, Any]:
    """A unit as the certificate names it."""
    return {**asdict(unit), "spec": without_secrets(unit.spec)}


def _names(folder: Path) -> set[str]:
    """Names of what lies in a folder; of none where it is not there."""
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()


def _refuse_changes(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if before == now:
        return
    changes = list(differences(before, json.loads(json.dumps(now))))
    if changes:
        raise UserError(
            f"{folder} holds labels that were made otherwise: {describe(changes)[:500]}; "
            "give another folder, or --overwrite"
        )
