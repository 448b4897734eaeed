"""The `<key>.json` member of a shard: captions, regions and metadata of one sample.

Its form is published in `region_sample.schema.json`. It is img2dataset's metadata plus our keys, so readers
that know nothing of regions still find their caption and sizes; the regions of GRIT and FineHARD are read
where ours are absent.

A wrong region costs the region; anything else that is not the schema's costs the sample.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from dataclasses import fields as fields_of
from functools import lru_cache
from importlib.resources import files
from itertools import repeat
from pathlib import Path
from typing import Any

import jsonschema

from open_cloc.data.annotations import Problem, RawRegion, RawSample, checked_boxes
from open_cloc.data.fields import LARGEST, FieldError, as_whole
from open_cloc.errors import SampleError, UserError
from open_cloc.files import parse_json
from open_cloc.masks import Mask
from open_cloc.samples import RegionSample, Text
from open_cloc.texts import sound_text

# Keys that the writer fills; anything else is a sample's metadata.
WRITTEN = ("key", "status", "caption", "captions", "width", "height", "regions", "box_format", "role_texts")
NO_BOX_FORMAT = "'regions' need 'box_format', which must be 'xyxy_norm'"
SIZES = ("width", "height", "original_width", "original_height")
OF_OTHERS = ("noun_chunks", "ref_exps", "bbox_info")  # regions of GRIT and of FineHARD
ENTRIES = ("regions", "role_texts", *OF_OTHERS)  # lists whose entries are judged one by one
DEEPEST = 64  # levels of lists and objects
NUMBERS = (float, int)
ROLE_TEXT = frozenset(field.name for field in fields_of(Text))
HOLDING = frozenset((list, dict))
NEEDS_SCHEMA = frozenset(("role_texts", *OF_OTHERS))  # what is not among the most usual names


def encode_json(sample: RegionSample, size_hw: tuple[int, int]) -> bytes:
    """The JSON member of a sample whose stored picture has this (height, width).

    Raises:
        SampleError: If a box is wrong or the metadata cannot be written as JSON.
    """
    height, width = size_hw
    original = {"original_width": width, "original_height": height}
    # Regions are of the stored picture, so what it was before would only mislead.
    document = {**sample.metadata, **original} if sample.regions else {**original, **sample.metadata}
    document |= {
        "key": sample.key,
        "status": "success",
        "caption": sample.captions[0] if sample.captions else None,
        "captions": list(sample.captions),
        "width": width,
        "height": height,
        "regions": [
            {"box": box, "text": region.text, "score": region.score, "source": region.source}
            | ({} if region.span is None else {"span": list(region.span)})
            | ({} if region.cycle is None else {"cycle": region.cycle})
            | _role_texts(region.texts)
            | _outline(region.mask)
            | ({"crowd": True} if region.crowd else {})
            for box, region in zip(checked_boxes(sample).tolist(), sample.regions)
        ],
        "box_format": "xyxy_norm",
    } | _role_texts(sample.texts)
    try:
        return json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise SampleError(
            f"sample {sample.key!r} cannot be written as JSON: {error}", "metadata that is no JSON"
        ) from error


def _role_texts(texts: Sequence[Text]) -> dict[str, Any]:
    """The key for texts with roles, where there are any."""
    return {"role_texts": [asdict(text) for text in texts]} if texts else {}


def _outline(mask: Mask | None) -> dict[str, Any]:
    """The key for an outline, where there is one, as COCO writes it."""
    return {} if mask is None else {"mask": {"size": list(mask.size_hw), "counts": mask.counts}}


def _mask(region: Mapping[str, Any]) -> Mask | None:
    given = region.get("mask")
    return None if given is None else Mask((int(given["size"][0]), int(given["size"][1])), given["counts"])


def parse_sample(
    key: str, image: bytes | Path, text: bytes | None, document: bytes | None, where: str
) -> RawSample:
    """Turn the members of a sample into a raw sample.

    Args:
        key: The sample's name, which its members share.
        image: The encoded picture, or its file.
        text: The `txt` member; None without one.
        document: The `json` member; None without one.
        where: Shard and key, for messages.

    Raises:
        SampleError: If the JSON does not parse, is not the schema's, or names regions of a picture whose
            aspect ratio was changed afterwards.
    """
    try:
        caption = text.decode("utf-8-sig") if text is not None else None
    except UnicodeDecodeError as error:
        raise SampleError(f"caption is not valid UTF-8: {error} ({where})", "caption is not UTF-8") from error
    fields, wrong = _parse(document, where) if document is not None else ({}, {})
    captions = _captions(fields, caption)
    if wrong is None:
        regions, wrong = _sound_regions(fields), {}
    else:
        regions = tuple(_regions(fields, captions, caption or "", wrong))
    if regions:
        _check_aspect_ratio(fields, where)
    width, height = fields.get("width"), fields.get("height")
    return RawSample(
        key=key,
        image=image,
        size_hw=(int(height), int(width)) if height is not None and width is not None else None,
        where=where,
        captions=captions,
        regions=regions,
        metadata=_metadata(fields),
        texts=_texts(fields, wrong),
        problems=tuple(_problems(wrong, where)) if wrong else (),
    )


# What is wrong with entries of a sample's lists: (name of the list, row) -> message.
Wrong = dict[tuple[str, int], str]


def _parse(document: bytes, where: str) -> tuple[dict[str, Any], Wrong | None]:
    """The object that a JSON holds, and what is wrong with entries of its lists; None for surely nothing.

    Raises:
        SampleError: If the rest is wrong.
    """
    fields: Any = None
    with suppress(ValueError, RecursionError):  # told below, in the user's words
        fields = json.loads(document.decode())
    if _surely_valid(fields) and (_writes_as_many(document, fields) or _names_each_once(document, fields)):
        return fields, None
    if not isinstance(fields, dict) or not _names_each_once(document, fields):
        try:
            fields = parse_json(document, "JSON")
        except UserError as error:
            raise SampleError(f"{error} ({where})", "broken JSON") from error
    if isinstance(fields, dict):  # pandas writes nan for what is not there
        fields = {name: None if _is_odd_float(value) else value for name, value in fields.items()}
    problem, wrong = schema_problems(fields)
    if problem:
        raise SampleError(f"JSON is not a region sample: {problem} ({where})", "JSON of another form")
    return fields, wrong


def schema_problems(document: Any) -> tuple[str, Wrong]:
    """What keeps a parsed JSON from being a region sample, or an empty text; and what costs only an entry.

    The range of box numbers is left to the box check, which allows for rounding and can guess another format.
    """
    if _is_deep(document, DEEPEST):
        return f"more than {DEEPEST} levels of lists and objects", {}
    wrong: Wrong = {}
    for error in sorted(_validator().iter_errors(document), key=lambda error: error.json_path):
        if error.validator in ("minimum", "maximum") and "box" in error.path:
            continue
        said = NO_BOX_FORMAT if error.validator == "dependentRequired" else error.message
        message = f"at {error.json_path}: {textwrap.shorten(said, 200)}"
        place = tuple(error.path)[:2]
        if len(place) < 2 or place[0] not in ENTRIES:
            return message, {}
        wrong.setdefault(place, message)
    for name in ENTRIES:
        for row, entry in enumerate(document.get(name, ())):
            if (name, row) not in wrong and not _has_sound_numbers(entry):
                wrong[name, row] = f"at $.{name}[{row}]: numbers must be finite and below {LARGEST:g}"
    if not all(abs(document.get(name) or 0) <= LARGEST for name in SIZES):
        return f"sizes must be below {LARGEST:g}", {}
    return "", wrong


def _problems(wrong: Wrong, where: str) -> Iterator[Problem]:
    for (name, _), message in wrong.items():
        cause = "broken text" if name == "role_texts" else "broken region"
        yield Problem(cause, f"JSON is not a region sample: {message} ({where})")


def _captions(fields: Mapping[str, Any], text: str | None) -> tuple[str, ...]:
    captions = fields.get("captions")
    if captions is None:
        caption = text if text is not None else fields.get("caption")
        return (caption,) if caption else ()
    return tuple(captions.values() if isinstance(captions, dict) else captions)


def _metadata(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What the writer does not fill by itself; an original size says something only where it differs."""
    width, height, *original = (fields.get(name) for name in SIZES)
    known = WRITTEN if [width, height] != original else (*WRITTEN, *SIZES)
    return {name: value for name, value in fields.items() if name not in known}


