"""The command line: verbs, exit codes, and one sentence for everything that a user can get wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import open_cloc
from open_cloc.cli import main as cli
from open_cloc.errors import NotFiniteError, UserError
from open_cloc.model.create import ModelConfig, build_model

HEAVY = ("torch", "numpy", "transformers", "open_clip", "tyro", "matplotlib")


# --- verbs ----------------------------------------------------------------------------------------


def test_the_command_itself_loads_nothing_heavy() -> None:
    code = (
        "import sys, open_cloc, open_cloc.cli.main as c\n"
        "codes = [c.main(a) for a in (['--help'], [], ['nonsense'])]\n"
        f"print(codes, [m for m in {HEAVY} if m in sys.modules])"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.splitlines()[-1] == "[0, 2, 2] []"
    assert made.stderr == f"open-cloc: unknown verb 'nonsense'; expected one of {', '.join(cli.VERBS)}\n"


def test_exit_codes_reach_the_shell() -> None:
    made = subprocess.run([sys.executable, "-m", "open_cloc.cli", "nonsense"], capture_output=True)
    assert made.returncode == 2


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-h"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {verb} " in listed and text in listed for verb, (_, text) in cli.VERBS.items())


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_its_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = cli.main([verb, "--help"])
    except SystemExit as end:  # tyro and argparse leave that way
        code = end.code
    assert code == 0
    assert f"usage: open-cloc {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [
        ["eval"],
        ["eval", "grounding", "--nonsense", "1"],
        ["predict", "a.png"],
        ["data"],
        ["data", "paint"],
        ["interpolate", "a"],
        ["demo", "--scenes", "many"],
        ["doctor", "now"],
        ["train", "scenes-cloc", "--nonsense", "1"],
    ],
)
def test_wrong_options_end_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    assert end.value.code == 2
    assert capsys.readouterr().err


def _fake_verb(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def run(argv: list[str]) -> int:
        assert argv == ["--option"]
        raise error

    monkeypatch.setattr(cli, "VERBS", {"fake": ("fake_verb:main", "")})
    monkeypatch.setitem(sys.modules, "fake_verb", SimpleNamespace(main=run))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("bad\n  thing"), 2), (NotFiniteError("bad thing"), 1)]
)
def test_user_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    _fake_verb(monkeypatch, error)
    assert cli.main(["fake", "--option"]) == code
    assert capsys.readouterr().err == "open-cloc fake: bad thing\n"
    with pytest.raises(type(error)):
        cli.main(["--debug", "fake", "--option"])


@pytest.mark.parametrize(
    "error", [ValueError("of numpy"), FileNotFoundError("x"), ImportError("y"), KeyError(1)]
)
def test_defects_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """What a library raises, or our own code by mistake, is not the user's to mend."""
    _fake_verb(monkeypatch, error)
    with pytest.raises(type(error)):
        cli.main(["fake", "--option"])


def test_a_verb_that_cannot_be_imported_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "VERBS", {"fake": ("open_cloc.cli.no_such_verb:main", "")})
    with pytest.raises(ModuleNotFoundError):
        cli.main(["fake"])


def test_a_reader_that_leaves_early_is_no_error() -> None:
    """As `open-cloc doctor | head -1`: what is left is not written, and nobody complains."""
    code = (
        "import sys, types\n"
        "from open_cloc.cli import main as c\n"
        "def main(argv):\n    print('x' * 10**6)\n    return 0\n"
        "sys.modules['fake_verb'] = types.SimpleNamespace(main=main)\n"
        "c.VERBS['fake'] = ('fake_verb:main', '')\n"
        "sys.exit(c.main(sys.argv[1:]))"
    )
    for verb in ("fake", "--help"):
        reading, writing = os.pipe()
        os.close(reading)
        made = subprocess.run([sys.executable, "-c", code, verb], stdout=writing, stderr=subprocess.PIPE)
        os.close(writing)
        assert (made.returncode, made.stderr) == (0, b"")


