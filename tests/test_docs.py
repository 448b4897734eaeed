"""What the README and the pages promise is there and runs, and the pages stay easy to read."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import open_cloc
from benchmarks.docs_stats import MAX_LINE, measure
from open_cloc.cli import parse
from open_cloc.cli.main import VERBS, main
from open_cloc.evaluation.run import TASKS
from open_cloc.training.recipes import RECIPES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
EXAMPLES = ROOT / "examples"
LOG = sorted((DOCS / "log").glob("2*.md"))
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    EXAMPLES / "README.md",
    *sorted(DOCS.rglob("*.md")),
]
NEW_PAGES = [page for page in PAGES if page not in LOG and page.name != "CHANGELOG.md"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXTENDING = (DOCS / "design" / "extending.md").read_text(encoding="utf-8")

MAX_PARAGRAPH, MAX_CELL = 50, 12  # words
MAX_README = 65  # lines
PLACEHOLDERS = {"--help", "--debug", "--section.field"}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """Code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(text: str) -> Iterator[list[str]]:
    """Every `open-cloc ...` line of a page's shell blocks, continued lines joined, comments cut."""
    for line in "\n".join(blocks(text, "sh")).replace("\\\n", " ").splitlines():
        if line.startswith("open-cloc "):
            yield line.split(" #")[0].split()


def anchors(text: str) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_a_page_is_easy_to_read(page: Path) -> None:
    stats = measure(read(page))
    assert max(stats.paragraphs, default=0) <= MAX_PARAGRAPH
    assert max(stats.cells, default=0) <= MAX_CELL
    assert not stats.long_lines, f"lines over {MAX_LINE} characters: {stats.long_lines}"


def test_the_readme_fits_on_a_screen() -> None:
    assert len(README.splitlines()) <= MAX_README
    assert measure(README).numbers_per_100_words < 4


def test_measures_of_a_page_by_hand() -> None:
    page = "# A title of 5\n\nTwo words, 3 numbers: 4 and\n[5 of them](six.md#7).\n\n- one `item 8`\n- two\n"
    page += "\n| a cell | of two |\n|---|---|\n| three words `x | y` | |\n\n```sh\nnot counted 9\n```\n"
    stats = measure(page)
    assert stats.paragraphs == (9, 2, 1)
    assert stats.numbers == 3
    assert max(stats.cells) == 3


@each_page
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", read(page)):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(read(file)), f"{page.name} links to {target}"


@each_page
def test_commands_exist(page: Path) -> None:
    for words in commands(read(page)):
        verb, what = words[1], words[2] if len(words) > 2 else "--help"
        assert verb in VERBS, " ".join(words)
        if what.isupper() or what == "--help":  # RECIPE and TASK are placeholders
            continue
        if verb in ("train", "plan"):
            assert what in RECIPES or ":" in what, " ".join(words)
        if verb == "eval":
            assert what.replace("-", "_") in TASKS or ":" in what, " ".join(words)


@cache
def options_of(verb: str, what: str) -> frozenset[str]:
    """Options that a verb's help names."""
    argv = [verb, *([what] if what else []), "--help"]
    said = io.StringIO()
    with redirect_stdout(said), pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "1000")
        with suppress(SystemExit):
            main(argv)
    return frozenset(re.findall(r"--[\w.-]+", said.getvalue()))


