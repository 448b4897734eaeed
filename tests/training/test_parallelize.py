"""Several ranks: the same training as one process, exact resume, and what happens when a rank goes wrong.

Ranks are forked from this process, which has torch loaded already, and meet through gloo.
"""

from __future__ import annotations

import errno
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_recipes import SCENES, with_loader, with_run
from torch import Tensor
from torch.distributed import HashStore
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from open_cloc.cli import main as cli
from open_cloc.data.collate import LoaderConfig
from open_cloc.data.readers import open_reader
from open_cloc.errors import RunError
from open_cloc.model import sharded
from open_cloc.model.cloc import CLOC
from open_cloc.model.create import ModelConfig, build_model
from open_cloc.model.prompter import PrompterConfig
from open_cloc.model.weights import read_state
from open_cloc.samples import Features, RegionSample
from open_cloc.training import checkpoint, compile, loop
from open_cloc.training import ranks as parallel
from open_cloc.training.gather import gather_with_notes
from open_cloc.training.loop import train
from open_cloc.training.parallelize import block_policy, tower_blocks
from open_cloc.training.ranks import Place, Ranks, find_place, first_host, join_ranks, rendezvous
from open_cloc.training.recipe import DataConfig, OptimConfig, Recipe, RunConfig

# What each rank would import for itself.
for name in ("open_cloc.data.scenes.glyphs", "open_cloc.model.prompts", "torch.utils.serialization"):
    importlib.import_module(name)

CLOCKS = ("images_per_s", "step_time", "data_time", "graphs")
LIMIT = 60  # seconds for ranks that must end


def make_recipe(cfg: dict[str, Any], output: Path, *, prompter: PrompterConfig | None = None) -> Recipe:
    """Five steps of eight scenes on one process."""
    cfg = {**cfg, "vision_cfg": {**cfg["vision_cfg"], "image_size": 32, "patch_size": 8}}
    prompter = prompter or PrompterConfig(readout="prompt", box_prior=True)
    return Recipe(
        name="tiny",
        model=ModelConfig(towers=cfg, prompter=prompter),
        data=DataConfig(train=(SCENES,), loader=LoaderConfig(num_regions=3, workers=0)),
        optim=OptimConfig(lr=1e-3, warmup=2, grad_clip=0.5, layer_decay=0.75),
        run=RunConfig(
            global_batch_size=8,
            samples=40,
            output=str(output),
            device="cpu",
            save_steps=5,
            log_steps=1,
            report_to=(),
            progress=False,
        ),
    )


@pytest.fixture
def tiny(tiny_model_cfg: dict[str, Any], tmp_path: Path) -> Recipe:
    """Five steps of four scenes on each of two ranks."""
    return make_recipe(tiny_model_cfg, tmp_path / "run")


def run_ranks(function: Callable[..., Any], *args: Any, size: int = 2) -> list[Any]:
    """What a function returns on each rank, or the exception that it raises there; None for a killed rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks = []
    for rank in range(size):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
        environment = {"MASTER_ADDR": "127.0.0.1"} | {k: str(v) for k, v in place.items()}
        ours, theirs = context.Pipe()
        process = context.Process(target=_be_rank, args=(environment, theirs, function, args))
        process.start()
        theirs.close()
        ranks.append((process, ours))
    answers = []
    for process, ours in ranks:
        try:
            assert ours.poll(LIMIT), "a rank hangs"
            answers.append(ours.recv())
        except EOFError:
            answers.append(None)
        finally:
            process.kill()
            process.join()
    return answers


def _be_rank(environment: dict[str, str], pipe: Connection, function: Callable[..., Any], args: Any) -> None:
    os.environ.update(environment)
    try:
        answer = function(*args)
    except BaseException as error:
        answer = error
    try:
        pipe.send(answer)
    except Exception:  # an exception that cannot be pickled
        pipe.send(RuntimeError(repr(answer)))
    pipe.close()


def log_of(folder: str | Path) -> list[dict[str, float]]:
    """The log without what depends on the clock."""
    lines = (Path(folder) / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCKS} for line in lines]


def state_of(folder: str | Path, step: int = 5) -> dict[str, Tensor]:
    return sharded.read_tensors(Path(folder) / "checkpoints" / f"step_{step:08d}")


def assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


# --- the same training ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the joined batches."""
    folder = tmp_path_factory.mktemp("one") / "run"
    cfg = {
        "embed_dim": 32,
        "vision_cfg": {"width": 64, "layers": 2, "head_width": 32},
        "text_cfg": {"width": 32, "heads": 2, "layers": 2, "context_length": 16},
    }
    train(make_recipe(cfg, folder))
    return folder