def _texts(fields: Mapping[str, Any], wrong: Wrong) -> tuple[Text, ...]:
    given = fields.get("role_texts")
    if not given:
        return ()
    return tuple(
        Text(text["text"], _sound(text["role"]), _sound(text.get("source", "")), text.get("weight", 1.0))
        for row, text in enumerate(given)
        if ("role_texts", row) not in wrong
    )


@lru_cache(maxsize=1024)
def _sound(value: str) -> str:
    """Roles and sources are written again, too; there are few different ones."""
    return sound_text(value)


def _sound_regions(fields: Mapping[str, Any]) -> tuple[RawRegion, ...]:
    """Our regions, of which every one is surely right; most of the time that reading takes goes here."""
    return tuple(
        [
            RawRegion(
                tuple(region["box"]),
                region["text"],
                f"regions[{row}]",
                region.get("score", 1.0),
                _sound(region.get("source", "")),
                tuple(region["span"]) if "span" in region else None,
                region.get("cycle"),
                _texts(region, {}),
                _mask(region),
                region.get("crowd", False),
            )
            for row, region in enumerate(fields.get("regions", ()))
        ]
    )


def _regions(
    fields: Mapping[str, Any], captions: Sequence[str], text: str, wrong: Wrong
) -> Iterator[RawRegion]:
    """Regions from our key or, where it is absent, from those of GRIT and FineHARD.

    Args:
        fields: The sample's JSON.
        captions: Of the picture.
        text: The `txt` member, which spans of GRIT count in where the JSON has no caption.
        wrong: Entries that are left out; those that turn out to be wrong now are added.
    """
    if "regions" in fields:
        longest = len(captions[0]) if captions else 0
        read = [("regions", lambda region, where: _our_region(region, longest, where))]
    else:
        caption = fields.get("caption") or text
        read = [
            ("noun_chunks", lambda row, where: _grit_region(row, caption, where)),
            ("ref_exps", lambda row, where: _grit_region(row, caption, where)),
            ("bbox_info", _finehard_region),
        ]
    chunks: set[tuple[float, ...]] = set()
    for name, make in read:
        for row, entry in enumerate(fields.get(name, ())):
            if (name, row) in wrong:
                continue
            if name == "noun_chunks":
                chunks.add(tuple(entry[:6]))
            elif name == "ref_exps" and tuple(entry[:6]) in chunks:
                continue  # an expression that is no more than its noun chunk: one region
            try:
                yield make(entry, f"{name}[{row}]")
            except SampleError as error:
                wrong[name, row] = f"at $.{name}[{row}]: {error}"


