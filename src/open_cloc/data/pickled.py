"""Plain values out of a pickle from a stranger, without running anything of it.

A pickle is a program. One of lists, dicts, texts and numbers needs a few instructions alone, so every other
one ends it before any has run. Nothing is imported, whatever it asks for.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from open_cloc.errors import UserError
from open_cloc.files import read_bytes

MOST_BYTES = 64 * 2**20
MOST_CONTAINERS = 5_000_000  # RefCOCOg has a tenth of a million references
MOST_INSTRUCTIONS = 50_000_000
# Instructions that make containers, texts and numbers, of protocols 0 to 5.
_FRAMES = ("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP")
_MEMORY = ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET")
_LISTS = ("EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
_DICTS = ("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "NONE", "NEWTRUE", "NEWFALSE")
_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
_TEXTS = (
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
    "UNICODE",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
)
HARMLESS = frozenset((*_FRAMES, *_MEMORY, *_LISTS, *_DICTS, *_NUMBERS, *_TEXTS))
MAKING = frozenset(("EMPTY_DICT", "DICT", *_LISTS)) - {"APPEND", "APPENDS"}  # a list, a tuple or a dict
NUMBERED = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))  # keep a value under a number of the file's choice
LINE = "STRING"  # its argument is a line: a text of Python 2 in quotes
# By its byte, each instruction's name and what reads its argument.
CODES = {
    each.code.encode("latin-1"): (each.name, each.arg.reader if each.arg else None)
    for each in pickletools.opcodes
}


class _Plain(pickle.Unpickler):
    """Makes no object of any class."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("asks for an object from elsewhere")


def read_plain_pickle(path: Path) -> Any:
    """The lists, dicts, texts and numbers of a pickle.

    Args:
        path: The file; its texts may be those of Python 2.

    Raises:
        MissingFileError: If it is not there.
        UserError: If it is larger than 64 MiB, holds anything else, or is damaged.
    """
    content = read_bytes(path)
    if len(content) > MOST_BYTES:
        raise UserError(f"a pickle of {len(content)} bytes is not opened: at most {MOST_BYTES} ({path})")
    _refuse_programs(content, path)
    try:
        found = _Plain(io.BytesIO(content), encoding="utf-8").load()
    except RecursionError:
        raise UserError(f"pickle is nested without end ({path})") from None
    except Exception as error:  # of a damaged stream: half a dozen kinds
        raise UserError(f"pickle is damaged: {type(error).__name__}: {error} ({path})") from None
    _refuse_without_end(found, path)
    return found


def _refuse_without_end(value: Any, path: Path) -> None:
    """A list may hold another twice, and that one a third: written out, a kilobyte has no end."""
    waiting, count = [value], 0
    while waiting:
        own = waiting.pop()
        inside = own.values() if isinstance(own, dict) else own if isinstance(own, (list, tuple)) else ()
        waiting += [part for part in inside if isinstance(part, (dict, list, tuple))]
        count += 1
        if count > MOST_CONTAINERS:
            raise UserError(
                f"pickle unfolds into more than {MOST_CONTAINERS} lists and dicts, as no list of references "
                f"does ({path})"
            )


def _refuse_programs(content: bytes, path: Path) -> None:
    """Look at every instruction before the first one runs."""
    end, containers = -1, 0
    try:
        for number, (name, argument, place) in enumerate(_instructions(content)):
            if name not in HARMLESS:
                raise UserError(
                    f"pickle would run code: instruction {name} at byte {place}; nothing of it was "
                    f"run ({path})"
                )
            containers += name in MAKING
            if number > MOST_INSTRUCTIONS or containers > MOST_CONTAINERS:
                raise UserError(
                    f"pickle has more than {MOST_INSTRUCTIONS} instructions, or makes more than "
                    f"{MOST_CONTAINERS} lists and dicts, as no list of references does ({path})"
                )
            # The table of kept values is as long as the largest number: gigabytes for a few bytes.
            if name in NUMBERED and not 0 <= argument <= number:
                raise UserError(
                    f"pickle is damaged: at byte {place} a value is kept under the number {argument}, behind "
                    f"{number} instructions ({path})"
                )
            end = place
    except UserError:
        raise
    except Exception as error:  # readers of arguments say ValueError, and others of broken numbers
        raise UserError(f"pickle is damaged: {error} ({path})") from None
    if end + 1 != len(content):
        raise UserError(f"pickle goes on behind its end, at byte {end + 1} ({path})")


def _instructions(content: bytes) -> Iterator[tuple[str, Any, int]]:
    """Name, argument and place of each instruction, up to the one that ends the pickle.

    `pickletools.genops` does the same, but takes texts of Python 2 for ASCII, which they need not be. The
    argument of what is not harmless is not read.

    Raises:
        ValueError: If a byte is no instruction, or the end is missing.
    """
    stream = io.BytesIO(content)
    while True:
        place = stream.tell()
        code = stream.read(1)
        if code not in CODES:
            raise ValueError(f"byte {place} is no instruction: {code!r}" if code else "its end is missing")
        name, reader = CODES[code]
        if name == LINE:
            argument: Any = stream.readline()
            if not argument.endswith(b"\n"):
                raise ValueError(f"the text at byte {place} does not end")
        else:
            argument = reader(stream) if reader is not None and name in HARMLESS else None
        yield name, argument, place
        if name == "STOP":
            return
