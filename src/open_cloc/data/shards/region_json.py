"""The `<key>.json` member of a shard: captions, regions and metadata of one sample.

Its form is published in `region_sample.schema.json`. It is img2dataset's metadata plus our keys, so readers
that know nothing of regions still find their caption and sizes; the regions of GRIT and FineHARD are read
where ours are absent.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from importlib.resources import files
from typing import Any

import jsonschema

from open_cloc.data.annotations import RawRegion, RawSample, checked_boxes
from open_cloc.errors import UserError
from open_cloc.samples import RegionSample, Text

# Keys that the writer fills; anything else is a sample's metadata.
WRITTEN = ("key", "status", "caption", "captions", "width", "height", "regions", "box_format", "role_texts")
SIZES = ("width", "height", "original_width", "original_height")


def encode_json(sample: RegionSample, size_hw: tuple[int, int]) -> bytes:
    """The JSON member of a sample whose stored picture has this (height, width).

    Raises:
        UserError: If a box is wrong or the metadata cannot be written as JSON.
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
            for box, region in zip(checked_boxes(sample).tolist(), sample.regions)
        ],
        "box_format": "xyxy_norm",
    } | _role_texts(sample.texts)
    try:
        return json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise UserError(f"sample {sample.key!r} cannot be written as JSON: {error}") from error


def _role_texts(texts: Sequence[Text]) -> dict[str, Any]:
    """The key for texts with roles, where there are any."""
    return {"role_texts": [asdict(text) for text in texts]} if texts else {}


def _texts(fields: Mapping[str, Any]) -> tuple[Text, ...]:
    given = fields.get("role_texts")
    return tuple(Text(**text) for text in given) if given else ()


def parse_sample(key: str, image: bytes, text: bytes | None, document: bytes | None, where: str) -> RawSample:
    """Turn the members of a sample into a raw sample.

    Args:
        key: The sample's name, which its members share.
        image: The encoded picture.
        text: The `txt` member; None without one.
        document: The `json` member; None without one.
        where: Shard and key, for messages.

    Raises:
        UserError: If the JSON does not parse, is not the schema's, or names regions of a picture whose
            aspect ratio was changed afterwards.
    """
    try:
        fields = json.loads(document) if document is not None else {}
        caption = text.decode() if text is not None else None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"member is not valid JSON or UTF-8: {error} ({where})") from error
    problem = schema_problem(fields)
    if problem:
        raise UserError(f"JSON is not a region sample: {problem} ({where})")
    regions = tuple(_regions(fields, fields.get("caption") or caption or "", where))
    if regions:
        _check_aspect_ratio(fields, where)
    return RawSample(
        key=key,
        image=image,
        size_hw=(fields["height"], fields["width"]) if "height" in fields and "width" in fields else None,
        where=where,
        captions=_captions(fields, caption),
        regions=regions,
        metadata=_metadata(fields),
        texts=_texts(fields),
    )


def schema_problem(document: Any) -> str:
    """What keeps a parsed JSON from being a region sample, or an empty text.

    The range of box numbers is left to the box check, which allows for rounding and can guess another format.
    """
    if _surely_valid(document):
        return ""
    for error in sorted(_validator().iter_errors(document), key=lambda error: error.json_path):
        if error.validator not in ("minimum", "maximum") or "box" not in error.path:
            return f"at {error.json_path}: {textwrap.shorten(error.message, 200)}"
    return ""


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


def _regions(fields: Mapping[str, Any], caption: str, where: str) -> Iterator[RawRegion]:
    """Regions from our key or, where it is absent, from those of GRIT and FineHARD."""
    if "regions" in fields:
        for row, region in enumerate(fields["regions"]):
            yield RawRegion(
                box=tuple(region["box"]),
                text=region["text"],
                where=f"regions[{row}]",
                score=region.get("score", 1.0),
                source=region.get("source", ""),
                span=tuple(region["span"]) if "span" in region else None,
                cycle=region.get("cycle"),
                texts=_texts(region),
            )
        return
    for name in ("noun_chunks", "ref_exps"):
        for row, (start, end, *box, score) in enumerate(fields.get(name, ())):
            text = caption[int(start) : int(end)]
            if not text:
                raise UserError(f"no text from {start:g} to {end:g} of the caption ({where}, {name}[{row}])")
            yield RawRegion(tuple(box), text, f"{name}[{row}]", score, f"grit {name}")
    for row, entry in enumerate(fields.get("bbox_info", ())):
        box = tuple(entry["bbox"][:4])
        yield RawRegion(box, entry["short_expr"], f"bbox_info[{row}]", source="finehard")


def _check_aspect_ratio(fields: Mapping[str, Any], where: str) -> None:
    """Padding or cropping after the boxes were made, as img2dataset's default does, moves every box."""
    if not all(name in fields for name in SIZES):
        return
    width, height, original_width, original_height = (fields[name] for name in SIZES)
    # Each side was rounded to whole pixels, hence the true ratio lies somewhere around.
    low, high = (width - 1) / (height + 1), (width + 1) / max(height - 1, 0.5)
    if not low <= original_width / original_height <= high:
        raise UserError(
            f"picture of {width} x {height} was {original_width} x {original_height}: its aspect ratio "
            "changed, so its boxes no longer fit; make shards with resize_mode keep_ratio_largest or no "
            f"({where})"
        )


def _surely_valid(document: Any) -> bool:
    """A fast check of what we write ourselves; says no whenever the schema has to decide."""
    if not isinstance(document, dict) or document.get("box_format") != "xyxy_norm":
        return False
    captions, regions = document.get("captions"), document.get("regions")
    if type(captions) is not list or type(regions) is not list:
        return False
    if any(name in document for name in ("noun_chunks", "ref_exps", "bbox_info", "role_texts")):
        return False
    texts = [document[name] for name in ("status", "caption") if document.get(name) is not None]
    return (
        all(type(document.get(name, 1)) is int and document.get(name, 1) > 0 for name in SIZES)
        and all(type(text) is str for text in (document.get("key", ""), *texts, *captions))
        and all(map(_surely_valid_region, regions))
    )


def _surely_valid_region(region: Any) -> bool:
    if type(region) is not dict or "role_texts" in region:
        return False
    box, score = region.get("box"), region.get("score", 1.0)
    span, cycle = region.get("span", [0, 0]), region.get("cycle", 0)
    return (
        type(span) is list
        and type(box) is list
        and len(box) == 4
        and all(type(number) in (float, int) for number in box)
        and type(region.get("text")) is str
        and type(region.get("source", "")) is str
        and type(score) in (float, int)
        and 0 <= score <= 1
        and len(span) == 2
        and all(type(number) is int and number >= 0 for number in span)
        and type(cycle) in (float, int)
        and -1 <= cycle <= 1
    )


@lru_cache(maxsize=1)
def _validator() -> jsonschema.Draft202012Validator:
    text = files("open_cloc.data.shards").joinpath("region_sample.schema.json").read_text(encoding="utf-8")
    return jsonschema.Draft202012Validator(json.loads(text))
