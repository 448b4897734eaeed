"""Arguments of the verbs: one line for what a config refuses, results that replace nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from open_cloc.cli import main as cli
from open_cloc.cli.parse import check_result_file, parse, parse_command
from open_cloc.errors import UserError


@dataclass(frozen=True)
class Inner:
    size: int = 1
    rate: float = 0.5
    sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"size must be at least 1; got {self.size}")


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    count: int = 3

    def __post_init__(self) -> None:
        if self.count == 13:
            raise UserError("count must not be 13")


def test_what_a_config_says_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(Outer, ["--inner.size", "4"], "x") == Outer(Inner(4))
    with pytest.raises(UserError, match=r"^size must be at least 1; got 0$"):
        parse(Outer, ["--inner.size", "0"], "x")
    with pytest.raises(UserError, match=r"^count must not be 13$"):
        parse(Outer, ["--count", "13"], "x")
    assert capsys.readouterr() == ("", "")


def test_what_the_parser_says_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(Outer, ["--inner.size", "many"], "x")
    assert stop.value.code == 2
    assert "many" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        parse(Outer, ["--help"], "open-cloc x")
    assert stop.value.code == 0
    assert "usage: open-cloc x" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--count", "9223372036854775808"],
            r"count must be a number below .*; got a number of 19 digits",
        ),
        (["--inner.size", "1" + 400 * "0"], r"inner.size must be .*; got a number of 401 digits"),
        (["--inner.sizes", "1", "-9999999999999999999"], r"inner.sizes\[1\] must be"),
        (["--inner.rate", "inf"], "inner.rate must be .*; got inf"),
        (["--inner.rate", "nan"], "inner.rate must be .*; got nan"),
        (["--inner.rate", "1e999"], "inner.rate must be .*; got inf"),
    ],
)
def test_numbers_that_would_overflow_are_refused(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(Outer, options, "x")


def test_a_function_is_called_after_it_was_parsed(capsys: pytest.CaptureFixture[str]) -> None:
    """What it raises and prints is its own."""

    def verb(path: Path, num: int = 2) -> int:
        """Do it.

        Args:
            path: Where.
            num: How often.
        """
        if num == 0:
            raise ValueError("not the parser's")
        return num

    assert parse_command({"": verb}, ["--path", "a", "--num", "7"], "x")() == 7
    assert parse_command({"one": verb, "two": verb}, ["two", "--path", "a"], "x", "What it is.")() == 2
    with pytest.raises(ValueError, match="not the parser's"):
        parse_command({"one": verb, "two": verb}, ["one", "--path", "a", "--num", "0"], "x")()
    with pytest.raises(UserError, match="num must be a number below"):
        parse_command({"": verb}, ["--path", "a", "--num", "1" + 30 * "0"], "x")
    with pytest.raises(SystemExit):
        parse_command({"one": verb, "two": verb}, ["--help"], "x", "What it is.")
    assert "What it is." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ("train scenes-cloc --run.global-batch-size 0", "run.global_batch_size must be at least 1; got 0"),
        ("train scenes-cloc --optim.lr -1", "optim.lr must be above 0; got -1.0"),
        (
            "train scenes-cloc --objectives image_text,weight=x",
            "weight in 'image_text,weight=x' must be",
        ),
        ("demo --samples -5", "--samples must be at least 0; got -5"),
        ("demo --scenes 0", "--scenes must be at least 1; got 0"),
        ("train scenes-cloc --run.seed -1", "run.seed must be at least 0; got -1"),
        ("data convert scenes:val out --max-bad-fraction -1", "--max-bad-fraction must be in [0, 1]; got -1"),
        ("plan scenes-cloc --hardware.devices 0", "a plan needs devices >= 1"),
        ("eval grounding --data scenes:val --candidates 0", "candidates must be at least 1; got 0"),
        ("label vesl a b --filter.min-score 7", "min_score"),
    ],
)
def test_configs_of_the_verbs_are_one_line(
    argv: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"open-cloc {argv.split()[0]}: ")
    assert sentence in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("content", ["", "[]", '{"metrics": 1}', '{"old": 1}', "a,b,c"])
def test_a_result_replaces_results_only(tmp_path: Path, content: str) -> None:
    keys = ("task", "metrics")
    check_result_file(None, keys)
    path = tmp_path / "r.json"
    check_result_file(path, keys)
    path.write_text(json.dumps({"task": 1, "metrics": 2, "more": 3}))
    check_result_file(path, keys)
    (tmp_path / "link.json").symlink_to(path)
    path_of = {"file": path, "link": tmp_path / "link.json", "folder": tmp_path}
    path.write_text(content)
    for place in path_of.values():
        with pytest.raises(FileExistsError, match="is there already, and no earlier result"):
            check_result_file(place, keys)
    assert path.read_text() == content
