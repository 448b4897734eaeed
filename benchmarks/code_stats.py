"""How the code reads, in numbers: sizes of files and functions, annotations, docstrings, broad excepts.

    python -m benchmarks.code_stats [FOLDER ...]

One row for each folder; `__init__.py` files are left out, as they hold lists.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from statistics import median

LONG_FILE, LONG_FUNCTION = 400, 60  # lines
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function and method."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def num_parameters(function: Function) -> int:
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def is_broad(handler: ast.ExceptHandler) -> bool:
    """Whether it catches everything."""
    return handler.type is None or (
        isinstance(handler.type, ast.Name) and handler.type.id in ("Exception", "BaseException")
    )


def docstring_lines(tree: ast.Module) -> int:
    nodes = [n for n in ast.walk(tree) if isinstance(n, (Function, ast.ClassDef, ast.Module))]
    texts = (n.body[0] for n in nodes if ast.get_docstring(n) is not None)
    return sum((text.end_lineno or 0) - text.lineno + 1 for text in texts)


def comment_lines(text: str) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return len({token.start[0] for token in tokens if token.type == tokenize.COMMENT})


def measure(folder: Path) -> dict[str, object]:
    """The row of one folder."""
    paths = [p for p in sorted(folder.rglob("*.py")) if p.name != "__init__.py"]
    texts = [path.read_text(encoding="utf-8") for path in paths]
    trees = [ast.parse(text) for text in texts]
    lines = [len(text.splitlines()) for text in texts]
    found = [f for tree in trees for f in functions(tree)]
    sizes = [(f.end_lineno or 0) - f.lineno + 1 for f in found]
    handlers = [n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.ExceptHandler)]
    total = sum(lines)
    return {
        "folder": str(folder),
        "files": len(paths),
        "median lines": median(lines),
        f"files > {LONG_FILE}": sum(n > LONG_FILE for n in lines),
        "median function": median(sizes),
        "longest function": max(sizes),
        f"functions > {LONG_FUNCTION} %": f"{100 * sum(n > LONG_FUNCTION for n in sizes) / len(sizes):.1f}",
        "most parameters": max(map(num_parameters, found)),
        "return annotated %": f"{100 * sum(f.returns is not None for f in found) / len(found):.0f}",
        "broad excepts": sum(map(is_broad, handlers)),
        "docstring lines %": f"{100 * sum(map(docstring_lines, trees)) / total:.0f}",
        "comment lines %": f"{100 * sum(map(comment_lines, texts)) / total:.1f}",
    }


def main() -> None:
    folders = [Path(name) for name in sys.argv[1:]] or [Path("src/open_cloc"), Path("tests")]
    rows = [measure(folder) for folder in folders]
    for name in rows[0]:
        print(f"{name:22s}", *(f"{row[name]!s:>28}" for row in rows))


if __name__ == "__main__":
    main()
