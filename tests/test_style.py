"""The architecture, held by a test: who may import whom, where things may print, what the pages must name.

`python tests/test_style.py` prints the import graph of the areas, for the documentation.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TypeAlias

import pytest

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src" / "open_cloc"
FILES = sorted(SRC.rglob("*.py"))

# A file imports from its own area and from areas in rows above. The ground is every file that is in no area.
ROWS = (
    ("ground",),
    ("data", "model", "objectives"),
    ("evaluation", "inference", "export"),
    ("training", "labelling", "index", "integrations"),
    ("server", "mllm"),
    ("cli",),
    ("open_cloc",),  # the front door, `open_cloc/__init__.py`
)
RANKS = {area: rank for rank, row in enumerate(ROWS) for area in row}

KINDS = (
    *("READERS", "PROMPTS", "OBJECTIVES", "METHODS", "TASKS", "DETECTORS", "CAPTIONERS"),
    *("PHRASE_RULES", "TOWERS", "RECIPES", "REGIONS"),
)
MAX_LINES, MAX_FUNCTION = 500, 60

Edges: TypeAlias = "dict[str, set[str]]"


def module_of(file: Path) -> str:
    """`data/readers/__init__.py` -> `open_cloc.data.readers`."""
    parts = ["open_cloc", *file.relative_to(SRC).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


def area_of(module: str) -> str:
    """The area of a module: its folder below the package, or the ground."""
    if module == "open_cloc":
        return module
    folder = MODULES[module].relative_to(SRC).parts[0]
    return "ground" if folder.endswith(".py") else folder


@cache
def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def imports_of(file: Path) -> Iterator[str]:
    """Every module of ours that a file imports, at its top, inside a function or under `TYPE_CHECKING`."""
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in inner)


def names_in_tables(file: Path) -> Iterator[str]:
    """Every module of ours that a file names as `"module:object"`, to import it when it is asked for."""
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = re.fullmatch(r"(open_cloc[\w.]*):\w+", node.value)
            if found:
                yield found[1]


def graph(read: Callable[[Path], Iterator[str]]) -> Edges:
    """Modules of ours by the module that reads them."""
    return {module: {name for name in read(file) if name in MODULES} for module, file in MODULES.items()}


def test_imports_point_one_way() -> None:
    unknown = {area_of(module) for module in MODULES} - set(RANKS)
    assert not unknown, f"areas without a place in ROWS: {unknown}"
    wrong = {
        f"{module} -> {used}"
        for edges in (graph(imports_of), graph(names_in_tables))
        for module, uses in edges.items()
        for used in uses
        if area_of(used) != area_of(module) and RANKS[area_of(used)] >= RANKS[area_of(module)]
    }
    assert wrong == set()


def test_no_module_imports_itself_around_a_circle() -> None:
    edges = graph(imports_of)
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_only_the_command_line_prints_and_parses() -> None:
    found = set()
    for module, file in MODULES.items():
        tree = ast.walk(parse(file))
        calls = {
            node.func.id for node in tree if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        text = file.read_text(encoding="utf-8")
        if area_of(module) != "cli" and ("print" in calls or re.search(r"\b(tyro|argparse)\b", text)):
            found.add(module)
    assert found == set()


def test_the_command_line_prints_in_one_place() -> None:
    """Where control characters and secrets are taken out."""
    found = {
        module
        for module, file in MODULES.items()
        for node in ast.walk(parse(file))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("print", "sys.stdout.write", "sys.stderr.write")
    }
    assert found == {"open_cloc.cli.screen"}


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda file: file.stem)
def test_what_a_benchmark_imports_is_there(file: Path) -> None:
    """They are run by hand, and would break unseen."""
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(("open_cloc", "benchmarks")):
            module = importlib.import_module(str(node.module))
            for name in node.names:
                assert hasattr(module, name.name) or importlib.util.find_spec(f"{node.module}.{name.name}")


def test_no_page_is_cited_that_is_not_here() -> None:
    cited = re.compile(r"\b(METHOD|FORMATS)\b")
    texts = [
        path
        for folder in ("src", "tests", "docs", "benchmarks", "examples")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".md", ".json") and path != Path(__file__)
    ]
    found = {
        path.relative_to(ROOT).as_posix() for path in texts if cited.search(path.read_text(encoding="utf-8"))
    }
    assert found == set()


def dicts_of_kinds() -> Iterator[tuple[str, str]]:
    """Name and key of everything that a dict of kinds lists."""
    for file in FILES:
        for node in parse(file).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            value = getattr(node, "value", None)
            if names and names[0] in KINDS and isinstance(value, ast.Dict):
                yield from ((names[0], key.value) for key in value.keys if isinstance(key, ast.Constant))


def test_every_kind_is_on_a_page() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    words = set(re.findall(r"[\w-]+", "\n".join(page.read_text(encoding="utf-8") for page in pages)))
    kinds = set(dicts_of_kinds())
    assert {name for name, _ in kinds} >= {"READERS", "TASKS"}
    absent = {f"{table} {key}" for table, key in kinds if key not in words}
    assert absent == set()


def test_files_and_functions_fit_on_a_few_screens() -> None:
    found = set()
    for module, file in MODULES.items():
        if len(file.read_text(encoding="utf-8").splitlines()) > MAX_LINES:
            found.add(module)
        for node in ast.walk(parse(file)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION:
                    found.add(f"{module}:{node.name}")
    assert found == set()


def test_names_of_test_files_are_unique() -> None:
    """pytest imports them by their name alone."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def area_graph() -> str:
    """Which areas each area imports, as lines of text, lowest first."""
    uses: Edges = {area: set() for area in sorted(RANKS, key=lambda area: (RANKS[area], area))}
    for module, used in graph(imports_of).items():
        uses[area_of(module)] |= {area_of(name) for name in used} - {area_of(module)}
    present = {area_of(module) for module in MODULES}
    width = max(map(len, uses))
    lines = []
    for area in filter(present.__contains__, uses):
        names = sorted(uses[area], key=lambda name: (RANKS[name], name))
        lines.append(f"{area:{width}}  <-  {', '.join(names) or 'nothing of ours'}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(area_graph())