@pytest.mark.parametrize("page", NEW_PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_options_exist(page: Path) -> None:
    known = {"train": "finetune", "plan": "finetune", "label": "vesl"}
    for words in commands(read(page)):
        verb, what = words[1], words[2] if len(words) > 2 else "--help"
        of = what if verb in ("data", "index", "mllm") or what in ("diff", "report") else known.get(verb, "")
        for option in re.findall(r"--[\w.-]+", " ".join(words)):
            assert option in options_of(verb, of) | PLACEHOLDERS, " ".join(words)


class ParsedError(BaseException):
    """A command was understood; nothing of it shall be done."""


@pytest.mark.parametrize("page", NEW_PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_are_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by its verb's own parser, with its values and what its configs say of them."""

    def stop(parsed: object) -> None:
        raise ParsedError

    monkeypatch.setattr(parse, "check_numbers", stop)
    for line in "\n".join(blocks(read(page), "sh")).replace("\\\n", " ").splitlines():
        if not line.startswith("open-cloc ") or "[" in line:  # a line of usage
            continue
        words = [word for word in shlex.split(line, comments=True)[1:] if word != "..."]
        # A recipe of the reader's own, or any.
        if words[0] in ("train", "plan", "label") and (":" in words[1] or words[1] == "RECIPE"):
            words[1] = "vesl" if words[0] == "label" else "finetune"
        try:
            code: object = main(words)
        except ParsedError:
            code = 0
        except SystemExit as end:  # help
            code = end.code
        assert code == 0, line


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", read(ROOT / "Makefile"), flags=re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"^make (\w+)", "\n".join(blocks(read(page), "sh")), re.MULTILINE):
            assert target in targets, page


def test_ci_calls_the_readmes_test_command() -> None:
    assert "make test" in README
    assert "\nmake test" in read(ROOT / ".ci" / "run")


@each_page
def test_python_blocks_are_python(page: Path) -> None:
    for code in blocks(read(page), "python"):
        ast.parse(code)


def test_the_canvas_of_the_page_on_data_is_as_it_says() -> None:
    (code,) = (code for code in blocks(read(DOCS / "reference" / "data.md"), "python") if "Geometry" in code)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["canvas"].shape == (224, 224, 3)
    assert abs(names["boxes_again"] - [[0.1, 0.2, 0.5, 0.9]]).max() < 1e-9


def test_the_log_lists_its_pages_oldest_first() -> None:
    listed = re.findall(r"\]\((2[^)]+)\)", read(DOCS / "log" / "index.md"))
    assert sorted(listed) == [page.name for page in LOG]
    dates = [name[:10] for name in listed]
    assert dates == sorted(dates)


@pytest.mark.parametrize("page", LOG, ids=lambda page: page.name)
def test_a_log_page_begins_with_its_result(page: Path) -> None:
    title, result, *_ = read(page).split("\n\n")
    assert title.startswith("# ")
    assert result.endswith((".", ".)"))
    assert not result.startswith(("|", "`", "#", "-"))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, small enough to be asked in milliseconds."""
    folder = tmp_path_factory.mktemp("docs") / "model"
    open_cloc.create_model(tiny_towers(), device="cpu").save_pretrained(folder)
    return folder


def tiny_towers() -> dict[str, Any]:
    return {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32},
        "text_cfg": {"width": 32, "heads": 2, "layers": 2, "context_length": 16},
    }


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "quickstart.md"], ids=lambda page: page.name)
def test_ten_lines_of_python_run(
    page: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = blocks(read(page), "python")
    assert '"runs/demo/cloc/model"' in code
    assert "None" not in code
    monkeypatch.chdir(ROOT)
    exec(code.replace("runs/demo/cloc/model", str(model_folder)), {})
    assert "a blue umbrella" in capsys.readouterr().out


def test_the_example_script_runs(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"docs/scene.png": [[26, 17, 55, 39], [0, 45, 20, 63]]}))
    script = EXAMPLES / "embed_regions.py"
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [str(script), str(model_folder), str(boxes), str(tmp_path / "out.npz")])
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.startswith("2 boxes of 1 pictures")


@pytest.mark.parametrize("notebook", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_run(
    notebook: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPEN_CLOC_WEIGHTS", str(model_folder))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # what they leave behind goes with the test
    monkeypatch.chdir(EXAMPLES)
    names: dict[str, Any] = {"__name__": "notebook"}
    for cell in json.loads(read(notebook))["cells"]:
        assert not cell.get("outputs"), "notebooks are stored without outputs"
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), notebook.name, "exec", dont_inherit=True), names)


def sections() -> dict[str, str]:
    """The lettered sections of the page on extending, by letter."""
    parts = re.split(r"^## \((\w)\) .*$", EXTENDING, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


@pytest.mark.parametrize("letter", sections())
def test_examples_of_extending_run(
    letter: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block that begins with a file's name becomes that file; the others run in order."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    picture = (DOCS / "scene.png").read_bytes()
    names = {"model": open_cloc.load(model_folder, "cpu").model, "picture": picture, "__name__": "example"}
    files, runs = 0, 0
    for code in blocks(sections()[letter], "python"):
        file = re.match(r"# (\w+\.py)\n", code)
        if file:
            Path(file[1]).write_text(code, encoding="utf-8")
            files += 1
        else:
            exec(compile(code, f"extending.md ({letter})", "exec", dont_inherit=True), names)
            runs += 1
    assert runs
    assert files or letter == "h"


def test_extending_covers_eight_changes() -> None:
    assert list(sections()) == list("abcdefgh")


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """And the reference of the Python API holds what the docstrings say."""
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    pytest.importorskip("mkdocstrings_handlers.python", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "reference" / "api" / "index.html").read_text(encoding="utf-8")
    for name in ("Predictor", "EncodedImage", "RegionIndex", "CLOC", "Region"):
        assert f">{name}</span>" in page, name
    served = [
        path for path in tmp_path.rglob("*.html") if "fonts.googleapis" in path.read_text(encoding="utf-8")
    ]
    assert served == []  # nothing from a third party's host
