"""Readers of annotations and of pictures: each turns one format into a dataset of `RegionSample`.

A reader is a module with two functions: `recognises(text)` says whether a bare path is of its format, and the
one that opens the dataset is listed here.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path

from open_cloc.config import call_with_options, lookup, parse_spec
from open_cloc.data.annotations import SampleDataset
from open_cloc.data.readers.files import MOST_LOOKED_AT, subfolders
from open_cloc.data.readers.unread import ADVICE, VOC_FORM, form_of
from open_cloc.data.readers.upright import Upright, exif_option
from open_cloc.errors import MissingFileError, UserError
from open_cloc.shown import without_secrets

__all__ = ["READERS", "SampleDataset", "guess_spec", "open_reader"]

# format -> `module:function` taking (path, **options); imported when it is used.
READERS = {
    "coco": "open_cloc.data.readers.coco:open_coco",
    "lvis": "open_cloc.data.readers.lvis:open_lvis",
    "yolo": "open_cloc.data.readers.yolo:open_yolo",
    "voc": "open_cloc.data.readers.voc:open_voc",
    "panoptic": "open_cloc.data.readers.panoptic:open_panoptic",
    "masks": "open_cloc.data.readers.masks:open_masks",
    "objects365": "open_cloc.data.readers.objects365:open_objects365",
    "open_images": "open_cloc.data.readers.open_images:open_open_images",
    "visual_genome": "open_cloc.data.readers.visual_genome:open_visual_genome",
    "flickr30k": "open_cloc.data.readers.flickr30k:open_flickr30k",
    "fg_ovd": "open_cloc.data.readers.fg_ovd:open_fg_ovd",
    "finehard": "open_cloc.data.readers.finehard:open_finehard",
    "odvg": "open_cloc.data.readers.odvg:open_odvg",
    "karpathy": "open_cloc.data.readers.karpathy:open_karpathy",
    "flair": "open_cloc.data.readers.flair:open_flair",
    "sharegpt4v": "open_cloc.data.readers.sharegpt4v:open_sharegpt4v",
    "urban1k": "open_cloc.data.readers.urban1k:open_urban1k",
    "dci": "open_cloc.data.readers.dci:open_dci",
    "reclip": "open_cloc.data.readers.referring:open_reclip",
    "grefcoco": "open_cloc.data.readers.grefcoco:open_grefcoco",
    "mdetr": "open_cloc.data.readers.mdetr:open_mdetr",
    "refcoco_table": "open_cloc.data.readers.refcoco_table:open_refcoco_table",
    "shards": "open_cloc.data.shards.remote:open_shards",
    "scenes": "open_cloc.data.scenes.dataset:open_scenes",
    "folder": "open_cloc.data.readers.folder:open_folder",
    "class_folders": "open_cloc.data.readers.class_folders:open_class_folders",
    "table": "open_cloc.data.readers.table:open_table",
}
# The same for what is opened only to be converted: pickles, which nothing else reads.
CONVERTED = {"refcoco": "open_cloc.data.readers.refcoco:open_refcoco"}
# Of those, what is one file, and is not looked for in folders by its own reader.
OF_FILES = (
    "panoptic",
    "fg_ovd",
    "finehard",
    "odvg",
    "karpathy",
    "flair",
    "sharegpt4v",
    "reclip",
    "grefcoco",
    "mdetr",
)
MOST_IN_FOLDER = 20
# Names of folders that are no parts of one data set, in small letters.
SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")
TABLE = "table"
PICKLES = (".p", ".pkl", ".pickle")
OF_COCO = {"coco", "lvis"}
LAST = "folder"  # asked when no other format is recognised: their folders hold pictures as well
WITH_FILES = {LAST, *OF_COCO}  # beside their own, a folder may hold a file of another format, of `OF_FILES`


def open_reader(spec: str, converting: bool = False) -> SampleDataset:
    """Open a dataset by `FORMAT:PATH[,name=value...]`.

    Args:
        spec: FORMAT is a key of `READERS`, or `package.module:Name` of a callable that takes the path and the
            options and returns a `SampleDataset`; a path alone is taken for what `guess_spec` finds there.
            Options become what the callable's annotations say. With `exif=apply`, which every format has,
            pictures are turned as their EXIF orientation asks, and nothing else is.
        converting: Open what is only converted, too.

    Raises:
        UserError: On an unknown format or option, files that are not of that format, or a format that has to
            be converted first.
        MissingFileError: If the path does not exist.
    """
    readers = READERS | CONVERTED
    named = guess_spec(spec)
    kind, path, options = parse_spec(named, readers)
    if kind in CONVERTED and not converting:
        raise UserError(
            f"{kind} is a pickle: make shards of it by open-cloc data convert {named} FOLDER, and look at "
            "these"
        )
    turn = exif_option(options.pop("exif", "keep"), spec)
    dataset = call_with_options(lookup(readers, kind, "reader"), path, options=options, where=spec)
    return Upright(dataset) if turn else dataset


def guess_spec(text: str) -> str:
    """Complete a bare path to `FORMAT:PATH` by looking at what lies there; a full spec comes back as it is.

    Raises:
        MissingFileError: If the text is neither a spec nor an existing path.
        UserError: If nothing there is recognised, or several formats are.
    """
    if re.match(rf"({'|'.join((*READERS, *CONVERTED))}):.|[A-Za-z_][\w.]*:[A-Za-z_]\w*:.", text):
        return text
    bare = parse_spec(text, {})
    path = f"{bare.kind}:{bare.what}" if bare.what else bare.kind
    named = without_secrets(path)
    found = _formats(path)
    below = [] if found else _data_sets_below(Path(path))
    if not found and _recogniser(LAST)(path):
        found = [LAST]
    if below:
        alone = f", or {LAST}:{path} for its pictures alone" if found else ""
        raise UserError(f"{named!r} holds data sets in its folders; give one of {', '.join(below)}{alone}")
    # Beside COCO's boxes, its folder `annotations` holds panoptic ones as a matter of course.
    places = [Path(path), *([Path(path) / "annotations"] if found == [LAST] else [])]
    inside = _files_in(*places) if found and set(found) <= WITH_FILES else []
    if inside:
        part = "the pictures" if found == [LAST] else "its boxes"
        raise UserError(
            f"{named!r} holds what describes its pictures; give one of {', '.join(inside)}, or "
            f"{found[0]}:{path} for {part} alone"
        )
    splits = _splits_in(Path(path)) if found == [LAST] else []
    if len(splits) > 1:
        each = ", ".join(f"{LAST}:{split}" for split in splits)
        raise UserError(f"{named!r} holds splits; give one of {each}, or {LAST}:{path} for all of them")
    if len(found) > 1:
        raise UserError(f"{named!r} looks like {' and like '.join(found)}; give the format as FORMAT:{named}")
    if not found:
        raise _unknown(path)
    return f"{found[0]}:{text}"


def _formats(path: str) -> list[str]:
    """The formats of what lies at a path; a folder of pictures is none."""
    found = [name for name in (*READERS, *CONVERTED) if name != LAST and _recogniser(name)(path)]
    # What is of a certain data set is often a table, or COCO's or LVIS's form, as well.
    general = {TABLE} | (OF_COCO if {"objects365", "mdetr", "fg_ovd", *CONVERTED} & set(found) else set())
    return [name for name in found if name not in general] if len(found) > 1 else found


def _data_sets_below(folder: Path) -> list[str]:
    """FORMAT:PATH of what lies in the folders and tables of a folder, as Roboflow's `train` and `valid`."""
    inside = subfolders(folder)
    if len(inside) > MOST_LOOKED_AT:  # a folder for each class, or the like
        return []
    return [f"{name}:{place}" for place in inside for name in _formats(str(place))]


