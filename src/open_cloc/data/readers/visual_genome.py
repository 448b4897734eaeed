"""Visual Genome: `region_descriptions.json` with phrases, or `objects.json` with names.

Pictures are `ID.jpg` in `VG_100K` and `VG_100K_2`. The two files name a box's sides differently: `width` and
`height` in one, `w` and `h` in the other. Sizes of pictures stand in `image_data.json`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from open_cloc.data.annotations import Problem, RawRegion
from open_cloc.data.fields import FieldError, as_box, as_id, as_side, as_text, field_of, shown
from open_cloc.data.names import find, resolve
from open_cloc.data.readers.files import is_regular
from open_cloc.data.readers.packed import (
    Entry,
    PackedDataset,
    count_keys,
    file_in,
    of_image,
    picture_folders,
    problem_in,
)
from open_cloc.errors import SampleError, UserError
from open_cloc.files import read_json
from open_cloc.pictures import read_header

REGIONS, OBJECTS, SIZES = "region_descriptions.json", "objects.json", "image_data.json"
FOLDERS = ("VG_100K", "VG_100K_2", "images")
KEYS = {"id", "image_id", "image_url", "regions", "objects"}
SOURCE = "visual_genome"
HEAD = 2**16
FORM = re.compile(rb'"(regions|objects)"\s*:')
PART = re.compile(rb'"(region_id|object_id)"\s*:')


def recognises(text: str) -> bool:
    """Whether this is one of Visual Genome's two files, or a folder that holds one."""
    path = Path(text)
    if path.is_dir():
        return any(_is_genome(path / name) for name in (REGIONS, OBJECTS))
    return path.suffix.lower() == ".json" and _is_genome(path)


def _is_genome(file: Path) -> bool:
    if not is_regular(file):
        return False
    with file.open("rb") as stream:
        head = stream.read(HEAD)
    return FORM.search(head) is not None and PART.search(head) is not None


def open_visual_genome(path: str, images: Path | None = None, outside: bool = False) -> PackedDataset:
    """Open regions or objects of Visual Genome.

    Boxes that leave their picture are many here; they are clipped, as who uses these data does, and counted.
    Where `image_data.json` is not beside the file, every picture is opened for its size.

    Args:
        path: One of the two files, or a folder that holds one of them.
        images: Folder of the pictures, or of `VG_100K` and `VG_100K_2`; beside the file unless given.
        outside: Allow pictures that do not lie in the data set's folder.

    Raises:
        MissingFileError: If a file or the pictures are missing.
        UserError: If it is no such file, or the folder holds both.
    """
    known = [Path(path) / name for name in (REGIONS, OBJECTS)]
    file = file_in(Path(path), [each for each in known if each.is_file()], f"of {REGIONS} and {OBJECTS}")
    document = read_json(file)
    if not isinstance(document, list):
        raise UserError(f"Visual Genome's JSON is a list of pictures; got {shown(document)} ({file})")
    problems: list[Problem] = []
    left_out: Counter[str] = Counter()
    sizes = _sizes_beside(file, left_out)
    entries = list(_entries(document, file, sizes, problems, left_out))
    folders = picture_folders(file, images, *FOLDERS)
    clipped = [
        _clipped(entry, entry.size_hw or _measured(entry, folders, outside), left_out) for entry in entries
    ]
    return PackedDataset(file, folders, clipped, problems=problems, left_out=left_out, outside=outside)


def _measured(entry: Entry, folders: Sequence[Path], outside: bool) -> tuple[int, int] | None:
    """(height, width) of an entry's picture; None where its boxes do not need it, or nobody can say it.

    A picture that EXIF turns has two sizes, and which of them boxes were drawn on depends on `exif=`.
    """
    place = next((place for place in folders if entry.regions and find(place, entry.name)), None)
    if place is None:
        return None
    try:
        header = read_header(resolve(place, entry.name, outside=outside))
    except SampleError:  # told with the sample
        return None
    return header.size_hw if header.orientation == 1 else None


