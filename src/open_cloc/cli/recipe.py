"""A recipe from the command line: its name, then every field that shall be another one."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar, get_args

import tyro

from open_cloc.cli.moved import explain_fields
from open_cloc.cli.parse import parse
from open_cloc.config import lookup
from open_cloc.errors import UserError
from open_cloc.files import parse_json
from open_cloc.objectives import OBJECTIVES, Term
from open_cloc.training.recipe import Recipe
from open_cloc.training.recipes import RECIPES

T = TypeVar("T")

# A recipe as a verb's field: its own fields stand on the command line without a prefix.
RecipeField = Annotated[Recipe, tyro.conf.arg(name="")]

registry = tyro.constructors.ConstructorRegistry()


@registry.primitive_rule
def _term_from_text(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Term] | None:
    """An objective is one text, as data and models are."""
    if info.type is not Term:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="KIND[,option=value]",
        instance_from_str=lambda texts: Term.parse(texts[0], OBJECTIVES),
        is_instance=lambda value: isinstance(value, Term),
        str_from_instance=lambda term: [str(term)],
    )


@registry.primitive_rule
def _text_or_table(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """Towers, a spec or a table: one text, in which `{` begins a table as JSON."""
    if set(get_args(info.type)) != {str, Mapping[str, Any]}:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="KIND:WHAT",
        instance_from_str=lambda texts: _from_text(texts[0]),
        is_instance=lambda value: isinstance(value, (str, Mapping)),
        str_from_instance=lambda value: [value if isinstance(value, str) else json.dumps(value)],
    )


def _from_text(text: str) -> str | dict[str, Any]:
    if not text.startswith("{"):
        return text
    return parse_json(text.encode(errors="replace"), f"the table {text:.60}")


def find_recipe(name: str) -> Recipe:
    """A recipe by its name, or as `package.module:function`.

    Raises:
        UserError: If there is none, or the function returns something else.
    """
    with explain_fields():
        recipe = lookup(RECIPES, name, "recipe")()
    if not isinstance(recipe, Recipe):
        raise UserError(f"recipe {name!r} must return a Recipe; got {type(recipe).__name__}")
    return recipe


def parse_options(options: type[T], verb: str, argv: Sequence[str]) -> T:
    """A verb's options, of which the first field is a recipe.

    Args:
        options: Dataclass whose first field is a `RecipeField`.
        verb: Name of the verb, for the usage.
        argv: Name of the recipe, then the options.
    """
    for text in _terms_in(argv):  # of a list of texts, the parser would only say that it cannot parse it
        Term.parse(text, OBJECTIVES)
    default = options(find_recipe(argv[0]))  # type: ignore[call-arg]
    prog = f"open-cloc {verb} {argv[0]}"
    return parse(options, argv[1:], prog, default=default, registry=registry)


def _terms_in(argv: Sequence[str]) -> list[str]:
    """The texts behind `--objectives`."""
    if "--objectives" not in argv:
        return []
    behind = argv[list(argv).index("--objectives") + 1 :]
    return list(itertools.takewhile(lambda text: not text.startswith("--"), behind))
