"""Flickr30k Entities: five sentences a picture with marked phrases, and the boxes of what they speak of.

`Sentences/ID.txt` holds `[/EN#1/people Two young guys] with [/EN#2/bodyparts shaggy hair] .`, and
`Annotations/ID.xml` boxes by the same numbers. A phrase may have several boxes, a box several phrases; number
0 is nothing that can be seen, and phrases of a whole scene have no box.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from open_cloc.data.annotations import Problem, RawRegion
from open_cloc.data.fields import FieldError
from open_cloc.data.readers.packed import Entry, PackedDataset, picture_folders, problem_in
from open_cloc.data.readers.xml_files import corners_in, parse_xml, size_in
from open_cloc.errors import MissingFileError, UserError
from open_cloc.files import read_text
from open_cloc.samples import Text

SENTENCES, ANNOTATIONS = "Sentences", "Annotations"
FOLDERS = ("flickr30k-images", "flickr30k_images", "images")
SOURCE = "flickr30k"
MENTION = "mention"  # role of a phrase as it stands in one sentence; its source says where
NOT_VISUAL = "0"
PHRASE = re.compile(r"\[/EN#(\d+)((?:/[^\s\]]+)+) ([^\]]*)\]")
MARK = "/EN#"


def recognises(text: str) -> bool:
    """Whether this is a folder with `Sentences` and `Annotations`."""
    return (Path(text) / SENTENCES).is_dir() and (Path(text) / ANNOTATIONS).is_dir()


def open_flickr30k(
    path: str, images: Path | None = None, split: Path | None = None, outside: bool = False
) -> PackedDataset:
    """Open Flickr30k Entities.

    Each sample has the five sentences as captions, and a region for each pair of a phrase and one of its
    boxes: a phrase with three boxes stands there three times, once with each. Where sentences repeat a phrase
    of the same thing, the region has a text of the role `mention` for each time, whose source is the place.

    Args:
        path: Folder of `Sentences` and `Annotations`.
        images: Folder of the pictures; beside those two unless given.
        split: File with one picture's id a line, such as `test.txt`; all unless given.
        outside: Allow pictures that do not lie in the data set's folder.

    Raises:
        MissingFileError: If a folder or the split's file is missing, or none of the pictures is there.
        UserError: If no picture's files can be read.
    """
    folder = Path(path)
    for part in (SENTENCES, ANNOTATIONS):
        if not (folder / part).is_dir():
            raise MissingFileError(f"no folder {part} in {folder}, as Flickr30k Entities has it")
    names = _names(folder, split)
    problems: list[Problem] = []
    left_out: Counter[str] = Counter()
    entries = list(_entries(folder, names, problems, left_out))
    return PackedDataset(
        folder,
        picture_folders(folder, images, *FOLDERS),
        entries,
        box_format="xyxy",
        problems=problems,
        left_out=left_out,
        outside=outside,
    )


def _names(folder: Path, split: Path | None) -> list[str]:
    there = sorted(file.stem for file in (folder / SENTENCES).glob("*.txt"))
    if split is None:
        return there
    if not split.is_file():
        raise MissingFileError(f"no such file of picture ids: {split}")
    lines = (line.strip().removesuffix(".jpg") for line in read_text(split).splitlines())
    asked = list(dict.fromkeys(filter(None, lines)))
    lacking = set(asked) - set(there)
    if not asked or lacking:
        first = sorted(lacking)[:1]
        raise UserError(f"{split} names {len(lacking)} of {len(asked)} pictures without sentences: {first}")
    return asked


def _entries(
    folder: Path, names: list[str], problems: list[Problem], left_out: Counter[str]
) -> Iterator[Entry]:
    for name in names:
        where = folder / ANNOTATIONS / f"{name}.xml"
        try:
            boxes, size_hw, own = _boxes(where)
            captions, phrases = _sentences(folder / SENTENCES / f"{name}.txt")
        except FieldError as error:
            problems.append(problem_in(error, f"picture {name}", where))
            continue
        regions = []
        for (number, text), places in phrases.items():
            mentions = tuple(Text(text, MENTION, place) for place in places)
            if number == NOT_VISUAL:
                left_out["phrases of nothing that can be seen"] += 1
            elif not boxes[number]:
                left_out["phrases without a box"] += 1
            regions += [
                RawRegion(box, text, f"entity {number}", source=SOURCE, texts=mentions)
                for box in boxes[number]
            ]
        yield Entry(f"{name}.jpg", regions, captions, size_hw, {"image_id": name}, own)


def _sentences(file: Path) -> tuple[list[str], dict[tuple[str, str], list[str]]]:
    """The sentences as a reader sees them, and by (entity, phrase) the places where it stands, in order."""
    captions: list[str] = []
    phrases: dict[tuple[str, str], list[str]] = {}
    try:
        lines = read_text(file).splitlines()
    except UserError as error:
        raise FieldError(str(error)) from None
    for line in filter(str.strip, lines):
        plain = " ".join(PHRASE.sub(r"\3", line).split())
        if MARK in plain:
            raise FieldError(f"a mark of a phrase does not end: {line!r:.80}")
        for position, (number, _, text) in enumerate(PHRASE.findall(line)):
            if text.strip():
                place = f"sentence {len(captions)}, phrase {position}"
                phrases.setdefault((number, " ".join(text.split())), []).append(place)
        captions.append(plain)
    return captions, phrases


def _boxes(
    file: Path,
) -> tuple[defaultdict[str, list[tuple[float, float, float, float]]], tuple[int, int] | None, list[Problem]]:
    """Boxes (x1, y1, x2, y2) by entity, the picture's (height, width), and objects that cannot be used."""
    root = parse_xml(file)
    boxes: defaultdict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
    problems = []
    for item in root.findall("object"):
        corners = item.find("bndbox")
        if corners is None:
            continue
        numbers = [(name.text or "").strip() for name in item.findall("name")]
        try:
            box = corners_in(corners)
        except FieldError as error:
            problems.append(problem_in(error, f"object of entity {' and '.join(numbers)}", file))
            continue
        for number in numbers:
            boxes[number].append(box)
    return boxes, size_in(root), problems