def _clipped(entry: Entry, size_hw: tuple[int, int] | None, left_out: Counter[str]) -> Entry:
    """An entry with its boxes cut off at the picture's edges; one that is all outside stays, and is wrong."""
    if size_hw is None:
        return entry
    regions = []
    for region in entry.regions:
        x, y, width, height = region.box
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + width, size_hw[1]), min(y + height, size_hw[0])
        is_whole = (left, top, right, bottom) == (x, y, x + width, y + height)
        if not is_whole and right > left and bottom > top and all(map(math.isfinite, region.box)):
            left_out["boxes that left the picture, clipped"] += 1
            region = replace(region, box=(left, top, right - left, bottom - top))
        regions.append(region)
    return entry._replace(regions=regions)


def _sizes_beside(file: Path, left_out: Counter[str]) -> dict[str, tuple[int, int]]:
    """(height, width) of pictures by id, where the file that says it is there; others say it themselves."""
    beside = file.with_name(SIZES)
    if not beside.is_file():
        return {}
    document = read_json(beside)
    sizes = {}
    for entry in document if isinstance(document, list) else ():
        try:
            name = as_id(entry.get("image_id", entry.get("id")), "image_id")
            sizes[name] = as_side(entry.get("height"), "height"), as_side(entry.get("width"), "width")
        except (FieldError, AttributeError):
            left_out[f"sizes in {SIZES} that are none"] += 1
    return sizes


def _entries(
    document: list[Any],
    file: Path,
    sizes: Mapping[str, tuple[int, int]],
    problems: list[Problem],
    left_out: Counter[str],
) -> Iterator[Entry]:
    seen: set[str] = set()
    for position, picture in enumerate(document):
        try:
            if not isinstance(picture, dict):
                raise FieldError(f"must be an object; got {shown(picture)}")
            kind = "regions" if "regions" in picture else "objects"
            parts = field_of(picture, kind)
            if not isinstance(parts, list):
                raise FieldError(f"{kind} must be a list; got {shown(parts)}")
            name = _image_id(picture, parts)
            count_keys(picture, KEYS, left_out, "pictures")
        except FieldError as error:
            problems.append(problem_in(error, f"picture at position {position}", file))
            continue
        if name in seen:
            problems.append(Problem("repeated picture", f"image id {name} occurs twice ({file})"))
            continue
        seen.add(name)
        own: list[Problem] = []
        regions = []
        for part in parts:
            try:
                regions.append(_region(part, left_out))
            except FieldError as error:
                own.append(problem_in(error, f"{kind[:-1]} of image {name}", file))
        yield Entry(f"{name}.jpg", regions, (), sizes.get(name), of_image(name), own)


def _image_id(picture: Mapping[str, Any], parts: list[Any]) -> str:
    """`image_id`; the file of regions has `id`, and the parts say `image_id` too."""
    value = picture.get("image_id", picture.get("id"))
    if value is None and parts and isinstance(parts[0], dict):
        value = parts[0].get("image_id")
    return as_id(value, "image_id")


def _region(part: Any, left_out: Counter[str]) -> RawRegion:
    if not isinstance(part, dict):
        raise FieldError(f"must be an object; got {shown(part)}")
    is_object = "object_id" in part or "names" in part
    sides = ("x", "y", "w", "h") if is_object else ("x", "y", "width", "height")
    box = as_box([field_of(part, side) for side in sides], "x, y and sides")
    number = part.get("object_id" if is_object else "region_id", "without id")
    where = f"{'object' if is_object else 'region'} {number}"
    if not is_object:
        return RawRegion(box, as_text(field_of(part, "phrase"), "phrase").strip(), where, source=SOURCE)
    names = field_of(part, "names")
    if not isinstance(names, list) or not names:
        raise FieldError(f"names must be a list of at least one text; got {shown(names)}")
    if len(names) > 1:
        left_out["further names of objects"] += len(names) - 1
    return RawRegion(box, as_text(names[0], "names").strip(), where, source=SOURCE)
