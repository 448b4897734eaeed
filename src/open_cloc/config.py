"""Frozen dataclasses from plain dicts, things found by name, and the libraries of extras."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import os
import re
import sys
import types
import typing
from collections import abc
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from open_cloc.errors import UserError
from open_cloc.shown import without_secrets

T = TypeVar("T")

# Larger than any number that a config means, smaller than what a float holds.
MAX_NUMBER = 1e300


def from_dict(cls: type[T], values: Mapping[str, Any] | T, where: str = "") -> T:
    """Make a dataclass from a dict such as a config file's, nested dataclasses and tuples included.

    Args:
        cls: A dataclass type.
        values: The fields by name; an instance is returned as it is.
        where: What is being read, for the message.

    Raises:
        UserError: On a key that is no field of `cls`, one that is lacking, a value of another type than its
            field's, or if `values` is no dict.
    """
    if isinstance(values, cls):
        return values
    if not isinstance(values, Mapping):
        got = f"{type(values).__name__} {values!r:.60}"
        raise UserError(f"{where or cls.__name__} must be a table of keys and values; got {got}")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UserError(
            f"unknown key {unknown[0]!r} in {where or cls.__name__}; "
            f"expected one of {', '.join(sorted(hints))}"
        )
    lacking = [f.name for f in dataclasses.fields(typing.cast(Any, cls)) if _is_lacking(f, values)]
    if lacking:
        raise UserError(f"{where or cls.__name__} lacks the key {lacking[0]!r}")
    prefix = f"{where}." if where else ""
    return cls(**{name: convert(hints[name], value, prefix + name) for name, value in values.items()})


def _is_lacking(field: dataclasses.Field, values: Mapping[str, Any]) -> bool:
    needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    return needed and field.init and field.name not in values


# What a value of a plain type is called in messages, and what may stand for it.
PLAIN = {
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("a whole number", lambda value: _is_number(value) and float(value).is_integer()),
    float: ("a number", lambda value: _is_number(value)),
    str: ("a text", lambda value: isinstance(value, str)),
    types.NoneType: ("null", lambda value: value is None),
    dict: ("a table of keys and values", lambda value: isinstance(value, Mapping)),
    list: ("a list", lambda value: isinstance(value, (list, tuple))),
}


def _is_number(value: Any) -> bool:
    """Whether it is a number that float can hold; a truth value is none, and nan neither."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MAX_NUMBER


def convert(hint: Any, value: Any, where: str) -> Any:
    """A value such as a config file's, as an annotation asks for it; what it cannot judge passes unchanged.

    Args:
        hint: A field's annotation.
        value: What was given for it.
        where: The field's name, for the message.

    Raises:
        UserError: If the value is of another type, or none of those allowed.
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    if origin is typing.Literal:
        if value not in inner:
            raise UserError(f"unknown {where} {value!r:.60}; expected one of {', '.join(map(str, inner))}")
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_to_one_of(inner, value, where)
    if origin is tuple:
        return _convert_row(inner, value, where)
    plain = {abc.Mapping: dict}.get(origin, origin or hint)
    if plain is Path and isinstance(value, str):
        return Path(value)
    if isinstance(plain, type) and plain in PLAIN and not PLAIN[plain][1](value):
        raise UserError(f"{where} must be {PLAIN[plain][0]}; got {value!r:.60}")
    return int(value) if plain is int else value


def _convert_to_one_of(hints: tuple[Any, ...], value: Any, where: str) -> Any:
    """A value for `A | B`: a table where one of them is a dataclass, else the first that takes it."""
    if isinstance(value, Mapping):
        hints = tuple(hint for hint in hints if dataclasses.is_dataclass(hint)) or hints
    problems = []
    for hint in hints:
        try:
            return convert(hint, value, where)
        except UserError as error:
            problems.append(error)
    # The last that is not "must be null" says most.
    raise next((e for e, hint in zip(problems, hints) if hint is not types.NoneType), problems[0])


def _convert_row(hints: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    """A list for `tuple[A, ...]` or `tuple[A, B]`."""
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{where} must be a list; got {value!r:.60}")
    if hints[-1:] == (Ellipsis,):
        hints = hints[:1] * len(value)
    if len(hints) != len(value):
        raise UserError(f"{where} must be a list of {len(hints)}; got {value!r:.60}")
    return tuple(convert(hint, part, f"{where}[{row}]") for row, (hint, part) in enumerate(zip(hints, value)))


def lookup(table: Mapping[str, Any], name: str, what: str) -> Any:
    """What a table lists under a name, or what `package.module:Name` points to.

    Args:
        table: What there is, by name. A text `module:object` in it is imported when it is asked for.
        name: The name that the user gave.
        what: A word for what the table lists, for messages, such as `task`.

    Raises:
        UserError: If there is none; lists those there are, and the nearest one.
    """
    if name in table:
        found = table[name]
        return _import_object(found, what) if isinstance(found, str) else found
    if ":" in name:
        add_working_folder()
        return _import_object(name, what, table)
    raise _unknown(table, name, what)


def check_name(table: Mapping[str, Any], name: str, what: str) -> None:
    """Refuse a name that `lookup` would not find, without importing anything.

    Args:
        table: Ours, by name.
        name: What the user gave; `package.module:Name` is taken on trust, and may lie in the working folder.
        what: What the table lists, for messages.

    Raises:
        UserError: If the table does not list it.
    """
    if name not in table and ":" not in name:
        raise _unknown(table, name, what)
    if name not in table:
        add_working_folder()


def add_working_folder() -> None:
    """Let modules of the working folder be imported, behind all others.

    Only for who names one of theirs: the folder may be a stranger's data set, in which a file is called as
    some library that torch or Ray would like to have.

    Raises:
        UserError: If the folder is not there any more.
    """
    # What torch looks for and may not find, it must not find there.
    importlib.import_module("torch")
    try:
        folder = os.getcwd()
    except FileNotFoundError:
        raise UserError("the working folder is not there any more; change to one that is") from None
    if folder not in sys.path:
        sys.path.append(folder)


def _unknown(table: Mapping[str, Any], name: str, what: str) -> UserError:
    return UserError(
        f"unknown {what} {name!r}; expected one of {', '.join(table)} or package.module:Name"
        f"{_nearest(table, name)}"
    )


def _nearest(table: Iterable[str], name: str) -> str:
    near = difflib.get_close_matches(name, table, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _import_object(target: str, what: str, kinds: Iterable[str] = ()) -> Any:
    """Import `package.module:name`.

    Args:
        target: The module and the name in it.
        what: A word for what is imported, for the message.
        kinds: What there is by a plain name, one of which may have been meant.

    Raises:
        UserError: If there is none.
    """
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"no {what} at {target!r}: {error}{_nearest(kinds, module)}") from error


def require(module: str, extra: str) -> Any:
    """Import a library that comes with an extra of this package.

    Args:
        module: The library's name, such as `spacy` or `ray.data`.
        extra: The extra that brings it, such as `label`.

    Raises:
        UserError: If it is not installed; a library that is there but breaks raises its own error.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if module != missing and not module.startswith(f"{missing}."):
            raise
        raise UserError(
            f"{missing!r} is needed here, and not installed: pip install 'open-cloc[{extra}]'"
        ) from error


