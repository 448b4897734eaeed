"""The loop: stops, values that are not finite."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from tiny_recipes import SCENES, assert_same_run, assert_same_tensors, losses_of, start, with_loader, with_run
from torch import Tensor

from open_cloc.cli import main as cli
from open_cloc.data.permutation import permutation
from open_cloc.data.readers import open_reader
from open_cloc.objectives import Objectives
from open_cloc.samples import RegionSample
from open_cloc.training import checkpoint, loop
from open_cloc.training.loop import train
from open_cloc.training.recipe import Recipe


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + 120
    while not path.is_file() or path.read_text().count("\n") < count:
        assert process.poll() is None, "ended too early"
        assert time.monotonic() < limit, "no progress"
        time.sleep(0.01)


def poisoned(term: str) -> Callable[..., dict[str, Tensor]]:
    def losses(objectives: Objectives, features: Any) -> dict[str, Tensor]:
        made = compute(objectives, features)
        made[term] = made[term] * float("nan")
        made["total"] = made["image_text"] + made["region_text"] + made["grounding"]
        return made

    compute = Objectives.forward
    return losses


def test_sigterm_saves_and_the_resumed_run_is_the_same(project: Recipe, tmp_path: Path) -> None:
    """To the whole process group, as `timeout` and batch systems send it: data workers get it too."""
    recipe = with_run(with_loader(project, workers=1), samples=4 * 40, save_steps=0)
    (tmp_path / "tiny.json").write_text(json.dumps(asdict(recipe)))
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "open_cloc.cli",
            "train",
            "my_run:tiny",
            "--data.train",
            "my_run:SlowScenes:x",
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        wait_for_lines(Path(recipe.run.output) / "log.jsonl", 3, process)
        os.killpg(process.pid, signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143, stderr.decode()
    (saved,) = checkpoint.list_checkpoints(Path(recipe.run.output) / "checkpoints")
    assert f"stopped by SIGTERM, saved {saved}; go on with --resume latest" in stderr.decode()
    step = checkpoint.read_progress(saved).step
    assert 3 <= step < 40
    assert not (Path(recipe.run.output) / "model").exists()
    recipe = with_run(with_loader(recipe, workers=0), save_steps=40)
    train(recipe, resume="latest")
    train(with_run(recipe, output=str(tmp_path / "whole")))
    assert_same_run(recipe.run.output, tmp_path / "whole", step=40)
    assert losses_of(recipe.run.output) == losses_of(tmp_path / "whole")


def test_sigterm_is_as_before_after_a_run(tiny: Recipe) -> None:
    before = signal.getsignal(signal.SIGTERM)
    train(with_run(tiny, samples=4))
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("term", ["image_text", "region_text", "grounding"])
def test_a_loss_that_is_not_finite_is_named_and_changes_nothing(
    tiny: Recipe, monkeypatch: pytest.MonkeyPatch, term: str
) -> None:
    run, batch = start(tiny)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    monkeypatch.setattr(Objectives, "forward", poisoned(term))
    with pytest.raises(FloatingPointError, match=f"^{term} is not finite at step 8 .*{term}=nan"):
        loop.train_step(run, batch, 7)
    assert_same_tensors(before, run.model.state_dict())


def test_a_gradient_that_is_not_finite_is_named_and_changes_nothing(tiny: Recipe) -> None:
    run, batch = start(tiny)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.model.prompter.layer.query.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match=r"^grad_norm is not finite at step 1"):
        loop.train_step(run, batch, 0)
    assert_same_tensors(before, run.model.state_dict())


def test_a_loss_that_is_not_finite_ends_the_command_with_1(
    project: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Objectives, "forward", poisoned("grounding"))
    assert cli.main(["train", "my_run:tiny"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("open-cloc train: grounding is not finite at step 1 (")
    assert error.count("\n") == 1


class Numbered:
    """So many scenes that their order is computed; writes down which are read."""

    read: ClassVar[list[int]] = []

    def __init__(self, path: str) -> None:
        self.scenes = open_reader(SCENES)

    def __len__(self) -> int:
        return 200_000

    def __getitem__(self, index: int) -> RegionSample:
        self.read.append(index)
        return self.scenes[index % len(self.scenes)]


def test_a_run_keeps_to_the_order_that_it_began_with(tiny: Recipe, tmp_path: Path) -> None:
    """Version 0.1 wrote down each epoch's order, and did not say so in its checkpoints."""
    data = replace(tiny.data, train=(f"{__name__}:Numbered:x",), loader=replace(tiny.data.loader, workers=0))
    recipe = with_run(replace(tiny, data=data), save_steps=2, keep=9)
    Numbered.read.clear()
    train(recipe)
    whole = [*Numbered.read]
    computed = permutation([1, data.loader.seed, 0], 200_000)
    assert whole == [computed[place] for place in range(len(whole))]
    first = Path(recipe.run.output) / "checkpoints" / "step_00000002"
    state = json.loads((first / checkpoint.STATE_NAME).read_text())
    seen = state["step"] * state["global_batch_size"]
    written = np.random.default_rng([1, data.loader.seed, 0]).permutation(200_000).tolist()
    for name, changes, expected in (
        ("again", {}, whole),
        ("of_0_1", {"order": None, "tried": None, "bad": None}, written),
    ):
        old = tmp_path / f"{name}_checkpoint"
        shutil.copytree(first, old)
        kept = {key: value for key, value in (state | changes).items() if value is not None}
        (old / checkpoint.STATE_NAME).write_text(json.dumps(kept))
        Numbered.read.clear()
        train(with_run(recipe, output=str(tmp_path / name)), resume=str(old))
        assert Numbered.read == expected[seen : len(whole)]
        last = checkpoint.list_checkpoints(tmp_path / name / "checkpoints")[-1]
        assert checkpoint.read_progress(last).order == (1 if name == "of_0_1" else 2)