def _our_region(region: Mapping[str, Any], longest: int, where: str) -> RawRegion:
    span = region.get("span")
    if span is not None and not span[0] <= span[1] <= longest:
        raise FieldError(f"span {span} is not in the first caption, of {longest} characters")
    return RawRegion(
        box=tuple(region["box"]),
        text=region["text"],
        where=where,
        score=region.get("score", 1.0),
        source=_sound(region.get("source", "")),
        span=None if span is None else (int(span[0]), int(span[1])),
        cycle=region.get("cycle"),
        texts=_texts(region, {}),
        mask=_checked(_mask(region)),
        crowd=region.get("crowd", False),
    )


def _checked(mask: Mask | None) -> Mask | None:
    if mask is not None:
        mask.runs()
    return mask


def _grit_region(row: Sequence[float], caption: str, where: str) -> RawRegion:
    start, end = (as_whole(number, "start and end of a span") for number in row[:2])
    if not start < end <= len(caption):
        raise FieldError(f"no text from {start} to {end} of the caption")
    if not 0 <= row[6] <= 1:
        raise FieldError(f"score must be in [0, 1]; got {row[6]:g}")
    return RawRegion(tuple(row[2:6]), caption[start:end], where, row[6], f"grit {where.partition('[')[0]}")


def _finehard_region(entry: Mapping[str, Any], where: str) -> RawRegion:
    return RawRegion(tuple(entry["bbox"][:4]), entry["short_expr"], where, source="finehard")


def _check_aspect_ratio(fields: Mapping[str, Any], where: str) -> None:
    """Padding or cropping after the boxes were made, as img2dataset's default does, moves every box."""
    if any(fields.get(name) is None for name in SIZES):
        return
    width, height, original_width, original_height = (fields[name] for name in SIZES)
    # Each side was rounded to whole pixels, hence the true ratio lies somewhere around.
    low, high = (width - 1) / (height + 1), (width + 1) / max(height - 1, 0.5)
    if not low <= original_width / original_height <= high:
        raise SampleError(
            f"picture of {width} x {height} was {original_width} x {original_height}: its aspect ratio "
            "changed, so its boxes no longer fit; make shards with resize_mode keep_ratio_largest or no "
            f"({where})",
            "aspect ratio changed",
        )


def _surely_valid(document: Any) -> bool:
    """A fast check of what we and img2dataset write; says no whenever the schema has to decide."""
    if type(document) is not dict or not NEEDS_SCHEMA.isdisjoint(document):
        return False
    captions, regions = document.get("captions", []), document.get("regions", [])
    if type(captions) is not list or type(regions) is not list:
        return False
    if document.get("box_format", None if "regions" in document else "xyxy_norm") != "xyxy_norm":
        return False
    texts = [document[name] for name in ("status", "caption") if document.get(name) is not None]
    if not all(type(text) is str for text in (document.get("key", ""), *texts, *captions)):
        return False
    if not all(type(document.get(name, 1)) is int and 0 < document.get(name, 1) <= LARGEST for name in SIZES):
        return False
    others = [value for name, value in document.items() if name not in ("captions", "regions")]
    if not HOLDING.isdisjoint(map(type, others)) and _is_deep(others, DEEPEST):
        return False
    longest = len(captions[0]) if captions else 0
    return all(map(_surely_valid_region, regions, repeat(longest)))


