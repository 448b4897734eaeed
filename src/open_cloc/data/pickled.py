"""Plain values out of a pickle from a stranger, without running anything of it.

A pickle is a program. One of lists, dicts, texts and numbers needs a few instructions alone, so every other
one ends it before any has run. Nothing is imported, whatever it asks for.
"""

from __future__ import annotations

import io
import pickle
import pickletools
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
    end = -1
    try:
        for number, (instruction, _, place) in enumerate(pickletools.genops(content)):
            if instruction.name not in HARMLESS:
                raise UserError(
                    f"pickle would run code: instruction {instruction.name} at byte {place}; nothing of it "
                    f"was run ({path})"
                )
            if number > MOST_INSTRUCTIONS:
                raise UserError(f"pickle has more than {MOST_INSTRUCTIONS} instructions ({path})")
            end = place if place is not None else end
    except UserError:
        raise
    except Exception as error:  # genops says ValueError, and others of broken numbers
        raise UserError(f"pickle is damaged: {error} ({path})") from None
    if end + 1 != len(content):
        raise UserError(f"pickle goes on behind its end, at byte {end + 1} ({path})")