def traced_train(recipe: Recipe) -> Path:
    """With the compiler's tracer alone, as its code takes a minute to make on a CPU."""
    compile.BACKEND = "eager"
    return train(recipe)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulate": 2},
        {"parallel": "fsdp", "accumulate": 2, "grad_checkpointing": True},
        {"compile": "on", "parallel": "fsdp", "grad_checkpointing": True},
    ],
    ids=["ddp", "ddp in parts", "fsdp in parts", "fsdp compiled"],
)
def test_two_ranks_train_as_one_process(tiny: Recipe, one_process: Path, changes: dict[str, Any]) -> None:
    """With gradient clipping, layer decay, weight decay on some, and different numbers of regions."""
    made = run_ranks(traced_train, with_run(tiny, **changes))
    assert made == [Path(tiny.run.output) / "model"] * 2
    assert ('"graphs"' in (Path(tiny.run.output) / "log.jsonl").read_text()) >= ("compile" in changes)
    lines, expected = log_of(tiny.run.output), log_of(one_process)
    assert len(lines) == len(expected) == 5  # one process logs
    for line, other in zip(lines, expected):
        assert line.keys() == other.keys()
        for name in line:
            # Each rank has its own distinct texts.
            if name != "distinct_text_share":
                assert line[name] == pytest.approx(other[name], rel=2e-6, abs=1e-7), name
    weights, whole = (sharded.of_model(state_of(folder)) for folder in (tiny.run.output, one_process))
    for name, weight in whole.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-4, atol=1e-5)
    final = read_state(Path(tiny.run.output) / "model/model.safetensors")
    assert_same_bits(final, weights)
    assert (Path(tiny.run.output) / "model/README.md").is_file()


@pytest.mark.parametrize(
    "changes",
    [{}, {"parallel": "fsdp"}, {"parallel": "fsdp", "compile": "on", "grad_checkpointing": True}],
    ids=["ddp", "fsdp", "fsdp compiled"],
)
def test_two_ranks_train_adapters_as_one_process(
    tiny: Recipe, tmp_path: Path, changes: dict[str, Any]
) -> None:
    tiny = replace(tiny, optim=replace(tiny.optim, lora_rank=2))
    alone = train(with_run(tiny, samples=16, output=str(tmp_path / "alone")))
    made = run_ranks(traced_train, with_run(tiny, samples=16, **changes))
    assert made == [Path(tiny.run.output) / "model"] * 2
    weights, whole = (read_state(folder / "model.safetensors") for folder in (made[0], alone))
    assert weights.keys() == whole.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-4, atol=1e-5)


def test_gpus_gather_shards_in_bfloat16() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    policy = block_policy("bf16", gpu)
    assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)
    assert not policy.cast_forward_inputs
    for other in (block_policy("bf16", cpu), block_policy("tf32", gpu), block_policy("fp32", gpu)):
        assert (other.param_dtype, other.reduce_dtype) == (None, None)


def test_shards_train_under_autocast(tiny: Recipe) -> None:
    recipe = with_run(tiny, parallel="fsdp", precision="bf16", samples=2 * tiny.run.global_batch_size)
    assert run_ranks(train, recipe) == [Path(recipe.run.output) / "model"] * 2
    assert log_of(recipe.run.output)[-1]["skipped_steps"] == 0


def held_bytes(recipe: Recipe) -> tuple[int, int]:
    """Bytes of weights and of moments on this rank."""
    held: list[int] = []
    real = loop.train_step

    def measure(run: loop.Run, batch: Any, step: int, notes: Any) -> Any:
        losses = real(run, batch, step, notes)
        local = [getattr(p, "_local_tensor", p) for p in run.model.parameters()]
        moments = [
            getattr(value, "_local_tensor", value)
            for state in run.optimizer.state.values()
            for value in state.values()
        ]
        held[:] = [sum(t.nbytes for t in tensors) for tensors in (local, moments)]
        return losses

    loop.train_step = measure
    train(recipe)
    return held[0], held[1]