def _surely_valid_region(region: Any, longest: int) -> bool:
    """The same of a region, of a picture whose first caption has so many characters."""
    if type(region) is not dict or not all(map(_surely_a_text, _listed(region.get("role_texts", ())))):
        return False
    box, score, cycle = region.get("box"), region.get("score", 1.0), region.get("cycle", 0)
    if type(box) is not list or len(box) != 4:
        return False
    for number in box:
        if type(number) not in NUMBERS or not -1 <= number <= 2:
            return False
    if "span" in region:
        span = region["span"]
        if type(span) is not list or len(span) != 2 or not type(span[0]) is type(span[1]) is int:
            return False
        if not 0 <= span[0] <= span[1] <= longest:
            return False
    if "mask" in region and not _surely_a_mask(region):
        return False
    return (
        type(region.get("text")) is str
        and type(region.get("crowd", False)) is bool
        and type(region.get("source", "")) is str
        and type(score) in NUMBERS
        and 0 <= score <= 1
        and type(cycle) in NUMBERS
        and -1 <= cycle <= 1
    )


def _listed(value: Any) -> Sequence[Any]:
    """What a list holds; of anything else something that no list of objects does."""
    return value if type(value) in (list, tuple) else (None,)


def _surely_a_text(text: Any) -> bool:
    """Whether it is a text with a role as we write it."""
    if type(text) is not dict or text.keys() != ROLE_TEXT:
        return False
    if not type(text["text"]) is type(text["role"]) is type(text["source"]) is str or not text["role"]:
        return False
    return type(text["weight"]) in NUMBERS and 0 <= text["weight"] <= LARGEST


def _surely_a_mask(region: Mapping[str, Any]) -> bool:
    given = region["mask"]
    if type(given) is not dict or given.keys() != {"size", "counts"} or type(given["counts"]) is not str:
        return False
    if type(given["size"]) is not list or len(given["size"]) != 2:
        return False
    if not all(type(side) is int and 0 < side <= LARGEST for side in given["size"]):
        return False
    try:
        _checked(_mask(region))
    except SampleError:
        return False
    return True


def _writes_as_many(document: bytes, fields: Mapping[str, Any]) -> bool:
    """The same as `_names_each_once` of what is surely valid and usual, in a tenth of the time."""
    if b"\\" in document:
        document = document.replace(b"\\\\", b"")  # as run lengths hold them
        if b"\\" in document:
            return False
    regions = sum(
        [
            len(region)
            + 1
            + ("source" in region)
            + 3 * ("mask" in region)
            + 7 * len(region.get("role_texts", ()))  # four names, and three texts
            for region in fields.get("regions", ())
        ]
    )
    texts = len(fields.get("captions", ())) + sum([type(value) is str for value in fields.values()])
    return document.count(b'"') == 2 * (len(fields) + texts + regions)


def _names_each_once(document: bytes, fields: Mapping[str, Any]) -> bool:
    """Whether no object of a JSON names a key twice; says no where it cannot tell.

    As many names, and texts beside them, as are left must have been written: quotes stand around them. Where
    there are back-slashes, quotes stand in texts too; then those are counted that end a name.
    """
    if b"\\" not in document:
        return document.count(b'"') == 2 * _count(fields, str)
    if any(odd in document for odd in (b" :", b"\t:", b"\n:", b"\r:", b'\\\\"')):
        return False
    return document.count(b'":') - document.count(b'\\":') == _count(fields, ())


def _count(value: Any, kinds: type | tuple[type, ...]) -> int:
    """Names in an object and in whatever it holds, and values of some kinds."""
    if isinstance(value, dict):
        return len(value) + sum([_count(part, kinds) for part in value.values()])
    if isinstance(value, list):
        return sum([_count(part, kinds) for part in value])
    return isinstance(value, kinds)


def _is_odd_float(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _is_deep(value: Any, levels: int) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_is_deep(part, levels - 1) for part in parts)


def _has_sound_numbers(entry: Any) -> bool:
    """Whether numbers can be reckoned with; boxes that are not finite are the box check's to name."""
    if isinstance(entry, dict):
        boxes = [*entry.get("box", ()), *entry.get("bbox", ())]
        others = [value for name, value in entry.items() if name not in ("box", "bbox")]
        return all(map(_is_number, boxes)) and all(map(_has_sound_numbers, others))
    if isinstance(entry, list):
        return all(map(_has_sound_numbers, entry))
    return not isinstance(entry, (int, float)) or abs(entry) <= LARGEST


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or abs(value) <= LARGEST


@lru_cache(maxsize=1)
def _validator() -> jsonschema.Draft202012Validator:
    text = files("open_cloc.data.shards").joinpath("region_sample.schema.json").read_text(encoding="utf-8")
    return jsonschema.Draft202012Validator(json.loads(text))
