"""The auto-annotation function, as `cvat-cli` loads and calls it; no server."""

from __future__ import annotations

import argparse
import logging
import shlex
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import open_cloc
from open_cloc.errors import UserError
from tests.integrations.conftest import blocks_of_the_page
from tests.tiny import picture

cvataa: Any = pytest.importorskip("cvat_sdk.auto_annotation", reason="cvat-sdk is not installed")
pytest.importorskip("cvat_cli", reason="cvat-cli is not installed")

MODULE = "open_cloc.integrations.cvat"
LABELS = "dog=a small dog, cat,mat"
PHRASES = ["a small dog", "cat", "mat"]


def loaded(*parameters: str) -> Any:
    """The function, of what stands behind `cvat-cli task auto-annotate 7 --function-module ...`."""
    from cvat_cli._internal.common import FunctionLoader, configure_function_implementation_arguments

    parser = argparse.ArgumentParser()
    parser.set_defaults(_executor=None)
    configure_function_implementation_arguments(parser)
    words = [word for parameter in parameters for word in ("-p", parameter)]
    given = parser.parse_args(["--function-module", MODULE, *words])
    return FunctionLoader(given.function_module, given.function_file, given.function_parameters).load()


def context(conf_threshold: float | None = None) -> Any:
    from cvat_sdk.auto_annotation.driver import _DetectionFunctionContextImpl

    return _DetectionFunctionContextImpl(frame_name="0.png", conf_threshold=conf_threshold)


@pytest.fixture(scope="module")
def function(weights: str) -> Any:
    return loaded(f"weights=str:{weights}", f"labels=str:{LABELS}", "device=str:cpu")


def test_cvats_client_loads_it(function: Any) -> None:
    assert isinstance(function.spec, cvataa.DetectionFunctionSpec)
    assert [(label.id, label.name, label.type) for label in function.spec.labels] == [
        (0, "dog", "rectangle"),
        (1, "cat", "rectangle"),
        (2, "mat", "rectangle"),
    ]


def test_a_rectangle_is_a_found_phrase(function: Any, weights: str) -> None:
    shapes = function.detect(context(), Image.fromarray(picture()))
    expected = open_cloc.load(weights, "cpu").encode(picture()).find(PHRASES)
    assert [shape.label_id for shape in shapes] == [0, 1, 2]
    assert {shape.type.value for shape in shapes} == {"rectangle"}
    np.testing.assert_allclose([shape.points for shape in shapes], [each.box for each in expected], atol=1e-4)
    scores = [max(0.0, each.score) for each in expected]
    np.testing.assert_allclose([shape.score for shape in shapes], scores, atol=1e-6)


def test_cvat_takes_its_shapes_and_gives_them_the_tasks_labels(function: Any) -> None:
    from cvat_sdk.auto_annotation.driver import _AnnotationMapper

    labels = [
        SimpleNamespace(name=name, id=identity, type="rectangle", attributes=[], sublabels=[])
        for name, identity in (("mat", 70), ("dog", 71), ("cat", 72))
    ]
    mapper = _AnnotationMapper(
        logging.getLogger(),
        function.spec.labels,
        labels,
        allow_unmatched_labels=False,
        conv_mask_to_poly=True,
    )
    shapes = function.detect(context(), Image.fromarray(picture()))
    tags, mapped = mapper.validate_and_remap(shapes, 5)
    assert tags == []
    assert [(shape.label_id, shape.frame, shape.source) for shape in mapped] == [
        (71, 5, "auto"),
        (72, 5, "auto"),
        (70, 5, "auto"),
    ]


def test_a_label_that_the_task_lacks_is_told_by_cvat(function: Any) -> None:
    from cvat_sdk.auto_annotation.driver import _AnnotationMapper

    with pytest.raises(cvataa.BadFunctionError, match="label 'dog' is not in dataset"):
        _AnnotationMapper(
            logging.getLogger(),
            function.spec.labels,
            [],
            allow_unmatched_labels=False,
            conv_mask_to_poly=True,
        )


def test_cvats_threshold_goes_before_ours(function: Any, weights: str) -> None:
    scores = [each.score for each in open_cloc.load(weights, "cpu").encode(picture()).find(PHRASES)]
    middle = sorted(scores)[1]
    better = [row for row, score in enumerate(scores) if score >= middle]
    frame = Image.fromarray(picture())
    assert [shape.label_id for shape in function.detect(context(middle), frame)] == better
    strict = loaded(
        f"weights=str:{weights}", f"labels=str:{LABELS}", "device=str:cpu", "min_score=float:1.01"
    )
    assert strict.detect(context(), frame) == []
    assert [shape.label_id for shape in strict.detect(context(middle), frame)] == better


def test_the_page(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's command as the page has it, up to where the server would be asked."""
    from cvat_cli import __main__ as client

    called: list[tuple[Any, ...]] = []

    def annotate(server: object, task: int, function: Any, *, conf_threshold: float, **options: Any) -> None:
        called.append((task, [label.name for label in function.spec.labels], conf_threshold))

    def build_client(given: argparse.Namespace, **options: Any) -> Any:
        common = argparse.ArgumentParser()
        client.configure_common_arguments(common)
        for name in set(vars(common.parse_args([]))) & set(vars(given)):
            delattr(given, name)  # what only the server's client needs
        return nullcontext()

    monkeypatch.setattr(client, "build_client", build_client)
    monkeypatch.setattr(cvataa, "annotate_task", annotate)
    (line,) = blocks_of_the_page("CVAT", "sh")
    program, *words = shlex.split(line.replace("path/to/model", weights).replace("\\\n", ""))
    assert program == "cvat-cli"
    assert client.main(words) == 0
    assert called == [(7, ["mug", "dog"], 0.2)]


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ("", "labels must be label or label=phrase, divided by commas; got ''"),
        ("dog,,cat", "divided by commas; got 'dog,,cat'"),
        ("dog=", "divided by commas; got 'dog='"),
        ("=a dog", "divided by commas; got '=a dog'"),
        ("dog,cat,dog=a small dog", "labels must be distinct; got 'dog' more than once"),
    ],
)
def test_wrong_labels(weights: str, labels: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        loaded(f"weights=str:{weights}", f"labels=str:{labels}", "device=str:cpu")
