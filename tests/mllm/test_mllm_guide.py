"""The guide's commands and Python run, one behind the other, on models that take no time."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from open_cloc.cli import main as cli
from tests.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "guides" / "mllm.md").read_text(encoding="utf-8")
QUICK = [
    *("--small.layers", "1", "--small.width", "16", "--small.heads", "2"),
    *("--teach.steps", "1", "--teach.pictures", "1", "--no-progress"),
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, flags=re.DOTALL | re.MULTILINE)


def test_the_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    for name in ("clip", "cloc"):
        tiny_model().save_pretrained(tmp_path / "runs" / "demo" / name / "model")
    teach, other, ask, compare = (shlex.split(block.replace("\\\n", " "))[1:] for block in blocks("sh"))
    few = "scenes:train,num_samples=3"
    assert cli.main([*teach, "--data", few, *QUICK]) == 0
    with_own = " ".join(other).replace("--weights PATH", "--weights runs/demo/cloc/model")
    with_own = with_own.replace("--lm PATH", "--lm runs/mllm/lm").replace("coco:train.json", few)
    with_own = with_own.replace("--output runs/mllm", "--output runs/own")
    assert cli.main([*with_own.split(), *QUICK, "--teach.projector-steps", "1"]) == 0
    assert cli.main(ask) == 0
    assert (
        cli.main([*compare, "--train", few, "--test", "scenes:val,num_samples=2", "--seeds", "0", *QUICK])
        == 0
    )
    assert (tmp_path / "compare.json").is_file()
    names: dict = {}
    for block in blocks("python"):
        exec(compile(block, "mllm.md", "exec", dont_inherit=True), names)
    assert names["reply"].text in capsys.readouterr().out
    assert names["model"].config.bins == 100
