"""Requests to checked forms and pictures: sizes first, then words, then pixels."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import AsyncIterator
from typing import Any, NamedTuple, TypeVar

from open_cloc.config import require
from open_cloc.errors import UserError, first_line
from open_cloc.pictures import read_header
from open_cloc.server.limits import Limits, RefusedError

formparsers = require("starlette.formparsers", "serve")
pydantic = require("pydantic", "serve")

T = TypeVar("T")

FILE, REST = "image", "request"  # the fields of a multipart request
DATA_URL = re.compile(r"data:[\w.+/;=-]*?;base64,")


class Asked(NamedTuple):
    """A request that was read.

    Attributes:
        form: Its words and numbers.
        image: The file of a multipart request; None in JSON.
    """

    form: Any
    image: bytes | None


async def read_request(request: Any, form: type[T], limits: Limits) -> Asked:
    """A request's body as its form.

    Args:
        request: Starlette's.
        form: A class of `forms`.
        limits: What is taken.

    Raises:
        RefusedError: If it is too large, of another type, or not of the form.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "multipart/form-data"):
        raise RefusedError(415, "send application/json, or multipart/form-data with the file 'image'")
    body = await _body(request, limits)
    if kind == "application/json":
        return Asked(_checked(form, body), None)
    image, rest = await _parts(request, body)
    if image is None and "image" in form.model_fields and form.model_fields["image"].is_required():  # type: ignore[attr-defined]
        raise RefusedError(422, "a multipart request needs a file 'image'")
    return Asked(_checked(form, rest, image is not None), image)


async def _body(request: Any, limits: Limits) -> bytes:
    """The whole body, and no more of it than is taken."""
    too_large = RefusedError(413, f"a request must have at most {limits.megabytes} MiB")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > limits.bytes:
        raise too_large
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limits.bytes:
            raise too_large
        chunks.append(chunk)
    return b"".join(chunks)


async def _parts(request: Any, body: bytes) -> tuple[bytes | None, bytes]:
    """The file and the rest of a multipart body."""

    async def stream() -> AsyncIterator[bytes]:
        yield body

    try:
        parser = formparsers.MultiPartParser(request.headers, stream(), max_files=1, max_fields=1)
        parser.max_part_size = len(body)
        fields = await parser.parse()
    except (formparsers.MultiPartException, KeyError, ValueError, AssertionError) as error:
        raise RefusedError(422, f"this is no multipart body: {first_line(error) or 'no boundary'}") from None
    unknown = set(fields) - {FILE, REST}
    if unknown:
        raise RefusedError(422, f"unknown field {sorted(unknown)[0]!r:.60}; expected {FILE} and {REST}")
    file, rest = fields.get(FILE), fields.get(REST, "{}")
    if isinstance(file, str) or not isinstance(rest, str):
        raise RefusedError(422, f"{FILE} must be a file, and {REST} JSON of everything else")
    return (None if file is None else await file.read()), rest.encode()


def _checked(form: type[T], body: bytes, has_file: bool = False) -> T:
    """JSON as its form; of a multipart request the picture lies beside it."""
    try:
        if not has_file:
            return form.model_validate_json(body)  # type: ignore[attr-defined]
        values = pydantic.TypeAdapter(dict[str, Any]).validate_json(body)
        if FILE in values:
            raise RefusedError(422, f"give the picture as the file {FILE}, not in {REST} as well")
        return form.model_validate({**values, FILE: ""})  # type: ignore[attr-defined]
    except pydantic.ValidationError as error:
        raise RefusedError(422, _reason(error)) from None


def _reason(error: Any) -> str:
    """The first fault of a form, in words."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    more = error.error_count() - 1
    also = f" (and {more} more)" if more else ""
    return f"{where + ': ' if where else ''}{first['msg']}{also}"


def picture_of(text: str) -> bytes:
    """The bytes of a picture in base64.

    Raises:
        RefusedError: If it is not base64.
    """
    start = DATA_URL.match(text)
    try:
        return base64.b64decode(text[start.end() if start else 0 :], validate=True)
    except (binascii.Error, ValueError):
        raise RefusedError(422, "image must be base64 of a picture's file, plain or as a data: URL") from None


def check_picture(encoded: bytes, limits: Limits) -> None:
    """Look at a picture's head before anything is decoded.

    Raises:
        RefusedError: If it is no picture, or has too many pixels.
    """
    if not encoded:
        raise RefusedError(422, "the picture is empty")
    try:
        height, width = read_header(encoded, "image").size_hw
    except UserError as error:
        raise RefusedError(422, str(error)) from None
    if height * width > limits.megapixels * 1_000_000:
        raise RefusedError(
            422, f"a picture must have at most {limits.megapixels} megapixels; got {width} x {height}"
        )
