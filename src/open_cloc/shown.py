"""Texts from elsewhere as they may be shown: without the secrets of URLs, without what moves a terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Control characters but tab and line feed, marks that turn the direction of writing, half characters.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
# A URL's beginning, also where its scheme is missing; a path made of one has lost a slash.
_SCHEME = r"(?:(?:[A-Za-z][\w+.-]*|(?<![\w+.-])):?//|(?:https?|s3|gs|gcs|az|abfss?|hf|hdfs|s?ftp|ssh):/)"
# Up to the last @ before the path: passwords may hold one themselves.
_LOGIN = re.compile(rf"({_SCHEME})[^/?#\s'\"]*@")
# Signatures and tokens stand behind the question mark, or behind a hash. `::` begins another URL, and a comma
# before `name=` an option of ours.
_QUERY = re.compile(rf"({_SCHEME}(?:(?!::)[^?#\s'\"])*)[?#](?:(?!::|,[A-Za-z_]\w*=)[^\s'\")])*")
# A broken pipe: is none.
_COMMAND = re.compile(r"(?:(?:^|(?<=[:('\"]))pipe:|(?<=\s)pipe:(?=\S))(?P<command>[^\n]*)")


def printable(text: str) -> str:
    """A text in which control characters stand as they are written in code, such as `\\x1b`.

    A file's name or a caption could otherwise clear the screen, set the window's title, or hide a part of
    itself.
    """
    return _UNSEEN.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), text)


def without_secrets(text: str) -> str:
    """A text whose URLs have lost their logins and queries: passwords, signatures and tokens stand there.

    Of a command behind `pipe:`, which may hold a secret anywhere, the program and the names of tars are left.
    """
    if ":/" not in text and "pipe:" not in text:
        return text
    text = _QUERY.sub(r"\1", _LOGIN.sub(r"\1***@", text))
    return _COMMAND.sub(lambda found: f"pipe:{_short_command(found['command'])}", text)


def _short_command(command: str) -> str:
    program, *rest = command.split() or [""]
    if rest[:1] == ["..."]:  # has been made short before
        return command
    kept = [word for word in rest if re.search(r"\.tar\b", word)]
    return " ".join([program, *(["..."] if len(kept) < len(rest) else []), *kept])


def hide_secrets(document: Any) -> Any:
    """A document of plain JSON types with `without_secrets` applied to each of its texts."""
    if isinstance(document, str):
        return without_secrets(document)
    if isinstance(document, Mapping):
        return {hide_secrets(name): hide_secrets(part) for name, part in document.items()}
    if isinstance(document, (list, tuple)):
        return [hide_secrets(part) for part in document]
    return document
