"""Pascal VOC: a folder with an XML for each picture, as VOC, ImageNet, LabelImg and Roboflow write them.

Corners are taken as they stand. VOC's own count pixels from 1, LabelImg's from 0: nothing in a file says
which, and it is a pixel.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from open_cloc.data.annotations import Problem, RawRegion
from open_cloc.data.fields import FieldError, as_text
from open_cloc.data.names import find
from open_cloc.data.readers.files import subfolders
from open_cloc.data.readers.packed import Entry, PackedDataset, picture_folders, problem_in
from open_cloc.data.readers.unread import VOC_FORM, form_of
from open_cloc.data.readers.xml_files import corners_in, parse_xml, size_in
from open_cloc.errors import MissingFileError, UserError
from open_cloc.files import read_text
from open_cloc.pictures import SUFFIXES, is_picture

SOURCE = "voc"
ANNOTATIONS, SETS = "Annotations", "ImageSets/Main"
FOLDERS = ("JPEGImages", "images")
OUTLINES = ("robndbox", "polygon", "points")  # turned boxes and outlines, which are not read
DIFFICULT = "marks of objects as difficult, which are boxes like others"
LOOKED_AT = 3  # files, to see whether a folder is of this format
LISTED = 100  # pictures by which their folders are found


def recognises(text: str) -> bool:
    """Whether this is a folder of XML files with boxes, itself or in `Annotations`."""
    folder = _annotations(Path(text))
    if folder is None or (Path(text) / "Sentences").is_dir():  # which Flickr30k Entities has beside them
        return False
    return any(form_of(file) == VOC_FORM for file in islice(folder.glob("*.xml"), LOOKED_AT))


def open_voc(path: str, images: Path | None = None, split: str = "", outside: bool = False) -> PackedDataset:
    """Open boxes of Pascal VOC's form.

    A picture without XML is counted as not annotated: ImageNet annotates a part of its pictures, and LabelImg
    writes an XML once somebody has drawn.

    Args:
        path: Folder of `Annotations` and `JPEGImages`, or of XML files beside their pictures.
        images: Folder of the pictures.
        split: A list in `ImageSets/Main`, such as `val`; all files unless given.
        outside: Allow pictures that do not lie in the data set's folder.

    Raises:
        MissingFileError: If there are no XML files, no such list, or no pictures.
        UserError: If no file can be used.
    """
    folder = _annotations(Path(path))
    if folder is None:
        below = ", ".join(f"voc:{each}" for each in subfolders(Path(path)) if _annotations(each) is not None)
        hint = f"; give one of {below:.300}" if below else ""
        raise MissingFileError(f"no XML files in {path} or its {ANNOTATIONS}{hint}")
    files = _of_split(Path(path), folder, split) if split else sorted(folder.glob("*.xml"))
    problems: list[Problem] = []
    left_out: Counter[str] = Counter()
    folders = picture_folders(Path(path), images, *FOLDERS)
    entries = list(_entries(files, [*folders, folder], problems, left_out))
    if not split:
        left_out += _without_xml([entry.name for entry in entries], [*folders, folder])
    return PackedDataset(
        folder,
        [*folders, folder],
        entries,
        box_format="xyxy",
        problems=problems,
        left_out=left_out,
        outside=outside,
    )


def _annotations(path: Path) -> Path | None:
    places = (path / ANNOTATIONS, path)
    return next((place for place in places if next(place.glob("*.xml"), None) is not None), None)


def _of_split(path: Path, folder: Path, split: str) -> list[Path]:
    file = path / SETS / f"{split}.txt"
    if not file.is_file():
        there = ", ".join(sorted(each.stem for each in (path / SETS).glob("*.txt"))) or "none"
        raise MissingFileError(f"no list {split!r} in {path / SETS}; there is {there:.200}")
    names = [line.split()[0] for line in read_text(file).splitlines() if line.strip()]
    lacking = [name for name in names if not (folder / f"{name}.xml").is_file()]
    if lacking or not names:
        raise UserError(f"{file} names {len(lacking)} of {len(names)} pictures without XML: {lacking[:1]}")
    return [folder / f"{name}.xml" for name in names]


def _entries(
    files: list[Path], folders: list[Path], problems: list[Problem], left_out: Counter[str]
) -> Iterator[Entry]:
    for file in files:
        try:
            root = parse_xml(file)
            own: list[Problem] = []
            regions = []
            for number, item in enumerate(root.findall("object")):
                try:
                    box = item.find("bndbox")
                    if box is None:
                        outline = next((each.tag for each in item if each.tag in OUTLINES), "")
                        left_out[f"objects with {outline or 'nothing'} in place of a box"] += 1
                        continue
                    name, where = (
                        as_text(item.findtext("name"), "name").strip(),
                        f"{file.name}, object {number}",
                    )
                    regions.append(RawRegion(corners_in(box), name, where, source=SOURCE))
                    left_out[DIFFICULT] += (item.findtext("difficult") or "").strip() == "1"
                except FieldError as error:
                    own.append(problem_in(error, f"object {number}", file))
            left_out["parts of objects"] += len(root.findall("object/part"))
            yield Entry(
                _picture_of(file, root.findtext("filename"), folders), regions, (), size_in(root), {}, own
            )
        except FieldError as error:
            problems.append(problem_in(error, file.name, file))
    for what in ("parts of objects", DIFFICULT):
        if not left_out[what]:
            del left_out[what]


def _without_xml(names: Sequence[str], folders: Sequence[Path]) -> Counter[str]:
    """Pictures beside those that have an XML, counted."""
    tried = names[:LISTED]
    places = {next((place for place in folders if find(place, name) is not None), None) for name in tried}
    there = {name for place in places if place is not None for name in os.listdir(place) if is_picture(name)}
    hidden = {name for name in there if name.startswith(".")}
    return +Counter({"pictures without an XML, not annotated": len(there - hidden - set(names))})


def _picture_of(file: Path, named: str | None, folders: list[Path]) -> str:
    """The picture of the XML's own name; of the name that stands in it, where there is none.

    Names in it are often of another machine, or left as they were when files were renamed.
    """
    for suffix in (*SUFFIXES, *map(str.upper, SUFFIXES)):  # ImageNet's end in .JPEG, cameras' in .JPG
        name = f"{file.stem}{suffix}"
        if any(find(folder, name) is not None for folder in folders):
            return name
    return named.strip() if named and named.strip() else f"{file.stem}.jpg"
