"""Recipes by name; frozen dataclasses from and to plain dicts, without silently dropped keys."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def from_dict(cls: type[T], values: Mapping[str, Any] | T, where: str = "") -> T:
    """Make a dataclass from a dict such as a config file's, nested dataclasses and tuples included.

    Args:
        cls: A dataclass type.
        values: Its fields; an instance is returned as it is.
        where: What is being read, for the message.

    Raises:
        ValueError: On a key that is no field of `cls`, or if `values` is no dict.
    """
    if isinstance(values, cls):
        return values
    if not isinstance(values, Mapping):
        got = f"{type(values).__name__} {values!r}"
        raise ValueError(f"{where or cls.__name__} must be a table of keys and values; got {got}")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(
            f"unknown key {unknown[0]!r} in {where or cls.__name__}; "
            f"expected one of {', '.join(sorted(hints))}"
        )
    prefix = f"{where}." if where else ""
    return cls(**{name: _convert(hints[name], value, prefix + name) for name, value in values.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    if typing.get_origin(hint) in (typing.Union, types.UnionType) and isinstance(value, Mapping):
        for choice in typing.get_args(hint):  # of `Config | None`
            if dataclasses.is_dataclass(choice):
                return from_dict(typing.cast(type, choice), value, where)
    if isinstance(value, list) and "tuple" in str(hint):
        return tuple(value)
    return value


def find_recipe(name: str, recipes: Mapping[str, Callable[[], T]], what: str = "recipe") -> Callable[[], T]:
    """A recipe function by its name, or as `package.module:function`.

    Args:
        name: What the user gave.
        recipes: Ours.
        what: They are, for messages.

    Raises:
        ValueError: If there is none; lists those there are.
    """
    if name in recipes:
        return recipes[name]
    if ":" in name:
        return import_object(name, what)
    near = difflib.get_close_matches(name, recipes, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(
        f"unknown {what} {name!r}; expected one of {', '.join(recipes)} or package.module:function{hint}"
    )


def import_object(target: str, what: str) -> Any:
    """Import `package.module:name`.

    Args:
        target: Where it is.
        what: It is, for the message.

    Raises:
        ValueError: If there is none.
    """
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"no {what} at {target!r}: {error}") from error
