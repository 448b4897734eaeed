"""Marks of any shape: what they hold is read, or the file is named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_cloc.errors import UserError
from open_cloc.labelling.diff import compare
from open_cloc.labelling.marks import read_certificate, read_label_mark, read_raw_mark
from open_cloc.labelling.output import RunFolder
from open_cloc.labelling.recipe import LabelRecipe
from open_cloc.labelling.report import write_report
from open_cloc.labelling.stats import RegionStats, picture_stats
from open_cloc.labelling.types import Failure, Picture, Unit
from open_cloc.samples import Region, RegionSample

SPEC = "scenes:val,num_samples=2"
RECIPE = LabelRecipe("test")
UNITS = [Unit("00000", SPEC, 0, 1), Unit("00001", SPEC, 1, 2)]


def marks_in(folder: Path) -> dict[str, Any]:
    """A folder of a run of two units, its files by name, the tars left out."""
    run = RunFolder.open(folder, RECIPE, SPEC, UNITS)
    stats = RegionStats()
    region = Region((0.1, 0.1, 0.5, 0.5), "a dog", 0.5, "x", None, 0.25)
    stats.add(RegionSample("a", b"", ("a dog",), (region,)))
    counts = picture_stats([Picture(0, "a"), Picture(1, "b", failure=Failure("broken", "cut off"))])
    recipe = run.certificate["recipe"]
    raw = {"recipe": recipe, "made_by": {"detect": {"weights": "w"}}, "software": {"torch": "2"}}
    label = {
        **raw,
        "name": "test",
        "recipe": recipe | {"filter": run.certificate["filter"]},
        "counts": {**counts, **stats.as_json(), "not_read": {"files .heic": 1}, "written": 0},
    }
    files = {"label.json": json.loads((folder / "label.json").read_text())}
    files |= {f"raw/{unit.name}.json": raw for unit in UNITS}
    files |= {f"{unit.name}_label.json": label for unit in UNITS}
    return files


def write(folder: Path, files: dict[str, Any]) -> None:
    (folder / "raw").mkdir(exist_ok=True)
    for name, document in files.items():
        (folder / name).write_text(json.dumps(document))


def test_what_we_write_is_read(tmp_path: Path) -> None:
    files = marks_in(tmp_path)
    write(tmp_path, files)
    assert read_certificate(tmp_path / "label.json") == files["label.json"]
    assert read_raw_mark(tmp_path / "raw" / "00000.json") == files["raw/00000.json"]
    assert read_label_mark(tmp_path / "00000_label.json") == files["00000_label.json"]
    assert read_label_mark(tmp_path / "none.json") is None
    run = RunFolder.load(tmp_path)
    assert run.todo() == ([], [])
    assert write_report(tmp_path)["counts"]["failures"] == {"broken": 2}


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a document, as the way to it."""
    yield path
    if isinstance(document, (dict, list)):
        rows = document.items() if isinstance(document, dict) else enumerate(document)
        for key, value in rows:
            yield from places(value, (*path, key))


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    document = copy.deepcopy(document)
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return document


ODD = st.one_of(
    st.just(...),
    st.none(),
    st.booleans(),
    st.sampled_from(
        [0, -1, 3, 2**63, 10**400, 1.5, 1e308, "", "x", "../../x", "\ud83d", "nan", [], {}, [[]]]
    ),
    st.recursive(st.integers() | st.text(max_size=3), lambda x: st.lists(x) | st.dictionaries(st.text(), x)),
)


@cache
def sound_files() -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        return marks_in(Path(folder))


@st.composite
def odd_files(draw: st.DrawFn) -> dict[str, Any]:
    """The files of a run, one of which has an odd value somewhere, lacks one, or is something else."""
    files = copy.deepcopy(sound_files())
    name = draw(st.sampled_from(sorted(files)))
    path = draw(st.sampled_from(sorted(places(files[name]), key=str)))
    value = draw(ODD)
    if path:
        files[name] = changed(files[name], path, value)
    elif value is ...:
        del files[name]
    else:
        files[name] = value
    return files


def told(use: Callable[[], object]) -> str:
    """What a user is told; nothing if all went well."""
    try:
        use()
    except UserError as error:
        return str(error)
    return ""


