"""What lies beside pictures and is not read: above all boxes, which nobody should lose in silence."""

from __future__ import annotations

import codecs
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from open_cloc.data.names import printable
from open_cloc.data.readers.files import is_regular, looks_like_coco

LOOKED_AT = 20  # files of a suffix
HEAD = 2**18  # bytes of a file
VOC_FORM = "Pascal VOC"
ADVICE = "export it as COCO JSON or YOLO"

# The tools that write a form, and what all stands in it.
FORMS = {
    ".json": (
        ("labelme", (rb'"shapes"\s*:', rb'"image(Path|Data)"')),
        ("VIA", (rb'"shape_attributes"',)),
        ("Label Studio", (rb'"from_name"', rb'"to_name"')),
        ("Supervisely", (rb'"objects"\s*:', rb'"classTitle"')),
        ("CreateML", (rb'"annotations?"\s*:', rb'"coordinates"')),
        ("FiftyOne", (rb'"detections"|"ground_truth"', rb'"bounding_box"')),
        ("Datumaro", (rb'"items"\s*:', rb'"label_id"')),
        ("COCO's detection results", (rb'"image_id"', rb'"bbox"', rb'"score"')),
        ("COCO", (rb'"images"', rb'"bbox"')),
        (
            "an unknown tool",
            (rb'"(bbox(es)?|box(es)?|bounding_?[bB]ox(es)?|xmin|x_min|polygon|regions)"\s*:',),
        ),
    ),
    ".xml": (
        (VOC_FORM, (rb"<bndbox>",)),
        ("CVAT", (rb"<box\s", rb"\bxtl=")),
        ("CVAT", (rb"<(polygon|polyline|points)\s", rb"\bpoints=")),
    ),
    ".txt": (("YOLO", (rb"\A(\xef\xbb\xbf)?\s*\d+([ \t]+-?[\d.]+(e-?\d+)?){4,}\s*(\n|\Z)",)),),
    ".csv": (("an unknown tool", (rb"\A[^\n]*(?i:bbox|x_?min|\bx1\b|bounding)[^\n]*\n",)),),
}


def form_of(file: Path) -> str:
    """Which tool's boxes a file holds, by its suffix and its beginning; empty where it seems to hold none."""
    if not is_regular(file):
        return ""
    if file.suffix.lower() == ".json" and looks_like_coco(file):
        return "COCO"
    forms = FORMS.get(file.suffix.lower(), ())
    try:
        with file.open("rb") as stream:
            head = stream.read(HEAD)
    except OSError:  # it is not read anyway
        return ""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as PowerShell writes
        head = head.decode("utf-16", "replace").encode()
    return next(
        (tool for tool, patterns in forms if all(re.search(pattern, head) for pattern in patterns)), ""
    )


def holds_yolo(text: str) -> bool:
    """Whether a text is no caption but lines of a class and a box."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    return bool(lines) and all(len(words) >= 5 and all(map(_is_number, words)) for words in lines)


def _is_number(word: str) -> bool:
    return re.fullmatch(r"-?\d*\.?\d+(e-?\d+)?", word) is not None


def count_unread(folder: Path, names: Iterable[str]) -> Counter[str]:
    """Files that are not used, by suffix; those that hold boxes are named.

    Args:
        folder: Where they lie.
        names: Their paths below it.
    """
    by_suffix: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        by_suffix[PurePosixPath(name).suffix.lower()].append(name)
    counts: Counter[str] = Counter()
    for suffix, own in by_suffix.items():
        tools = {name: form_of(folder / name) for name in own[:LOOKED_AT] if suffix in FORMS}
        with_boxes = [name for name, tool in tools.items() if tool]
        if len(own) <= LOOKED_AT:
            counts.update(_named(with_boxes, tools))
            own = [name for name in own if name not in with_boxes]
        elif with_boxes:
            first = with_boxes[0]
            counts[f"files {suffix} with boxes of {tools[first]}, such as {printable(first)}"] = len(own)
            own = []
        if own:
            counts[f"files {suffix or 'without a suffix'}"] = len(own)
    return counts


def _named(names: Sequence[str], tools: dict[str, str]) -> Counter[str]:
    """Each file by name, or the first of several of one tool."""
    of_tool: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        of_tool[tools[name]].append(name)
    return Counter(
        {
            f"boxes of {tool} in {printable(own[0])}{' and others' if len(own) > 1 else ''}": len(own)
            for tool, own in of_tool.items()
        }
    )
