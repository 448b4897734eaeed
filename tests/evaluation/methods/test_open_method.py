"""Methods are named as data is, and refused in one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from open_cloc.errors import UserError
from open_cloc.evaluation.methods import METHODS, grounding_methods, open_method
from open_cloc.evaluation.methods.prompter import PrompterMethod
from open_cloc.model.cloc import CLOC


def open_outsider(what: str, setup: Any, *, size: int = 1) -> tuple[str, int]:
    return what, size


def test_options_and_methods_from_outside(model: CLOC) -> None:
    head, ranked = (open_method(spec, model) for spec in ("prompter,grounding=head", "ranked"))
    assert isinstance(head, PrompterMethod)
    assert isinstance(ranked, PrompterMethod)
    assert (head.candidates, ranked.candidates) == (0, 600)
    assert open_method(f"{__name__}:open_outsider:a/b,size=3") == ("a/b", 3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("magic", f"unknown method 'magic'; expected one of {', '.join(METHODS)}"),
        ("promter", "did you mean prompter"),
        ("prompter,grounding=best", "unknown grounding 'best'"),
        ("crop,size=3", "unknown option 'size'"),
        ("crop:runs/x", "takes its model from --weights"),
    ],
)
def test_wrong_specs(model: CLOC, spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_method(spec, model)


@pytest.mark.parametrize("name", ["prompter", "ranked", "head", "roialign", "crop"])
def test_methods_of_ours_need_a_model(name: str) -> None:
    with pytest.raises(UserError, match="needs a model: give --weights"):
        open_method(name)


def test_methods_that_ground_are_known_without_being_opened() -> None:
    assert grounding_methods() == ["prompter", "ranked", "head"]