def test_fsdp_holds_half_of_everything(tiny: Recipe, tmp_path: Path) -> None:
    tiny = with_run(tiny, samples=8)
    whole = run_ranks(held_bytes, with_run(tiny, output=str(tmp_path / "ddp")))
    shards = run_ranks(held_bytes, with_run(tiny, output=str(tmp_path / "fsdp"), parallel="fsdp"))
    for rank in (0, 1):
        for held, half in zip(whole[rank], shards[rank]):
            assert half < 0.52 * held  # the step counters, and what does not divide by two, stay


@pytest.mark.parametrize(
    ("prompter", "num_regions"),
    [
        (PrompterConfig(readout="prompt", regions="roialign", box_prior=True), 3),
        (PrompterConfig(readout="mean", box_content="none"), 0),
    ],
    ids=["roialign", "no regions"],
)
def test_parameters_that_no_loss_reaches_make_nobody_wait(
    tiny: Recipe, prompter: PrompterConfig, num_regions: int
) -> None:
    recipe = replace(tiny, model=replace(tiny.model, prompter=prompter))
    recipe = with_loader(with_run(recipe, samples=16), num_regions=num_regions)
    before = build_model(recipe.model).state_dict().keys()
    assert run_ranks(train, recipe) == [Path(tiny.run.output) / "model"] * 2
    assert read_state(Path(tiny.run.output) / "model/model.safetensors").keys() == before


class CaptionsOnFirst:
    """Of each eight scenes, the first four have a caption and no region, the others no caption."""

    def __init__(self, path: str) -> None:
        self.scenes = open_reader(SCENES)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> RegionSample:
        empty: dict[str, Any] = {"regions": ()} if index % 8 < 4 else {"captions": ()}
        return replace(self.scenes[index], **empty)


def test_a_rank_without_regions_and_one_without_captions(tiny: Recipe, tmp_path: Path) -> None:
    data = replace(tiny.data, train=(f"{__name__}:CaptionsOnFirst:x",))
    recipe = with_loader(replace(with_run(tiny, samples=16), data=data), shuffle=False)
    run_ranks(train, recipe)
    train(with_run(recipe, output=str(tmp_path / "one")))
    for line, other in zip(log_of(tiny.run.output), log_of(tmp_path / "one"), strict=True):
        for name in ("image_text", "region_text", "grounding", "total", "grad_norm"):
            assert line[name] == pytest.approx(other[name], rel=1e-5), name


# --- resume ---------------------------------------------------------------------------------------


def test_resume_with_ranks_and_workers_bit_for_bit(tiny: Recipe, tmp_path: Path) -> None:
    """With dropout, in parts; then on one process: the same samples, losses up to rounding."""
    prompter = PrompterConfig(readout="prompt", box_prior=True, dropout=0.2)
    recipe = replace(tiny, model=replace(tiny.model, prompter=prompter))
    recipe = with_loader(with_run(recipe, parallel="fsdp", accumulate=2), workers=2)
    run_ranks(train, with_run(recipe, output=str(tmp_path / "whole")))
    stopped = run_ranks(stop_at_3, recipe)
    assert stopped == [Path(recipe.run.output) / "checkpoints/step_00000003"] * 2
    shutil.copytree(recipe.run.output, tmp_path / "alone")
    assert run_ranks(resume_auto, recipe) == [Path(recipe.run.output) / "model"] * 2
    assert_same_bits(state_of(recipe.run.output), state_of(tmp_path / "whole"))
    assert log_of(recipe.run.output) == log_of(tmp_path / "whole")

    alone = with_run(recipe, output=str(tmp_path / "alone"), accumulate=1)
    with pytest.raises(ValueError, match="batches of 8 over all ranks; got batches of 4"):
        train(with_run(alone, global_batch_size=4), resume="latest")
    undisturbed = keys_of_batches(with_run(alone, output=str(tmp_path / "undisturbed")), resume="")
    assert keys_of_batches(alone, resume="latest") == undisturbed[24:]
    assert len(set(undisturbed)) == 40
    assert [line["step"] for line in log_of(alone.run.output)] == [1, 2, 3, 4, 5]


def stop_at_3(recipe: Recipe) -> Path:
    return train(recipe, stop_at=3)


def resume_auto(recipe: Recipe) -> Path:
    return train(recipe, resume="auto")


