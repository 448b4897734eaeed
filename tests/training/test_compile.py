"""Compiled blocks: the same numbers, few graphs, and a run without a compiler."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_recipes import log_of, start, with_run

from open_cloc.model import gelu_sum
from open_cloc.model.create import build_model
from open_cloc.training import compile, loop
from open_cloc.training.compile import compile_blocks, num_graphs, uncompiled
from open_cloc.training.loop import train
from open_cloc.training.recipe import Recipe

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the compiler but its code, which takes a minute to make on a CPU."""
    torch.compiler.reset()
    monkeypatch.setattr(compile, "BACKEND", "aot_eager")


@pytest.mark.parametrize(
    ("readout", "changes"),
    [("mean", {"grad_checkpointing": True})],
    ids=["mean, recomputed"],
)
def test_gradients_are_those_of_eager_blocks(tiny: Recipe, readout: Any, changes: dict[str, Any]) -> None:
    model = replace(tiny.model, prompter=replace(tiny.model.prompter, readout=readout))
    recipe = with_run(replace(tiny, model=model), **changes)
    made = []
    for wanted in ("off", "on"):
        run, batch = start(recipe)
        assert compile_blocks(run.model, wanted, CPU) is (wanted == "on")  # type: ignore[arg-type]
        before = num_graphs()
        losses = loop.train_step(run, batch, 0).losses
        # One for each kind of block; two of the text's where one fills the context, two of the Prompter's.
        assert num_graphs() - before in (range(3, 9) if wanted == "on" else (0,))
        made.append(
            (losses, {n: p.grad.clone() for n, p in run.model.named_parameters() if p.grad is not None})
        )
        made_before = num_graphs()
        loop.train_step(run, batch, 1)
        assert num_graphs() == made_before
    torch.testing.assert_close(made[1], made[0], rtol=1e-4, atol=1e-6)


def test_an_evaluation_runs_eagerly(tiny: Recipe) -> None:
    model = build_model(tiny.model).eval()
    assert compile_blocks(model, "on", CPU)
    images = torch.randint(0, 255, (3, 3, 32, 32), dtype=torch.uint8)
    before = num_graphs()
    with uncompiled(), torch.no_grad():
        eager = model.encode_image(images).image_features
    assert num_graphs() == before
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(images).image_features, eager)
    assert num_graphs() > before


def test_names_of_weights_stay(tiny: Recipe) -> None:
    model = build_model(tiny.model)
    names = list(model.state_dict())
    assert compile_blocks(model, "on", CPU)
    assert list(model.state_dict()) == names


def test_without_a_compiler_the_run_is_eager_and_says_so(
    tiny: Recipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC.")

    monkeypatch.setattr(compile, "BACKEND", broken)
    train(with_run(tiny, compile="on", samples=4))
    assert "no compiler works here" in caplog.text
    assert "Failed to find C compiler" in caplog.text
    assert "graphs" not in log_of(tiny.run.output)[0]


def test_only_gpus_compile_by_themselves(tiny: Recipe) -> None:
    model = build_model(tiny.model)
    assert not compile_blocks(model, "auto", CPU)
    assert not compile_blocks(model, "off", torch.device("cuda"))


def test_the_form_for_exports_is_for_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of torch before 2.14, whose compiled code always takes itself to be exported."""
    shapes = ((1, 3, 8), (1, 3, 8), (1, 2, 2, 8), (1, 2, 3), (1, 2, 3, 2), (1, 2, 3), (8,))
    inputs = [torch.randn(shape) for shape in shapes]
    mask = torch.ones(1, 3, dtype=torch.bool)
    expected = gelu_sum.gelu_sum(*inputs, mask)
    monkeypatch.setattr(gelu_sum, "_whole", lambda inputs: torch.zeros(()))
    compiled = torch.compile(gelu_sum.gelu_sum, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs, mask), expected)
    with gelu_sum.exporting():
        assert not gelu_sum.gelu_sum(*inputs, mask).any()
