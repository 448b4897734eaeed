"""Frozen dataclasses from dicts, without silently dropped keys."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest

from open_cloc.canvas import CanvasConfig
from open_cloc.config import from_dict
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
