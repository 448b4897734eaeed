"""`open-cloc demo` from end to end, with too few scenes to be convincing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from open_cloc.cli import demo
from open_cloc.cli import main as cli
from open_cloc.cli.demo import Options, check_output_folder, remove_earlier, train_both
from open_cloc.errors import RunError
from open_cloc.files import locked

ROWS = {
    "region accuracy, seen pairs": {"CLIP crop", "CLIP RoIAlign", "CLOC Prompter"},
    "region accuracy, held-out pairs": {"CLIP crop", "CLIP RoIAlign", "CLOC Prompter"},
    "image-to-text recall@1": {"CLIP", "CLOC"},
    "text-to-image recall@1": {"CLIP", "CLOC"},
    "grounding accuracy at IoU 0.5": {"CLOC box head", "CLOC ranked boxes"},
}


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Both models train in processes of their own, as on the command line."""
    monkeypatch.setenv("TQDM_DISABLE", "1")
    output = tmp_path / "demo"
    argv = ["demo", "--samples", "256", "--scenes", "20", "--output", str(output)]
    assert cli.main(argv) == 0
    printed = capfd.readouterr().out
    report = json.loads((output / "demo.json").read_text())
    assert report["scenes_seen"] == 256
    for metric, methods in ROWS.items():
        assert methods <= set(report["results"][metric])
        assert metric in printed
    for values in report["results"].values():
        assert all(np.isfinite(value) and -1 <= value <= 1 for value in values.values())
    picture = np.asarray(Image.open(output / "demo.png"))
    assert picture.ndim == 3
    assert picture.std() > 10
    recipes = [json.loads((output / name / "recipe.json").read_text()) for name in ("clip", "cloc")]
    assert [recipe["data"]["loader"].pop("num_regions") > 0 for recipe in recipes] == [False, True]
    for recipe in recipes:
        del recipe["name"], recipe["run"]["output"]
    assert recipes[0] == recipes[1]  # nothing else differs
    assert cli.main(argv) == 2
    assert "is not empty: give --overwrite, or another --output" in capfd.readouterr().err


def made(output: Path) -> None:
    """What a demo leaves that was stopped while it trained."""
    for name in ("clip", "cloc"):
        (output / name / "checkpoints").mkdir(parents=True)
        (output / name / "recipe.json").write_text(json.dumps({"name": f"scenes-{name}"}))


def test_overwriting_removes_an_earlier_demo(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "demo.png").touch()
    check_output_folder(Options(tmp_path, overwrite=True))
    remove_earlier(tmp_path)
    assert not list(tmp_path.iterdir())


def someone_elses(output: Path, what: str) -> None:
    """A demo's output, and something else."""
    made(output)
    if what == "a file":
        (output / "thesis.txt").touch()
    elif what == "a picture of that name":
        shutil.rmtree(output / "cloc")
        (output / "demo.png").touch()
    elif what == "a folder of that name":
        (output / "cloc" / "recipe.json").write_text('{"name": "mine"}')
    elif what == "a file in a run":
        (output / "clip" / "notes.txt").touch()
    elif what == "a link":
        (output / "clip").rename(output.parent / "theirs")
        (output / "clip").symlink_to(output.parent / "theirs")


@pytest.mark.parametrize(
    "what", ["a file", "a picture of that name", "a folder of that name", "a file in a run", "a link"]
)
def test_a_folder_that_holds_anything_else_stays_as_it_is(
    tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "demo"
    someone_elses(output, what)
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["demo", "--output", str(output), "--overwrite"]) == 2
    assert "which no demo has made: give another --output" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_demo_at_work_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path)
    with locked(tmp_path):
        assert cli.main(["demo", "--output", str(tmp_path), "--overwrite"]) == 2
        assert (tmp_path / "clip" / "recipe.json").exists()
    assert "another process works in" in capsys.readouterr().err


def test_the_trainings_leave_ctrl_c_to_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal sends it to all of them, and one word is enough."""
    ignored: list[object] = []

    def start(*args: object, **kwargs: object) -> None:
        ignored.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(demo.subprocess, "Popen", start)
    demo._start_training("clip", 0, Options(tmp_path), 8, 1)
    assert ignored == [signal.SIG_IGN]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("error", [KeyboardInterrupt, None])
def test_both_trainings_end_with_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException] | None
) -> None:
    """When it is stopped, and when one of them fails."""
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, *rest: object) -> subprocess.Popen[bytes]:
        fails = name == "cloc" and error is None
        argv = ["false"] if fails else ["sh", "-c", "trap '' TERM; sleep 60 & wait"]
        started.append(subprocess.Popen(argv, start_new_session=True))
        return started[-1]

    def sleep(seconds: float) -> None:
        if error is not None and len(started) == 2:
            raise error

    monkeypatch.setattr(demo, "_start_training", start)
    monkeypatch.setattr(demo.time, "sleep", sleep)
    with pytest.raises(error or RunError):
        train_both(Options(tmp_path), 8, 1)
    assert all(process.poll() is not None for process in started)
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the shell's sleep
