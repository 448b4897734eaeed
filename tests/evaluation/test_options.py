"""Options that make no sense are refused."""

from __future__ import annotations

from typing import Any

import pytest

from open_cloc.errors import UserError
from open_cloc.evaluation.options import EvaluationConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"recall_k": (0, 1)}, "recall_k"),
        ({"templates": ("a photo",)}, "templates"),
        ({"templates": ("a {}", "b")}, "templates"),
        ({"templates": ()}, "templates"),
        ({"protocol": "fg"}, "unknown protocol 'fg'"),
        ({"protocol": "fgclip", "templates": ("a {}",)}, "protocol fgclip says what templates are"),
        ({"protocol": "cloc", "recall_k": (5,)}, "protocol cloc says what recall_k are"),
        ({"candidates": 0}, "candidates"),
    ],
)
def test_bad_config(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EvaluationConfig(**changes)