def test_a_broken_pipe_elsewhere_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as that of a worker process: our output is still read."""
    _fake_verb(monkeypatch, BrokenPipeError("a worker has died"))
    with pytest.raises(BrokenPipeError):
        cli.main(["fake", "--option"])


# --- bad input ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a picture of 50 x 90, and many ways to be wrong."""
    path = tmp_path_factory.mktemp("cli")
    cfg = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 1, "head_width": 32},
        "text_cfg": {"width": 32, "heads": 2, "layers": 1, "context_length": 16},
    }
    build_model(ModelConfig(towers=cfg)).save_pretrained(path / "model")
    build_model(ModelConfig(towers=cfg | {"embed_dim": 16})).save_pretrained(path / "other")
    (path / "other" / "config.json").write_text((path / "model" / "config.json").read_text())
    (path / "no_config").mkdir()
    Image.fromarray(np.zeros((50, 90, 3), np.uint8)).save(path / "a.png")
    (path / "text.png").write_text("not a picture")
    (path / "cut.png").write_bytes((path / "a.png").read_bytes()[:60])
    _write_coco(path / "good.json")
    _write_coco(path / "category.json", category_id=9)
    _write_coco(path / "outside.json", bbox=[0, 0, 500, 20])
    _write_coco(path / "inverted.json", bbox=[40, 10, -20, 5])
    _write_coco(path / "three.json", bbox=[1, 2, 3])
    _write_coco(path / "missing.json", file_name="nowhere.png")
    _write_coco(path / "unreadable.json", file_name="text.png")
    (path / "list.json").write_text("[1, 2]")
    (path / "cut.json").write_text('{"images": [')
    (path / "empty.txt").write_text("\n")
    _write_broken_tar(path / "shards")
    return path


def _write_coco(path: Path, **changes: Any) -> None:
    picture = {"id": 1, "file_name": "a.png", "height": 50, "width": 90}
    region = {"id": 7, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 20], "iscrowd": 0, "area": 600}
    for name, value in changes.items():
        (picture if name in picture else region)[name] = value
    content = {"images": [picture], "annotations": [region], "categories": [{"id": 1, "name": "dog"}]}
    path.write_text(json.dumps(content))


def _write_broken_tar(path: Path) -> None:
    path.mkdir()
    with tarfile.open(path / "00000.tar", "w") as tar:
        tar.add(path.parent / "a.png", "0001.png")
    whole = (path / "00000.tar").read_bytes()
    (path / "00000.tar").write_bytes(whole[:700])


PREDICT = {
    "missing image": (["nowhere.png", "--phrases", "a dog"], "nowhere.png"),
    "unreadable image": (["text.png", "--phrases", "a dog"], "text.png"),
    "image cut short": (["cut.png", "--phrases", "a dog"], "cut.png"),
    "box outside": (["a.png", "--boxes", "0,0,10,500", "--labels", "x"], "500"),
    "box inverted": (["a.png", "--boxes", "30,0,10,20", "--labels", "x"], "30"),
    "box of three": (["a.png", "--boxes", "0,0,10", "--labels", "x"], "four numbers"),
    "no labels": (["a.png", "--boxes", "0,0,10,20", "--labels"], "--labels"),
    "an empty label": (["a.png", "--boxes", "0,0,10,20", "--labels", "x", ""], "row 1"),
    "nothing asked": (["a.png"], "nothing to predict"),
    "odd output": (["a.png", "--phrases", "x", "--output", "out.txt"], "output must end in"),
    "no such device": (["a.png", "--phrases", "x", "--device", "abacus"], "abacus"),
}


@pytest.mark.parametrize("case", PREDICT)
def test_predict_refuses(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    argv, message = PREDICT[case]
    output = [] if "--output" in argv else ["--output", "out.png"]
    _refused(folder, monkeypatch, capsys, ["predict", *argv, "--weights", "model", *output], message)


EVAL = {
    "unknown task": (["nonsense", "--data", "coco:good.json"], "unknown task 'nonsense'; expected one of"),
    "unknown method": (
        ["grounding", "--data", "coco:good.json", "--method", "magic"],
        "unknown method 'magic'",
    ),
    "unknown format": (
        ["grounding", "--data", "ark:x"],
        "'ark:x' is neither an existing path nor FORMAT:PATH",
    ),
    "unknown option": (["grounding", "--data", "coco:good.json,colour=red"], "unknown option 'colour'"),
    "missing data": (["grounding", "--data", "coco:nowhere.json"], "nowhere.json"),
    "cut json": (["grounding", "--data", "coco:cut.json"], "cut.json"),
    "other json": (["grounding", "--data", "coco:list.json"], "list.json"),
    "unknown category": (["grounding", "--data", "coco:category.json"], "9"),
    "box outside": (["grounding", "--data", "coco:outside.json"], "annotation 7"),
    "box inverted": (["grounding", "--data", "coco:inverted.json"], "annotation 7"),
    "box of three": (["grounding", "--data", "coco:three.json"], "annotation 7"),
    "missing picture": (["grounding", "--data", "coco:missing.json"], "nowhere.png"),
    "unreadable picture": (["grounding", "--data", "coco:unreadable.json"], "text.png"),
    "broken tar": (["grounding", "--data", "shards:shards"], "00000.tar"),
    "no classes": (
        ["zeroshot_region_classification", "--data", "coco:good.json", "--classes", "empty.txt"],
        "file of names, one a line, is empty: empty.txt",
    ),
    "no captions": (["zeroshot-retrieval", "--data", "coco:good.json"], "caption"),
}


@pytest.mark.parametrize("case", EVAL)
def test_eval_refuses(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    argv, message = EVAL[case]
    argv = ["eval", *argv, "--weights", "model", "--output", "result.json"]
    _refused(folder, monkeypatch, capsys, argv, message)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("nowhere", "weights not found: no folder nowhere"),
        ("no_config", "no_config is not a CLOC model: it holds no config.json"),
        ("other", "weights of another architecture: other"),
        ("a.png", "weights must be a model folder"),
    ],
)
@pytest.mark.parametrize("verb", ["eval", "predict"])
def test_wrong_weights_are_refused(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    weights: str,
    message: str,
) -> None:
    question = {
        "eval": ["grounding", "--data", "coco:good.json", "--output", "result.json"],
        "predict": ["a.png", "--phrases", "a dog", "--output", "out.png"],
    }
    _refused(folder, monkeypatch, capsys, [verb, *question[verb], "--weights", weights], message)