def _files_in(*folders: Path) -> list[str]:
    """FORMAT:PATH of folders' own files of annotations, where these are few."""
    try:
        places = [folder for folder in folders if folder.is_dir()]
        found = [file for place in places for file in sorted(place.iterdir())]
    except OSError:
        return []
    files = [file for file in found if file.suffix.lower() in (".json", ".jsonl")]
    if len(files) > MOST_IN_FOLDER:  # one for each picture
        return []
    return [f"{name}:{file}" for file in files for name in OF_FILES if _recogniser(name)(str(file))]


def _splits_in(folder: Path) -> list[Path]:
    """Folders that bear a split's name, as in Hugging Face's image folders: tests are not to train on."""
    return [place for place in subfolders(folder) if place.name.lower() in SPLITS]


def _unknown(path: str) -> UserError:
    """The error for a path at which nothing is recognised, which names what seems to lie there."""
    formats = ", ".join(READERS)
    if not Path(path).exists():
        named = without_secrets(path)
        return MissingFileError(f"{named!r} is neither an existing path nor FORMAT:PATH (FORMAT: {formats})")
    if Path(path).suffix.lower() in PICKLES:
        return UserError(f"{path!r} is a pickle; RefCOCO's is read by open-cloc data convert refcoco:{path}")
    tool = form_of(Path(path))
    if tool == VOC_FORM:
        return UserError(f"{path!r} is of one picture: give its folder, voc:{Path(path).parent}")
    if tool:
        return UserError(f"{path!r} holds boxes of {tool}, which no reader knows: {ADVICE}")
    places = (Path(path), *subfolders(Path(path)))
    files = sorted(file for place in places for file in place.glob("*.*"))
    tables = list(dict.fromkeys(_all_parts(file) for file in files if _recogniser("table")(str(file))))
    if tables:
        more = f" and {len(tables) - 3} more" if len(tables) > 3 else ""
        return UserError(f"{path!r} holds tables; give one of table:{', table:'.join(tables[:3])}{more}")
    return UserError(f"{path!r} holds nothing known; give the format as FORMAT:{path} (FORMAT: {formats})")


def _all_parts(table: Path) -> str:
    """A table's path; of a part, as in `train-00000-of-00004.parquet`, that of all of them."""
    return str(table.with_name(re.sub(r"-\d+-of-\d+(-[0-9a-f]+)?(?=\.parquet$)", "-*", table.name)))


def _recogniser(name: str) -> Callable[[str], bool]:
    """The function of a reader's module that knows its format when it sees it."""
    return importlib.import_module((READERS | CONVERTED)[name].partition(":")[0]).recognises
