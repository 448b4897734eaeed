"""Checkpoints and resuming: exact, whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_recipes import (
    assert_same_run,
    assert_same_tensors,
    log_of,
    losses_of,
    with_loader,
    with_optim,
    with_run,
)
from torch import Tensor
from torch.distributed.checkpoint import FileSystemWriter

from open_cloc.cli import main as cli
from open_cloc.errors import RunError, UserError
from open_cloc.model import sharded
from open_cloc.model.cloc import CLOC
from open_cloc.model.create import ModelConfig
from open_cloc.model.interpolate import interpolate
from open_cloc.model.prompter import PrompterConfig
from open_cloc.model.weights import read_state
from open_cloc.training import accumulate, checkpoint, loop
from open_cloc.training.loop import train
from open_cloc.training.recipe import Recipe


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


def fail_second_save(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """The state of the second checkpoint is cut short by an error."""
    real, saves = FileSystemWriter.finish, []

    def finish_once(*args: Any, **kwargs: Any) -> None:
        saves.append(1)
        if len(saves) == 2:
            raise error
        real(*args, **kwargs)

    monkeypatch.setattr(FileSystemWriter, "finish", finish_once)


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
        assert cli.main(["train", "my_run:tiny"]) == 1
    error = capsys.readouterr().err
    folder = Path(project.run.output) / "checkpoints"
    assert error == (
        f"open-cloc train: checkpoint {folder}/step_00000006 cannot be written: No space left on device "
        f"(rank 0); the last whole one is {folder}/step_00000003\n"
    )
    assert [path.name for path in folder.iterdir()] == ["step_00000003"]  # nothing half-written left either
    train(project, resume="latest")
    assert_same_run(tmp_path / "whole", project.run.output)


def test_a_failed_save_stops_the_run_soon(tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_second_save(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    real = loop.train_step

    def wait_for_the_save(run: Any, batch: Any, step: int, notes: Any) -> Any:
        if step == 7:
            time.sleep(1.0)
        return real(run, batch, step, notes)

    monkeypatch.setattr(loop, "train_step", wait_for_the_save)
    with pytest.raises(RunError, match=r"step_00000006 cannot be written: .*No space left"):
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


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_all_files_of_a_run_may_be_read_by_whom_the_umask_says(
    tiny: Recipe, text_tower: Path, tmp_path: Path, mask: int
) -> None:
    """A cluster's runs are read by other users than those who train."""
    towers = ModelConfig(f"timm:test_resnet,text={text_tower},context_length=16", image_size=32)
    before = os.umask(mask)
    try:
        train(replace(with_run(tiny, samples=12, report_to=("tensorboard",)), model=towers))
    finally:
        os.umask(before)
    files = [path for path in Path(tiny.run.output).rglob("*") if path.is_file()]
    assert {"model.safetensors", ".metadata", "__0_0.distcp", "tokenizer.json"} <= {
        path.name for path in files
    }
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in files}
    assert {path: mode for path, mode in modes.items() if mode != 0o666 & ~mask} == {}


@pytest.mark.parametrize(("steps", "stays"), [(0, False), (1, True), (2, True)])
def test_a_failed_run_keeps_its_folder_from_the_first_step_on(
    tiny: Recipe, monkeypatch: pytest.MonkeyPatch, steps: int, stays: bool
) -> None:
    """Nothing has been logged or saved yet."""
    die_in_step(monkeypatch, with_run(tiny, log_steps=10, save_steps=0), steps + 1)
    assert Path(tiny.run.output).exists() == stays


def test_a_first_checkpoint_that_fails_takes_nothing_away(
    tiny: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FileSystemWriter, "finish", fail)
    with pytest.raises(RunError, match="step_00000003 cannot be written: No space left on device"):
        train(with_run(tiny, log_steps=10))
    assert (Path(tiny.run.output) / "recipe.json").is_file()
    assert list((Path(tiny.run.output) / "checkpoints").iterdir()) == []


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


def test_resume_refuses_another_reading_of_texts(tiny: Recipe) -> None:
    train(tiny, stop_at=3)
    other = replace(tiny, model=replace(tiny.model, lower_case=False))
    with pytest.raises(UserError, match=r"trained with model.lower_case True; got False"):
        train(other, resume="latest")


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
