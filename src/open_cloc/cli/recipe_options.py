"""Fields of a recipe as options of `train` and `plan`, where tyro alone would not read them as meant."""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from open_cloc.errors import UserError

T = TypeVar("T")

REGISTRY = ConstructorRegistry()


def parse_options(options: type[T], argv: Sequence[str], default: T, prog: str) -> T:
    """tyro's command line of a dataclass that holds a recipe.

    Args:
        options: The dataclass.
        argv: What stands behind the recipe's name.
        default: What holds where an option is not given.
        prog: The command up to there, for messages.
    """
    with REGISTRY:
        return tyro.cli(options, args=list(argv), default=default, prog=prog)


@REGISTRY.primitive_rule
def _text_or_table(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """`str | Mapping[str, Any]`, a spec or a table: one text, in which `{` begins a table as JSON."""
    if set(typing.get_args(info.type)) != {str, Mapping[str, Any]}:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="KIND:WHAT",
        instance_from_str=lambda texts: _from_text(texts[0]),
        is_instance=lambda value: isinstance(value, (str, Mapping)),
        str_from_instance=lambda value: [value if isinstance(value, str) else json.dumps(value)],
    )


def _from_text(text: str) -> str | dict[str, Any]:
    if not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{text!r:.60} begins like a table but is not valid JSON: {error}") from error