# --- specs: KIND:WHAT,option=value -----------------------------------------------------------------


class Spec(NamedTuple):
    """A choice in one text, as data, models, methods and objectives are named: `KIND:WHAT,option=value`.

    Attributes:
        kind: A key of the table of kinds, or `package.module:Name`.
        what: What stands behind the colon, such as a path; empty where there is none.
        options: The named values, still texts.
    """

    kind: str
    what: str
    options: dict[str, str]


def parse_spec(text: str, table: Mapping[str, Any]) -> Spec:
    """Take a spec apart.

    A comma starts an option only where `name=` follows it: paths may hold commas. What looks like an option
    belongs to the path where there is a file or folder of that name.

    Args:
        text: The spec, such as `coco:val.json,images=photos` or `my.module:Reader:PATH`.
        table: The kinds; a kind that is not in it is `package.module:Name`.
    """
    head, *rest = re.split(r",(?=[A-Za-z_]\w*=)", text)
    kind, _, what = head.partition(":")
    if kind not in table and what:
        name, _, what = what.partition(":")
        kind = f"{kind}:{name}"
    longest_first = range(len(rest), 0, -1)
    own = next((n for n in longest_first if _is_there(",".join([what, *rest[:n]]))), 0)
    what, rest = ",".join([what, *rest[:own]]), rest[own:]
    return Spec(kind, what, dict(option.split("=", 1) for option in rest))


def _is_there(path: str) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # a NUL
        return False


def call_with_options(
    factory: Callable[..., T], *arguments: Any, options: Mapping[str, Any], where: str
) -> T:
    """Call a factory with options, texts turned into what its annotations ask for.

    Args:
        factory: A function or class.
        *arguments: The first arguments of the factory, in order.
        options: The others by name, as texts or as values.
        where: The spec that the options stand in, for messages.

    Raises:
        UserError: If an option is unknown, lacking, or not of its type.
    """
    where = without_secrets(where)
    parameters = list(inspect.signature(factory).parameters.values())[len(arguments) :]
    known = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    unknown = [name for name in options if name not in known]
    if unknown and not takes_any:
        expected = f"one of {', '.join(known)}" if known else "none"
        raise UserError(f"unknown option {unknown[0]!r} in {where!r}; expected {expected}")
    lacking = [
        p.name for p in parameters if p.name in known and p.default is p.empty and p.name not in options
    ]
    if lacking:
        raise UserError(f"{where!r} lacks the option {lacking[0]}=...")
    hints = _hints_of(factory)
    values = {
        name: _from_text(value, hints.get(name, str), name, where) if isinstance(value, str) else value
        for name, value in options.items()
    }
    return factory(*arguments, **values)


def _hints_of(factory: Callable) -> dict[str, Any]:
    """What a factory's annotations say; nothing where they cannot be found out, as with a partial's."""
    try:
        return typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    except (NameError, TypeError):
        return {}


def _from_text(text: str, hint: Any, name: str, where: str) -> Any:
    """A text as a number, a truth value, one of several words, or itself."""
    choices = [c for c in typing.get_args(hint) if c is not type(None)]
    if typing.get_origin(hint) is typing.Literal:
        if text not in choices:
            raise UserError(
                f"unknown {name} {text!r} in {where!r}; expected one of {', '.join(map(str, choices))}"
            )
        return text
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = choices[0]
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise UserError(f"{name} in {where!r} must be true or false; got {text!r}")
        return text.lower() == "true"
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            kind = "a whole number" if hint is int else "a number"
            raise UserError(f"{name} in {where!r} must be {kind}; got {text!r}") from None
    if inspect.isclass(hint) and issubclass(hint, Path):
        if not text:
            raise UserError(f"{name} in {where!r} must be a path; got nothing")
        return hint(text)
    return text
