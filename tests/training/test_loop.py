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
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tiny_recipes import (
    SCENES,
    assert_same_run,
    assert_same_tensors,
    joined,
    log_of,
    losses_of,
    start,
    with_loader,
    with_run,
)
from torch import Tensor

from benchmarks.gpu.watched import Watched
from open_cloc.cli import main as cli
from open_cloc.data.permutation import permutation
from open_cloc.data.readers import open_reader
from open_cloc.objectives import Objectives
from open_cloc.samples import RegionSample
from open_cloc.training import checkpoint, loop
from open_cloc.training import watch as watching
from open_cloc.training.loop import train
from open_cloc.training.recipe import Recipe
from open_cloc.training.watch import NOTHING_TOLD, Said, Watch


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
    watch = Watch(skipped=0, most_skipped=0)
    with pytest.raises(FloatingPointError, match=f"^{term} is not finite at step 8 .*{term}=nan"):
        watch.put(8, loop.train_step(run, batch, 7))
    assert_same_tensors(before, run.model.state_dict())


@pytest.mark.parametrize("timm_model", ["", "test_efficientnet"])
def test_a_gradient_that_is_not_finite_changes_nothing(
    tiny: Recipe, text_tower: Path, timm_model: str
) -> None:
    """Neither weights nor moments, nor how many steps AdamW counts, nor statistics of batch norms."""
    run, batch = start(joined(tiny, timm_model, text_tower) if timm_model else tiny)
    loop.train_step(run, batch, 0)
    before = {name: value.clone() for name, value in checkpoint.state_tensors(run.state).items()}
    assert any("running_var" in name for name in before) is bool(timm_model)
    hook = run.model.prompter.layer.query.weight.register_hook(lambda gradient: gradient * float("inf"))
    watch = Watch(skipped=0, most_skipped=1)
    watch.put(2, loop.train_step(run, batch, 1))
    assert (watch.skipped, watch.values["grad_norm"]) == (1, float("inf"))
    assert_same_tensors(before, checkpoint.state_tensors(run.state))
    hook.remove()
    watch.put(3, loop.train_step(run, batch, 2))
    after = checkpoint.state_tensors(run.state)
    for name in ("model.clip.logit_scale", "optimizer.clip.logit_scale.step"):
        assert not torch.equal(before[name], after[name])
    assert watch.skipped == 1


def once_poisoned(at: int) -> Callable[..., dict[str, Tensor]]:
    """Losses of which the call of this number, from 1, is not finite."""
    calls = count(1)

    def losses(objectives: Objectives, features: Any) -> dict[str, Tensor]:
        made = compute(objectives, features)
        if next(calls) == at:
            made["total"] = made["total"] * float("nan")
        return made

    compute = Objectives.forward
    return losses


def test_one_poisoned_batch_does_not_end_a_run(
    tiny: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = with_run(tiny, save_steps=3, keep=9, log_steps=1)
    monkeypatch.setattr(Objectives, "forward", once_poisoned(2))
    train(recipe)
    assert "total is not finite at step 2 (" in caplog.text
    log = log_of(recipe.run.output)
    assert [line["skipped_steps"] for line in log] == [0, 1, 1, 1, 1, 1]
    assert "total" not in log[1]  # JSON knows no nan
    assert log[1]["image_text"] > 0
    checkpoints = Path(recipe.run.output) / "checkpoints"
    first = checkpoint.read_progress(checkpoints / "step_00000003")
    assert first.skipped == 1
    resumed = with_run(recipe, output=str(tmp_path / "resumed"))
    train(resumed, resume=str(checkpoints / "step_00000003"))  # the losses are good from here on
    assert_same_run(recipe.run.output, resumed.run.output)
    none_left = with_run(recipe, output=str(tmp_path / "none"), max_skipped_steps=1)
    monkeypatch.setattr(Objectives, "forward", once_poisoned(1))
    with pytest.raises(FloatingPointError, match=r"at step 4 .* 2 of 4 steps changed nothing"):
        train(none_left, resume=str(checkpoints / "step_00000003"))


class Event:
    """A copy that has come."""

    def synchronize(self) -> None: ...


def test_what_comes_from_a_gpu_is_read_a_step_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def said(loss: float, asked: int = 0) -> Said:
        return Said({"total": torch.tensor(loss)}, torch.tensor([asked, 0, 0, 4, 0]))

    class FromGpu(watching._Coming):
        def __init__(self, step: int, said: Said) -> None:
            super().__init__(step, said)
            self.copied: Any = Event()

    monkeypatch.setattr(watching, "_Coming", FromGpu)
    watch = Watch(skipped=0, most_skipped=5)
    watch.put(1, said(1.0, asked=1))
    assert (watch.values, watch.notes) == ({}, NOTHING_TOLD)
    watch.put(2, said(float("nan")))
    assert (watch.values, watch.notes.asked, watch.skipped) == ({"total": 1.0}, 1, 0)
    watch.settle()
    assert (watch.notes.asked, watch.notes.tried, watch.skipped) == (0, 4, 1)


def test_a_step_waits_nowhere_for_the_device(tiny: Recipe) -> None:
    run, batch = start(with_run(tiny, precision="bf16"))
    loop.train_step(run, batch, 0)
    with Watched() as watched:
        loop.train_step(run, batch, 1)
    assert len(watched.names) > 500
    assert watched.waits == []


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
