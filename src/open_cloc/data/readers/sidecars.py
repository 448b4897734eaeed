"""The files beside a picture that bear its name: captions as text, captions and regions as JSON.

The JSON is that of a shard's sample, which img2dataset writes beside pictures too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from open_cloc.data.annotations import Problem, RawSample
from open_cloc.data.bad_samples import problem_of
from open_cloc.data.names import resolve
from open_cloc.data.readers.unread import ADVICE, form_of, holds_yolo
from open_cloc.data.shards.region_json import parse_sample
from open_cloc.errors import SampleError, UserError
from open_cloc.files import parse_json, read_bytes, read_text

TEXTS = (".txt", ".caption")  # in the order in which they become captions
JSON = ".json"
# Any of these keys says that a JSON is a sample's.
OWN_KEYS = {
    *("caption", "captions", "regions", "box_format", "role_texts", "noun_chunks", "ref_exps", "bbox_info"),
    *("key", "status", "url"),
}


def pair(pictures: Sequence[str], others: Iterable[str]) -> tuple[list[str], set[str]]:
    """Which files stand beside which pictures.

    Args:
        pictures: Paths of pictures below a folder.
        others: Paths of other files there.

    Returns:
        The suffixes beside each picture as they are written, one a line; and the files that were found so.
    """
    by_stem: dict[str, list[str]] = {}
    for name in others:
        suffix = PurePosixPath(name).suffix
        if suffix.lower() in (*TEXTS, JSON):
            by_stem.setdefault(name.removesuffix(suffix), []).append(suffix)
    stems = [picture.removesuffix(PurePosixPath(picture).suffix) for picture in pictures]
    beside = ["\n".join(sorted(by_stem.get(stem, ()), key=_rank)) for stem in stems]
    used = {f"{stem}{suffix}" for stem, own in zip(stems, beside) for suffix in own.split("\n")}
    return beside, used


def _rank(suffix: str) -> tuple[int, str]:
    return ((*TEXTS, JSON).index(suffix.lower()), suffix)


def read_beside(
    folder: Path, picture: str, suffixes: Sequence[str], key: str, image: Path, outside: bool = False
) -> RawSample:
    """A picture with what the files beside it say. A file that is wrong costs itself.

    Args:
        folder: The data set's.
        picture: Path of the picture below it.
        suffixes: Those of the files beside it.
        key: The sample's name.
        image: The picture's file.
        outside: Allow links to files that do not lie in the folder.
    """
    stem = picture.removesuffix(PurePosixPath(picture).suffix)
    texts: list[str] = []
    sample = RawSample(key, image, None, str(image))
    problems: list[Problem] = []
    for suffix in suffixes:
        try:
            file = resolve(folder, f"{stem}{suffix}", outside=outside)
            if suffix.lower() == JSON:
                sample = _read_json(file, key, texts)
            else:
                texts += [text] if (text := _read_text(file)) else []
        except SampleError as error:
            problems.append(problem_of(error))
        except UserError as error:  # no regular file, no UTF-8, no JSON
            cause = "broken JSON" if suffix.lower() == JSON else "unreadable caption"
            problems.append(Problem(cause, str(error)))
    captions = tuple(dict.fromkeys((*sample.captions, *texts)))
    return replace(sample, image=image, captions=captions, problems=(*sample.problems, *problems))


def _read_text(file: Path) -> str:
    text = read_text(file).strip()
    if holds_yolo(text):
        raise SampleError(
            f"text beside a picture holds YOLO's boxes, no caption: name the classes in a data.yaml ({file})",
            "boxes that are not read",
        )
    return text


def _read_json(file: Path, key: str, texts: Sequence[str]) -> RawSample:
    content = read_bytes(file)
    document = parse_json(content, str(file))
    _check_form(document, file)
    caption = texts[0].encode() if texts and not document.get("caption") else None
    return parse_sample(key, b"", caption, content.removeprefix(b"\xef\xbb\xbf"), str(file))


def _check_form(document: Any, file: Path) -> None:
    """Refuse a JSON that is not a sample's, naming what it seems to be."""
    if isinstance(document, Mapping) and document.keys() & OWN_KEYS:
        return
    tool = form_of(file)
    if tool:
        raise SampleError(
            f"JSON beside a picture holds boxes of {tool}, which are not read: {ADVICE} ({file})",
            "boxes that are not read",
        )
    keys = sorted(map(str, document))[:8] if isinstance(document, Mapping) else type(document).__name__
    raise SampleError(
        f"JSON beside a picture is not a sample's: got {keys}, expected caption or regions ({file})",
        "JSON of another form",
    )
