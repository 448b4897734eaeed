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
        ({"template": "a photo"}, "template"),
        ({"candidates": 0}, "candidates"),
    ],
)
def test_bad_config(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EvaluationConfig(**changes)