def test_the_good_ones_are_not_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(folder)
    argv = ["eval", "grounding", "--data", "coco:good.json", "--weights", "model"]
    assert cli.main([*argv, "--output", str(tmp_path / "r.json")]) == 0
    argv = ["predict", "a.png", "--phrases", "a dog", "--weights", "model"]
    assert cli.main([*argv, "--output", str(tmp_path / "o.png")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.png", "r.json"]


def _refused(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    message: str,
) -> None:
    """One sentence, exit code 2, and the folder as it was."""
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    assert cli.main(argv) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"open-cloc {argv[0]}: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("argv", "now"),
    [
        (["train", "finetune", "--model.architecture", "ViT-B-16"], "--model.towers open_clip:NAME"),
        (["train", "scenes-cloc", "--data.loader.batch_size", "8"], "--run.global-batch-size N"),
        (["plan", "scenes-cloc", "--loss.grounding=l1_giou"], "--objectives image_text"),
        (["train", "scenes-cloc", "--run.precision", "amp_bf16"], "bf16"),
        (["label", "vesl", "a", "b", "--detect.dtype", "bfloat16"], "--detect.precision"),
    ],
)
def test_options_of_0_1_say_what_they_are_now(
    argv: list[str], now: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert now in error
    assert error.endswith("(CHANGELOG.md: Moving from 0.1)\n")
    assert error.count("\n") == 1


# --- files of the working folder ------------------------------------------------------------------

# Names of libraries: some that are there, some that others look for in vain, some of Python itself.
LIBRARIES = ("dill", "numpy", "torch", "PIL", "ray", "wandb", "kernels", "random", "select", "queue", "tyro")


@pytest.fixture
def strangers_folder(tmp_path: Path) -> Path:
    """A downloaded data set: pictures, and modules that leave a mark when they run."""
    for name in LIBRARIES:
        mark = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}, {name!r}).touch()\n"
        (tmp_path / f"{name}.py").write_text(mark + "raise ImportError('not the library')\n")
    (tmp_path / "ran").mkdir()
    Image.fromarray(np.zeros((50, 90, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a dog")
    return tmp_path


def _run_in(folder: Path, *argv: str, python: Sequence[str] = ("-m", "open_cloc.cli")) -> int:
    """A verb in a process of its own, whose Python path holds the package only."""
    path = {"PYTHONPATH": str(Path(open_cloc.__file__).parents[1])}
    made = subprocess.run(
        [sys.executable, *python, *argv], cwd=folder, env=os.environ | path, capture_output=True, text=True
    )
    assert "Traceback" not in made.stderr, made.stderr
    return made.returncode


ENTRIES = {
    "module": ("-m", "open_cloc.cli"),
    "script": ("-c", "import sys; del sys.path[0]; from open_cloc.cli.main import main; sys.exit(main())"),
}


def test_no_module_of_the_working_folder_runs_in_workers(strangers_folder: Path) -> None:
    train = ["train", "scenes-cloc", "--run.samples", "16", "--run.global-batch-size", "16"]
    train += ["--data.train", "scenes:train,num_samples=16", "--run.device", "cpu", "--run.output", "run"]
    assert _run_in(strangers_folder, *train, "--data.loader.workers", "1") == 0
    assert list((strangers_folder / "ran").iterdir()) == []


@pytest.mark.parametrize("entry", ENTRIES)
def test_no_module_of_the_working_folder_runs(strangers_folder: Path, entry: str) -> None:
    assert _run_in(strangers_folder, "data", "check", "folder:.", python=ENTRIES[entry]) == 0
    assert list((strangers_folder / "ran").iterdir()) == []


def test_a_module_that_is_named_is_found_last_in_the_working_folder(strangers_folder: Path) -> None:
    (strangers_folder / "mine.py").write_text(
        "from open_cloc.data.readers.folder import open_folder as mine\n"
    )
    assert _run_in(strangers_folder, "data", "check", "mine:mine:.") == 0
    assert list((strangers_folder / "ran").iterdir()) == []