def keys_of_batches(recipe: Recipe, resume: str) -> list[str]:
    """Names of the samples that a run sees."""
    keys: list[str] = []
    real = loop.train_step

    def look(run: loop.Run, batch: Any, step: int, notes: Any) -> Any:
        keys.extend(batch.keys)
        return real(run, batch, step, notes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", look)
        train(recipe, resume=resume)
    return keys


def test_a_model_in_shards_is_exported_and_probed_whole(tiny: Recipe, tmp_path: Path) -> None:
    """And a checkpoint of shards is as good as a model folder."""
    data = replace(tiny.data, probe="scenes:val,image_size=32,num_samples=8")
    recipe = replace(with_run(tiny, parallel="fsdp", samples=16, save_steps=2), data=data)
    assert run_ranks(train, recipe) == [Path(tiny.run.output) / "model"] * 2
    for name in ("probe_before.json", "probe_after.json", "start/model.safetensors"):
        assert (Path(tiny.run.output) / name).is_file()
    exported, shards = (
        CLOC.from_pretrained(Path(tiny.run.output) / name) for name in ("model", "checkpoints/step_00000002")
    )
    assert_same_bits(exported.state_dict(), shards.state_dict())


# --- what goes wrong ------------------------------------------------------------------------------


class TermsOne:
    """Sends this process SIGTERM at one sample."""

    def __init__(self, path: str) -> None:
        self.scenes = open_reader(SCENES)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> RegionSample:
        if index == 13:  # the second rank's second batch
            os.kill(os.getpid(), signal.SIGTERM)
        return self.scenes[index]


def test_sigterm_on_one_rank_stops_all_at_the_same_step(tiny: Recipe, tmp_path: Path) -> None:
    data = replace(tiny.data, train=(f"{__name__}:TermsOne:x",))
    recipe = with_loader(with_run(replace(tiny, data=data), save_steps=0), shuffle=False)
    first, second = run_ranks(train, recipe)
    assert first == second
    step = checkpoint.read_progress(first).step
    assert 2 <= step <= 3
    run_ranks(resume_auto, with_run(with_loader(tiny, shuffle=False), save_steps=5))
    run_ranks(train, with_run(with_loader(tiny, shuffle=False), output=str(tmp_path / "whole")))
    assert_same_bits(state_of(tiny.run.output), state_of(tmp_path / "whole"))


def kill_in_save(recipe: Recipe, step: int) -> None:
    """Die by SIGKILL when the state of a step has been written and the folder not yet named."""
    real = FileSystemWriter.finish

    def finish(writer: FileSystemWriter, *args: Any, **kwargs: Any) -> None:
        if f"step_{step:08d}" in str(writer.path):
            os.kill(os.getpid(), signal.SIGKILL)
        real(writer, *args, **kwargs)

    FileSystemWriter.finish = finish  # type: ignore[method-assign]
    train(recipe, resume="auto")


def test_kill_9_during_a_save_leaves_the_last_whole(tiny: Recipe, tmp_path: Path) -> None:
    recipe = with_run(tiny, save_steps=2)
    run_ranks(train, with_run(recipe, output=str(tmp_path / "whole"), save_steps=5))
    answers = run_ranks(kill_in_save, recipe, 4)
    assert answers[0] is None  # killed
    folder = Path(recipe.run.output) / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [".writing_step_00000004", "step_00000002"]
    run_ranks(resume_auto, with_run(recipe, save_steps=5))
    assert_same_bits(state_of(recipe.run.output), state_of(tmp_path / "whole"))


def term_in_save(recipe: Recipe) -> Path:
    """Stop, and get a further SIGTERM while the last checkpoint is being written."""
    real = FileSystemWriter.finish

    def finish(writer: FileSystemWriter, *args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        real(writer, *args, **kwargs)

    FileSystemWriter.finish = finish  # type: ignore[method-assign]
    return train(recipe, stop_at=3)


def test_sigterm_again_during_the_last_save_loses_nothing(tiny: Recipe) -> None:
    """torchrun passes on the SIGTERM that a scheduler has sent to each process already."""
    made = Path(tiny.run.output) / "checkpoints/step_00000003"
    assert run_ranks(term_in_save, tiny) == [made] * 2
    assert checkpoint.read_progress(made).step == 3


def write_elsewhere(recipe: Recipe) -> Path:
    """The second rank's files go to a disk that the first one does not see."""
    real = checkpoint.dcp.FileSystemWriter.write_data

    def write_data(writer: FileSystemWriter, *args: Any, **kwargs: Any) -> Any:
        written = real(writer, *args, **kwargs)
        if os.environ["RANK"] == "1":
            for path in Path(writer.path).glob("__1_*"):
                path.unlink()
        return written

    FileSystemWriter.write_data = write_data  # type: ignore[method-assign]
    return train(recipe)


def test_a_run_folder_that_ranks_do_not_share_is_refused(tiny: Recipe) -> None:
    first, second = run_ranks(write_elsewhere, with_run(tiny, save_steps=1, parallel="fsdp"))
    assert isinstance(first, ValueError)
    assert "step_00000001 cannot be written: __1_0.distcp is not where the first rank looks" in str(first)
    assert "the run folder must lie on storage that all ranks share; there is none before it" in str(first)
    assert isinstance(second, SystemExit)
    assert second.code == 2


def fill_second_disk(recipe: Recipe) -> Path:
    """The disk of the second rank is full from the second checkpoint on."""
    real = FileSystemWriter.write_data

    def write_data(writer: FileSystemWriter, *args: Any, **kwargs: Any) -> Any:
        if os.environ["RANK"] == "1" and "step_00000002" not in str(writer.path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(writer, *args, **kwargs)

    FileSystemWriter.write_data = write_data  # type: ignore[method-assign]
    return train(recipe)


def test_a_full_disk_on_one_rank_ends_all_with_one_sentence(tiny: Recipe) -> None:
    recipe = with_run(tiny, save_steps=2, samples=80)
    for answer in run_ranks(fill_second_disk, recipe):
        assert isinstance(answer, RunError)
        assert "step_00000004 cannot be written: No space left on device (rank 1); " in str(answer)
        assert str(answer).endswith(
            "the last whole one is " + str(Path(recipe.run.output) / "checkpoints/step_00000002")
        )
    folder = Path(recipe.run.output) / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step_00000002"]
    assert len(log_of(recipe.run.output)) < 10


def test_a_used_folder_is_refused_once(tiny: Recipe) -> None:
    Path(tiny.run.output).mkdir()
    (Path(tiny.run.output) / "thesis.txt").write_text("all of it")
    first, second = run_ranks(train, tiny)
    assert isinstance(first, FileExistsError)
    assert isinstance(second, SystemExit)
    assert second.code == 2
    assert [path.name for path in Path(tiny.run.output).iterdir()] == ["thesis.txt"]


class BrokenForSecond:
    """Every n-th sample of the second rank is broken."""

    def __init__(self, path: str) -> None:
        self.scenes, self.every = open_reader(SCENES), int(path)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> RegionSample:
        sample = self.scenes[index]
        is_broken = os.environ["RANK"] == "1" and index % self.every == 0
        return replace(sample, image=b"not a picture") if is_broken else sample


def with_broken(recipe: Recipe, every: int, **changes: Any) -> Recipe:
    data = replace(recipe.data, train=(f"{__name__}:BrokenForSecond:{every}",))
    return with_loader(replace(recipe, data=data), **changes)


def test_bad_samples_alone_on_one_rank_end_the_run(tiny: Recipe) -> None:
    answers = run_ranks(train, with_broken(tiny, every=1))
    assert isinstance(answers[1], ValueError)
    assert "samples are bad (undecodable picture: " in str(answers[1])
    assert isinstance(answers[0], RuntimeError)  # its partner has left


def test_too_many_bad_samples_of_all_ranks_end_the_run(tiny: Recipe) -> None:
    first, second = run_ranks(train, with_broken(tiny, every=2, max_bad_fraction=0.01))
    assert isinstance(first, ValueError)
    assert "samples are bad (undecodable picture: " in str(first)
    assert isinstance(second, SystemExit)  # one message is enough
    assert second.code == 2


def test_bad_samples_are_counted_over_ranks_and_over_a_resume(tiny: Recipe, tmp_path: Path) -> None:
    recipe = with_run(with_broken(tiny, every=4, max_bad_fraction=0.5), save_steps=3)
    run_ranks(train, recipe)
    first = Path(recipe.run.output) / "checkpoints"
    progress = [checkpoint.read_progress(path) for path in checkpoint.list_checkpoints(first)]
    logged = {line["step"]: line["bad_samples"] for line in log_of(recipe.run.output)}
    assert all(own.bad == logged[own.step] > 0 for own in progress)
    assert all(own.tried >= own.step * own.global_batch_size for own in progress)
    resumed = with_run(recipe, output=str(tmp_path / "resumed"))
    run_ranks(train, resumed, str(checkpoint.list_checkpoints(first)[0]))
    again = {line["step"]: line["bad_samples"] for line in log_of(resumed.run.output)}
    assert again == {step: bad for step, bad in logged.items() if step > progress[0].step}


TINY_MODULE = """
import json, pathlib
from open_cloc.config import from_dict
from open_cloc.training.recipe import Recipe


def tiny():
    \"\"\"Test.\"\"\"
    return from_dict(Recipe, json.loads(pathlib.Path("tiny.json").read_text()))
"""


class DyingScenes:
    """Scenes of which one kills the process that reads it, once."""

    def __init__(self, died: Path) -> None:
        self.scenes = open_reader("scenes:train,image_size=32,num_samples=1000")
        self.died = died

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> RegionSample:
        if index == 29 and not self.died.exists():  # the fourth batch of the second rank
            self.died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.scenes[index]


def test_a_rank_that_dies_is_started_again_and_nothing_is_lost(tiny: Recipe, tmp_path: Path) -> None:
    """By torchrun's own launcher, with forks of this process instead of four that import torch."""
    recipe = with_run(with_loader(tiny, shuffle=False), save_steps=2)
    whole = with_run(recipe, output=str(tmp_path / "whole"))
    run_ranks(train, whole)
    died = tmp_path / "died"
    config = LaunchConfig(
        1, 1, 2, max_restarts=1, start_method="fork", rdzv_backend="c10d", rdzv_endpoint="localhost:0"
    )
    made = elastic_launch(config, train)(recipe, "auto", DyingScenes(died))
    assert died.is_file()
    assert made == {rank: Path(recipe.run.output) / "model" for rank in range(2)}
    final = [read_state(Path(r.run.output) / "model/model.safetensors") for r in (recipe, whole)]
    assert_same_bits(*final)
    assert log_of(recipe.run.output) == log_of(whole.run.output)


# --- where a process stands -----------------------------------------------------------------------


def test_places() -> None:
    assert find_place({}) == (0, 1, 0)
    assert find_place({"WORLD_SIZE": "1"}) == (0, 1, 0)
    assert find_place({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == (5, 8, 1)
    step = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}
    assert find_place(step) == (5, 8, 1)
    assert find_place({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) == (0, 1, 0)  # a batch script, without srun
    torchrun = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    assert find_place(step | torchrun) == (1, 2, 0)
    with pytest.raises(ValueError, match="WORLD_SIZE=2 without RANK"):
        find_place({"WORLD_SIZE": "2"})


def test_each_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert parallel._own_device("cuda", Place(3, 4, 1)) == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="rank 2 has no GPU of its own: local rank 2, 2 GPUs"):
        parallel._own_device("cuda", Place(2, 4, 2))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="rank 1 has no GPU of its own: local rank 1, 1 GPUs"):
        parallel._own_device("cuda", Place(1, 2, 1))
    monkeypatch.setenv("SLURM_GPUS_PER_TASK", "1")
    assert parallel._own_device("cuda", Place(1, 2, 1)) == torch.device("cuda", 0)
    assert parallel._own_device("cpu", Place(1, 2, 1)) == torch.device("cpu")


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ("node07", "node07"),
        ("node[07-12,20],other", "node07"),
        ("gpu-a[3]", "gpu-a3"),
        ("rack1-n[001,004]-ib", "rack1-n001-ib"),
        ("one,two[1-3]", "one"),
        ("", ""),
    ],
)
def test_first_host(hosts: str, expected: str) -> None:
    assert first_host(hosts) == expected


def test_rendezvous() -> None:
    assert rendezvous({"MASTER_ADDR": "a", "MASTER_PORT": "7"}) == ("a", 7)
    slurm = {"SLURM_STEP_NODELIST": "n[3-4]", "SLURM_JOB_ID": "123456"}
    assert rendezvous(slurm) == ("n3", 15_000 + 123_456 % 20_000)
    with pytest.raises(ValueError, match="MASTER_ADDR is not set"):
        rendezvous({})


def test_every_tower_block_is_sharded_by_itself(tiny: Recipe, text_tower: Path) -> None:
    assert len(tower_blocks(build_model(tiny.model))) == 4  # two layers of each tower
    for name, blocks in (("test_vit", 6), ("cloc_resnet10_s8", 4)):
        spec = f"timm:{name},text={text_tower},embed_dim=24,context_length=16"
        model = build_model(ModelConfig(spec, image_size=32))
        assert len(tower_blocks(model)) == blocks + 2, name


def agree(flags: list[list[bool]]) -> list[Any]:
    with join_ranks("cpu") as ranks:
        notes = torch.tensor([*map(int, flags[ranks.rank]), 10**12 + ranks.rank, 5])
        features = Features(caption_mask=torch.tensor([True, ranks.rank == 0]))
        told = [gather_with_notes(features, paths, notes)[1].tolist() for paths in ((), ("caption_mask",))]
        return [*told, ranks.sum([1.5, ranks.rank]), ranks.gather(ranks.rank)]


def test_ranks_agree() -> None:
    notes = [2, 0, 1, 2 * 10**12 + 1, 10]
    expected = [notes, notes, [3.0, 1.0], [0, 1]]
    assert run_ranks(agree, [[True, False, False], [True, False, True]]) == [expected, expected]
    alone = Ranks(0, 1, torch.device("cpu"))
    assert (alone.sum([2.5]), alone.gather("x")) == ([2.5], ["x"])


def agree_after_restarts() -> list[float]:
    """Machines count restarts differently when one of them is replaced."""
    os.environ["TORCHELASTIC_RESTART_COUNT"] = os.environ["RANK"]
    with join_ranks("cpu") as ranks:
        return ranks.sum([1.0])


def test_ranks_that_count_restarts_differently_meet() -> None:
    assert run_ranks(agree_after_restarts) == [[2.0], [2.0]]


def test_what_dead_ranks_left_in_the_store_is_not_found() -> None:
    store, starts = HashStore(), []
    for _ in range(3):
        with ThreadPoolExecutor(3) as threads:
            parts = list(threads.map(lambda rank: parallel._own_part(store, rank, 3), range(3)))
        parts[1].set("address", "here")
        assert all(part.check(["address"]) for part in parts)
        starts.append(parts[2])
        store.set("name_2", "dead")  # a rank that died before it heard
    starts[0].set("left", "behind")
    assert not starts[1].check(["left"])


# --- verify-resume --------------------------------------------------------------------------------


class Changing:
    """Scenes in an order that the process's past decides."""

    def __init__(self, path: str) -> None:
        self.scenes = open_reader(SCENES)
        self.calls = 0

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> RegionSample:
        self.calls += 1
        return self.scenes[(index + self.calls // 13) % 1000]


def test_verify_resume(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "tiny.json").write_text(json.dumps(asdict(with_run(tiny, samples=80))))
    (tmp_path / "verified.py").write_text(TINY_MODULE)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert cli.main(["train", "verified:tiny", "--verify-resume"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("resume is exact: 6 steps == 3 + save + load + 3, bit for bit (")
    assert out.count("\n") == 1
    argv = ["train", "verified:tiny", "--verify-resume", "--data.train", f"{__name__}:Changing:x"]
    assert cli.main(argv) == 1
    out = capsys.readouterr().out
    assert out.startswith("resume is not exact: ")
    assert "tensors differ, such as model." in out
    assert cli.main(["train", "verified:tiny", "--verify-resume", "--run.samples", "4"]) == 2
    assert "at least two batches to verify resuming; got 4" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == before
    sys.modules.pop("verified")


def verify(path: str) -> int:
    os.chdir(path)
    sys.path.append(path)
    return cli.main(["train", "verified:tiny", "--verify-resume", "--run.parallel", "fsdp"])


def test_verify_resume_on_two_ranks(tiny: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.json").write_text(json.dumps(asdict(with_loader(tiny, workers=1))))
    (tmp_path / "verified.py").write_text(TINY_MODULE)
    assert run_ranks(verify, str(tmp_path)) == [0, 0]
    assert capfd.readouterr().out.count("resume is exact: 5 steps == 3 + save + load + 2") == 1
