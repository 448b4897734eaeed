"""What the README and the pages of docs/ promise is there and runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from open_cloc.cli.main import VERBS
from open_cloc.evaluation.run import TASKS
from open_cloc.model.create import ModelConfig, build_model
from open_cloc.training.recipes import RECIPES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def _commands(text: str) -> list[list[str]]:
    """Every `open-cloc ...` line of a page's shell blocks, continued lines joined, comments cut."""
    lines = "\n".join(_blocks(text, "sh")).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].split() for line in lines if line.startswith("open-cloc ")]


def test_python_block_runs(tmp_path: Path, tiny_model_cfg: dict) -> None:
    build_model(ModelConfig(towers=tiny_model_cfg)).save_pretrained(tmp_path / "model")
    (code,) = _blocks(README, "python")
    assert '"runs/demo/cloc/model"' in code
    code = code.replace("runs/demo/cloc/model", str(tmp_path / "model"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "a blue umbrella" in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_exist(page: Path) -> None:
    for words in _commands(page.read_text(encoding="utf-8")):
        assert words[1] in VERBS, " ".join(words)
        if words[2].isupper() or words[2] == "--help":  # RECIPE is a placeholder
            continue
        if words[1] == "train":
            assert words[2] in RECIPES or ":" in words[2], " ".join(words)
        if words[1] == "eval":
            assert words[2].replace("-", "_") in TASKS, " ".join(words)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w+):", makefile, flags=re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"^make (\w+)", "\n".join(_blocks(page.read_text(), "sh")), re.MULTILINE):
            assert target in targets


def test_ci_calls_the_readmes_test_command() -> None:
    assert "make test" in README
    assert "\nmake test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
