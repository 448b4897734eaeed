"""Arguments to the dataclasses and functions of the verbs; one line for what these find wrong."""

from __future__ import annotations

import dataclasses
import io
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeVar

import tyro

from open_cloc.cli.screen import say
from open_cloc.errors import ExistingFileError, UserError
from open_cloc.files import read_json

T = TypeVar("T")

LARGEST = 2**63 - 1  # a whole number of torch and numpy


def parse(options: type[T], argv: Sequence[str], prog: str, **more: Any) -> T:
    """A verb's options.

    Args:
        options: A dataclass.
        argv: What stands behind the verb.
        prog: The verb as it is called, for the usage.
        **more: Further arguments of `tyro.cli`.

    Raises:
        UserError: If a field's value is refused by its dataclass, or is a number that no computer counts to.
        SystemExit: If an option is unknown or lacking, or help is asked for; the parser has said it all.
    """
    parsed = _undressed(lambda: tyro.cli(options, args=list(argv), prog=prog, **more))
    check_numbers(parsed)
    return parsed


def parse_command(
    commands: Mapping[str, Callable[..., int]], argv: Sequence[str], prog: str, description: str = ""
) -> Callable[[], int]:
    """One of several functions with its arguments, ready to be called.

    Args:
        commands: Functions by the word that stands for them; an empty one for a function alone.
        argv: The word and what stands behind it.
        prog: The verb as it is called, for the usage.
        description: For the help.

    Raises:
        UserError: As `parse`.
        SystemExit: As `parse`.
    """
    bound = {word: _binding(function) for word, function in commands.items()}
    word = argv[0] if argv and argv[0] in bound else ""
    if word in bound:  # by itself: the parser's own pointers to help leave out a part of the words
        rest, prog = (argv[1:], f"{prog} {word}") if word else (argv, prog)
        called = _undressed(lambda: tyro.cli(bound[word], args=list(rest), prog=prog))
    else:
        called = _undressed(
            lambda: tyro.extras.subcommand_cli_from_dict(
                bound, prog=prog, description=description, args=list(argv)
            )
        )
    check_numbers({**called.keywords, **dict(enumerate(called.args))})
    return called


def _binding(function: Callable[..., int]) -> Callable[..., partial[int]]:
    """A function of the same arguments that only remembers them: the parser shall not run the verb."""

    @wraps(function)
    def bind(*args: Any, **kwargs: Any) -> partial[int]:
        return partial(function, *args, **kwargs)

    return bind


def _undressed(call: Callable[[], T]) -> T:
    """Call the parser; what one of our dataclasses has said goes on as it is, without the parser's frame."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return call()
    except SystemExit as stop:
        error: BaseException | None = stop
        while error is not None and not isinstance(error, UserError):
            error = error.__cause__ or error.__context__
        if error is not None:
            raise error from None
        if said.getvalue():
            say(said.getvalue().rstrip("\n"), to_errors=True)
        raise


def check_numbers(parsed: Any) -> None:
    """Refuse numbers that would overflow somewhere inside.

    Raises:
        UserError: Names the first field that holds one.
    """
    for name, number in _numbers(parsed, ""):
        if abs(number) > LARGEST if isinstance(number, int) else not math.isfinite(number):
            shown = f"{number:.6g}" if isinstance(number, float) else f"a number of {len(str(number))} digits"
            name = name.removeprefix("recipe.")  # which options do not begin with
            raise UserError(f"{name} must be a number below 2**63; got {shown}")


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """Each number in nested dataclasses, tables and lists, and where it stands."""
    if isinstance(value, (int, float)):
        yield name, value
    elif dataclasses.is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        yield from _numbers(parts, name)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _numbers(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for row, part in enumerate(value):
            yield from _numbers(part, f"{name}[{row}]")


def check_result_file(path: Path | None, keys: Collection[str]) -> None:
    """Refuse a place for a result before the work that makes it: only an earlier result is replaced.

    Args:
        path: Where the JSON is to go; None for nowhere.
        keys: What every result of this verb holds.

    Raises:
        ExistingFileError: If something else is there.
    """
    if path is None or not os.path.lexists(path):
        return
    try:
        document = None if path.is_symlink() else read_json(path)
    except UserError:
        document = None
    if not isinstance(document, dict) or not document.keys() >= set(keys):
        raise ExistingFileError(f"{path} is there already, and no earlier result: give another name")
