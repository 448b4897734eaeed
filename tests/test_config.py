"""Dataclasses from dicts, things by name, specs and their options, libraries of extras."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

from open_cloc.canvas import CanvasConfig
from open_cloc.config import call_with_options, from_dict, lookup, parse_spec, require
from open_cloc.errors import UserError
from open_cloc.model.prompter import PrompterConfig


@dataclass(frozen=True)
class Inner:
    size: tuple[int, int] = (1, 2)
    name: str = ""


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    rate: float = 1.0
    free: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize(
    "config",
    [
        Outer(Inner((3, 4), "x"), rate=0.5, free={"a": [1]}),
        Outer(maybe=Inner((5, 6))),
        CanvasConfig(image_size=(64, 32), resize_mode="squash", fill=(1, 2, 3)),
        PrompterConfig(readout="prompt", box_prior=True),
    ],
    ids=lambda config: type(config).__name__,
)
def test_round_trip_through_json(config: Any) -> None:
    values = json.loads(json.dumps(asdict(config)))
    assert from_dict(type(config), values) == config


def test_an_instance_stays_as_it_is() -> None:
    config = Outer()
    assert from_dict(Outer, config) is config
    assert from_dict(Outer, {}) == config


def test_unknown_keys_are_named_with_their_place() -> None:
    with pytest.raises(
        ValueError, match=r"unknown key 'rates' in Outer; expected one of free, inner, maybe, rate"
    ):
        from_dict(Outer, {"rates": 2})
    with pytest.raises(ValueError, match=r"unknown key 'nam' in model\.inner; expected one of name, size"):
        from_dict(Outer, {"inner": {"nam": "x"}}, "model")


@pytest.mark.parametrize("values", [[1, 2], "text", 3])
def test_what_is_no_dict_is_named(values: Any) -> None:
    with pytest.raises(ValueError, match=r"model must be a table of keys and values; got (list|str|int)"):
        from_dict(Outer, values, "model")
    with pytest.raises(ValueError, match=r"model\.inner must be a table"):
        from_dict(Outer, {"inner": values}, "model")


def test_values_are_checked_by_the_dataclass() -> None:
    with pytest.raises(ValueError, match="unknown resize_mode 'crop'"):
        from_dict(CanvasConfig, {"resize_mode": "crop"})


TABLE = {"one": "json:dumps", "two": len}


def test_lookup_gives_what_a_table_lists_or_a_module_holds() -> None:
    assert lookup(TABLE, "one", "thing") is json.dumps
    assert lookup(TABLE, "two", "thing") is len
    assert lookup(TABLE, "json:loads", "thing") is json.loads


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("three", r"unknown thing 'three'; expected one of one, two or package\.module:Name$"),
        ("twoo", r"unknown thing 'twoo'; expected .*; did you mean two\?$"),
        ("no.such:Thing", r"no thing at 'no\.such:Thing': No module named 'no'$"),
        ("twoo:vit", r"no thing at 'twoo:vit': No module named 'twoo'; did you mean two\?$"),
        ("json:nothing", r"no thing at 'json:nothing': module 'json' has no attribute 'nothing'"),
    ],
)
def test_lookup_says_what_there_is(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        lookup(TABLE, name, "thing")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one", ("one", "", {})),
        ("one:a/b", ("one", "a/b", {})),
        ("one:C:/a,b.json", ("one", "C:/a,b.json", {})),
        ("one:a,x=1,y_2=b=c", ("one", "a", {"x": "1", "y_2": "b=c"})),
        ("one,x=", ("one", "", {"x": ""})),
        ("my.module:Name", ("my.module:Name", "", {})),
        ("my.module:Name:a:b,x=1", ("my.module:Name", "a:b", {"x": "1"})),
    ],
)
def test_specs_are_taken_apart(text: str, expected: tuple[str, str, dict[str, str]]) -> None:
    assert parse_spec(text, TABLE) == expected


def test_a_path_that_is_there_keeps_what_looks_like_an_option(tmp_path: Path) -> None:
    kind = next(iter(TABLE))
    (tmp_path / "a,b=c" / "d,e=f").mkdir(parents=True)
    for path in (tmp_path / "a,b=c", tmp_path / "a,b=c" / "d,e=f"):
        assert parse_spec(f"{kind}:{path}", TABLE) == (kind, str(path), {})
        assert parse_spec(f"{kind}:{path},x=1", TABLE) == (kind, str(path), {"x": "1"})
    assert parse_spec(f"{kind}:{tmp_path}/a,b=d", TABLE)[1:] == (f"{tmp_path}/a", {"b": "d"})


def made(
    path: str,
    count: int = 1,
    rate: float | None = None,
    flag: bool = False,
    mode: Literal["fast", "slow"] = "fast",
    folder: Path | None = None,
    name: str = "",
) -> tuple[Any, ...]:
    return path, count, rate, flag, mode, folder, name


def test_options_become_what_annotations_say() -> None:
    texts = {"count": "3", "rate": "0.5", "flag": "True", "mode": "slow", "folder": "a/b", "name": "7"}
    expected = ("p", 3, 0.5, True, "slow", Path("a/b"), "7")
    assert call_with_options(made, "p", options=texts, where="w") == expected
    assert call_with_options(made, "p", options={"count": 4}, where="w")[1] == 4
    assert call_with_options(partial(made, "p"), options={"count": "5"}, where="w")[1] == "5"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colour": "red"}, r"unknown option 'colour' in 'w'; expected one of count, rate, flag, mode"),
        ({"path": "x"}, "unknown option 'path'"),
        ({"count": "1.5"}, r"count in 'w' must be a whole number; got '1\.5'"),
        ({"rate": "much"}, "rate in 'w' must be a number; got 'much'"),
        ({"flag": "maybe"}, "flag in 'w' must be true or false; got 'maybe'"),
        ({"mode": "swift"}, "unknown mode 'swift' in 'w'; expected one of fast, slow"),
        ({"folder": ""}, "folder in 'w' must be a path; got nothing"),
    ],
)
def test_wrong_options_are_named(options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call_with_options(made, "p", options=options, where="w")


def test_a_lacking_option_is_named() -> None:
    def needs(path: str, size: int) -> int:
        return size

    with pytest.raises(UserError, match=r"'w' lacks the option size="):
        call_with_options(needs, "p", options={}, where="w")


def test_a_missing_library_names_its_extra_and_a_broken_one_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"'no_such_library' is needed here.*'open-cloc\[label\]'"):
        require("no_such_library.part", "label")
    (tmp_path / "broken_library.py").write_text("import another_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="another_that_is_not_there"):
        require("broken_library", "label")
    assert require("json", "label") is json