@given(files=odd_files())
@settings(max_examples=120, deadline=None)
def test_marks_of_any_shape_are_the_users_to_mend(files: dict[str, Any]) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, files)
        uses = (
            lambda: RunFolder.load(folder).todo(),
            lambda: RunFolder.load(folder).finish(),
            lambda: compare(folder, folder),
            lambda: RunFolder.open(folder, RECIPE, SPEC, UNITS).todo(),
            lambda: RunFolder.open(folder, RECIPE, SPEC, UNITS, overwrite=True).todo(),
        )
        for use in uses:
            assert "\n" not in told(use)


@given(files=odd_files())
@settings(max_examples=10, deadline=None)
def test_reports_of_any_marks_are_written_or_refused(files: dict[str, Any]) -> None:
    with TemporaryDirectory() as name:
        write(Path(name), files)
        assert "\n" not in told(lambda: write_report(Path(name)))


@pytest.mark.parametrize("key", ["name", "source"])
def test_reports_hold_half_a_character(tmp_path: Path, key: str) -> None:
    files = sound_files()
    certificate = changed(files["label.json"], (key,), "half \ud83d")
    write(tmp_path, {**files, "label.json": certificate})
    assert told(lambda: write_report(tmp_path)) == ""
    assert json.loads((tmp_path / "report.json").read_text())[key] == "half \ud83d"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[" * 100_000, b'{"a": NaN}', b"\xff", b'{"units": 1, "units": 2}', b"null"]
)
def test_what_is_no_mark_is_named(tmp_path: Path, content: bytes) -> None:
    for read, name in ((read_certificate, "label.json"), (read_label_mark, "00000_label.json")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            read(tmp_path / name)


def test_deep_tables_are_refused(tmp_path: Path) -> None:
    files = marks_in(tmp_path)
    deep: Any = 1
    for _ in range(60):
        deep = {"a": deep}
    write(tmp_path, {"label.json": changed(files["label.json"], ("recipe", "detect"), deep)})
    with pytest.raises(UserError, match="more than 40 tables lie in each other"):
        RunFolder.load(tmp_path)


# --- what `--overwrite` removes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../../mine", "mine", "", "0000", "00000/../mine", "/mine", "０００００", None, 5]
)
def test_only_names_of_units_remove_files(tmp_path: Path, name: Any) -> None:
    folder = tmp_path / "out"
    files = marks_in(folder)
    mine = [tmp_path / "mine.tar", folder / "mine.tar", folder / "mine_label.json", folder / ".tar"]
    for path in mine:
        path.write_text("mine")
    write(folder, {"label.json": changed(files["label.json"], ("units", 0, "name"), name)})
    with pytest.raises(UserError, match=r"a unit's name must be five digits or more.*label\.json"):
        RunFolder.open(folder, RECIPE, SPEC, UNITS, overwrite=True)
    assert all(path.read_text() == "mine" for path in mine)


def test_links_are_not_followed_when_files_are_removed(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    files = marks_in(folder)
    elsewhere.mkdir()
    for name in ("00000.json", "00000_boxes.parquet", "a.tar"):
        (elsewhere / name).write_text("mine")
    write(folder, files)
    (folder / "00000.tar").symlink_to(elsewhere / "a.tar")
    RunFolder.open(folder, RECIPE, SPEC, UNITS, overwrite=True)
    assert not (folder / "00000.tar").is_symlink()
    assert (elsewhere / "a.tar").read_text() == "mine"
    for path in (folder / "raw").iterdir():
        path.unlink()
    (folder / "raw").rmdir()
    (folder / "raw").symlink_to(elsewhere)
    with pytest.raises(UserError, match="raw is a link"):
        RunFolder.open(folder, RECIPE, SPEC, UNITS, overwrite=True)
    assert len(list(elsewhere.iterdir())) == 3


def test_a_folder_in_a_files_place_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path, marks_in(tmp_path))
    (tmp_path / "00000.tar").mkdir()
    (tmp_path / "00000.tar" / "mine").touch()
    with pytest.raises((UserError, OSError)):
        RunFolder.open(tmp_path, RECIPE, SPEC, UNITS, overwrite=True)
    assert (tmp_path / "00000.tar" / "mine").exists()
    assert (tmp_path / "label.json").exists()  # it can be removed again
