"""Pickles of strangers: plain values come out, and nothing of a program runs."""

from __future__ import annotations

import builtins
import os
import pickle
import pickletools
import struct
import subprocess
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from open_cloc.data import pickled
from open_cloc.data.pickled import HARMLESS, read_plain_pickle
from open_cloc.errors import MissingFileError, UserError

PLAIN = [
    {
        "sent_ids": [0, 1, 2],
        "file_name": "COCO_train2014_000000581857_16.jpg",
        "ann_id": 1719310,
        "big": 2**70,
        "half": 0.5,
        "flags": (True, False, None),
        "sentences": [{"tokens": ["the", "lady"], "raw": "the lady \u00e9", "sent_id": 0}],
    }
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_back(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps(PLAIN, protocol))
    assert read_plain_pickle(path) == PLAIN


def test_texts_of_python_2(tmp_path: Path) -> None:
    """Its `str` are bytes, which are UTF-8 here."""
    path = tmp_path / "refs.p"
    for content in (
        b"\x80\x02]q\x00}q\x01U\x05splitq\x02U\x03valq\x03sa.",
        b"(lp0\n(dp1\nS'split'\np2\nS'val'\np3\nsa.",
    ):
        path.write_bytes(content)
        assert read_plain_pickle(path) == [{"split": "val"}]
    for content in (
        b"(lp0\nS'caf\\xc3\\xa9'\np1\na.",  # escaped, as Python 2 prints it
        b"(lp0\nS'caf\xc3\xa9'\np1\na.",
        b"(lp0\nVcaf\\u00e9\np1\na.",
        b"\x80\x02]q\x00U\x05caf\xc3\xa9q\x01a.",
    ):
        path.write_bytes(content)
        assert read_plain_pickle(path) == pickle.loads(content, encoding="utf-8") == ["caf\u00e9"]
    for content in (b"S'caf\xe9'\n.", b"S'no end'", b"Sno quotes\n.", b"S'a\\x'\n."):  # latin-1 is no UTF-8
        path.write_bytes(content)
        with pytest.raises(UserError, match="pickle is damaged"):
            read_plain_pickle(path)


def test_a_program_behind_texts_of_python_2_is_refused(tmp_path: Path) -> None:
    """The end of a text is where the unpickler sees it, whatever bytes are inside."""
    for text in (b"S'caf\xc3\xa9'\n", b"S'\\xc3\\xa9'\n", b"S'a\\n'\n", b"S'\r'\n"):
        (tmp_path / "refs.p").write_bytes(text + b"cos\nsystem\n(S'true'\ntR.")
        with pytest.raises(UserError, match=f"instruction GLOBAL at byte {len(text)}"):
            read_plain_pickle(tmp_path / "refs.p")


def put(number: int, protocol: int) -> bytes:
    """An empty list that is kept under a number."""
    return {
        0: b"(lp%d\n." % number,
        1: b"]q%c." % (number % 256),
        2: b"]r" + struct.pack("<I", number) + b".",
    }[protocol]


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_values_are_kept_under_numbers_that_the_file_can_need(tmp_path: Path, protocol: int) -> None:
    """The table of values is as long as the largest number: 9 bytes took 776 MB."""
    path = tmp_path / "refs.p"
    path.write_bytes(put(1, protocol))
    assert read_plain_pickle(path) == []
    path.write_bytes(put(200 if protocol == 1 else 50_000_000, protocol))
    tracemalloc.start()
    try:
        with pytest.raises(
            UserError, match=r"pickle is damaged: at byte \d a value is kept under the number"
        ):
            read_plain_pickle(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


class Reduced:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


class WithState:
    def __init__(self) -> None:
        self.x = 1


class Persistent(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return "elsewhere" if value == "x" else None


def _persistent(protocol: int) -> bytes:
    import io

    stream = io.BytesIO()
    Persistent(stream, protocol).dump(["x"])
    return stream.getvalue()


TOUCHED = "touched_by_a_pickle"
BAD: dict[str, bytes] = {
    "os.system": pickle.dumps(Reduced(os.system, f"touch {TOUCHED}")),
    "os.system, protocol 0": pickle.dumps(Reduced(os.system, f"touch {TOUCHED}"), 0),
    "os.system, protocol 2": pickle.dumps(Reduced(os.system, f"touch {TOUCHED}"), 2),
    "within a list": pickle.dumps([1, [Reduced(os.system, f"touch {TOUCHED}")]]),
    "as a key": pickle.dumps({("a", 1): Reduced(os.system, f"touch {TOUCHED}")}),
    "subprocess": pickle.dumps(Reduced(subprocess.check_output, ["touch", TOUCHED])),
    "eval": pickle.dumps(Reduced(builtins.eval, f"open({TOUCHED!r}, 'w')")),
    "exec": pickle.dumps(Reduced(builtins.exec, f"open({TOUCHED!r}, 'w')")),
    "open": pickle.dumps(Reduced(builtins.open, TOUCHED, "w")),
    "by hand, protocol 0": f"cos\nsystem\n(S'touch {TOUCHED}'\ntR.".encode(),
    "INST": f"(S'touch {TOUCHED}'\nios\nsystem\n.".encode(),
    "OBJ": f"(cos\nsystem\nS'touch {TOUCHED}'\no.".encode(),
    "GLOBAL alone": b"cos\nsystem\n.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    "an instance with state": pickle.dumps(WithState(), 2),
    "an ordered dict": pickle.dumps(OrderedDict(a=1)),
    "a date": pickle.dumps(date(2026, 1, 1)),
    "an array": pickle.dumps(np.zeros(3)),
    "a set": pickle.dumps({1, 2}, 2),
    "EXT1": b"\x80\x02\x82\x01.",
    "PERSID": _persistent(0),
    "BINPERSID": _persistent(2),
    "behind a STOP": pickle.dumps([1]) + pickle.dumps(Reduced(os.system, f"touch {TOUCHED}")),
    "bytes": pickle.dumps(bytearray(b"x"), 5),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_programs_are_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "refs.p").write_bytes(content)
    made: list[Any] = []
    monkeypatch.setattr(pickled, "_Plain", lambda *args, **options: made.append(args))
    with pytest.raises(UserError, match=r"would run code: instruction|goes on behind its end"):
        read_plain_pickle(tmp_path / "refs.p")
    assert made == []  # not even the reader of plain values was started
    assert [path.name for path in tmp_path.iterdir()] == ["refs.p"]


@pytest.mark.parametrize("name", ["os.system", "by hand, protocol 0", "STACK_GLOBAL", "PERSID", "BINPERSID"])
def test_the_reader_itself_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Were an instruction let through, it would find no class."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "refs.p").write_bytes(BAD[name])
    monkeypatch.setattr(pickled, "_refuse_programs", lambda content, path: None)
    with pytest.raises(UserError, match="asks for"):
        read_plain_pickle(tmp_path / "refs.p")
    assert [path.name for path in tmp_path.iterdir()] == ["refs.p"]


def test_what_is_damaged_or_too_large_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "refs.p"
    for content in (b"", b"x", pickle.dumps(PLAIN)[:-5], b"\x80\x02]q\x00(K", b"]q\x00." * 2, b"a."):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"pickle (is damaged|goes on)"):
            read_plain_pickle(path)
    path.write_bytes(b"(" * 100_000 + b"l" * 100_000 + b".")  # deep, and plain all the same
    assert isinstance(read_plain_pickle(path), list)
    monkeypatch.setattr(pickled, "MOST_BYTES", 10)
    path.write_bytes(pickle.dumps(PLAIN))
    with pytest.raises(UserError, match="at most 10"):
        read_plain_pickle(path)
    with pytest.raises(MissingFileError, match="no such file"):
        read_plain_pickle(tmp_path / "absent.p")


def test_what_unfolds_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 lists, each twice in the next: a message that showed them would never end."""
    monkeypatch.setattr(pickled, "MOST_CONTAINERS", 10_000)
    (tmp_path / "refs.p").write_bytes(b"(" + b"}" * 10_001 + b"l.")
    with pytest.raises(UserError, match="makes more than 10000 lists and dicts"):
        read_plain_pickle(tmp_path / "refs.p")
    value: list[Any] = []
    for _ in range(60):
        value = [value, value]
    ring: list[Any] = []
    ring.append({"ring": ring})
    for each in (value, ring):
        (tmp_path / "refs.p").write_bytes(pickle.dumps(each))
        with pytest.raises(UserError, match="unfolds into more than 10000 lists and dicts"):
            read_plain_pickle(tmp_path / "refs.p")


def test_harmless_instructions_are_pickles_own() -> None:
    known = {code.name for code in pickletools.opcodes}
    assert known >= HARMLESS
    assert not HARMLESS & {"GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"}
    assert not {name for name in HARMLESS if "PERSID" in name or name.startswith("EXT")}
