"""Requests that nobody would write: none is answered by 500, and each answer is what OpenAPI says."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from benchmarks.server import mutated, photo, right_requests
from open_cloc.inference.predictor import Predictor

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")


def test_mutated_requests(client: Any) -> None:
    pictures = [photo(seed, 60, 80) for seed in range(4)]
    statuses: Counter[int] = Counter()
    for number in range(400):
        path, content, headers = mutated(number, pictures)
        answer = client.post(path, content=content, headers=headers)
        statuses[answer.status_code] += 1
        assert answer.status_code < 500, (number, path, content[:300], answer.text)
        if answer.status_code >= 400:
            assert set(answer.json()) == {"error"}
    assert statuses[200] > 40
    assert statuses[422] > 100


def test_right_requests_are_answered(client: Any) -> None:
    *others, search = right_requests(photo(1, 60, 80), 1)
    for body in others:
        answer = client.post(body.pop("path"), json=body)
        assert answer.status_code == 200, answer.text
    assert client.post(search["path"], json={"text": search["text"]}).status_code == 404


def operations(predictor: Predictor) -> list[Any]:
    from open_cloc.server.app import create_app

    app = create_app(predictor, name="tiny", label_studio=["mug"])
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    return [found.ok() for found in schema.get_all_operations()]


def ask(operation: Any, mode: Any, unsaid: list[Any], tried: Counter[str]) -> None:
    """A dozen cases of an operation, checked."""

    @settings(
        max_examples=12,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        tried[operation.label] += 1
        case.validate_response(case.call(), excluded_checks=unsaid)

    check()


def test_what_schemathesis_makes_of_openapi(predictor: Predictor) -> None:
    """All its checks but one: that a picture is a picture, and a box inside of it, no schema can say."""
    from schemathesis.generation.modes import GenerationMode
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    unsaid = [positive_data_acceptance]
    tried: Counter[str] = Counter()
    for operation in operations(predictor):
        ask(operation, GenerationMode.POSITIVE, unsaid, tried)
        if operation.body:
            ask(operation, GenerationMode.NEGATIVE, unsaid, tried)
    assert len(tried) == 13
    assert tried["POST /v1/classify"] >= 20
