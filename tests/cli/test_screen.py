"""What is printed reaches terminals, pipes and files of any kind, and does nothing to them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from open_cloc.cli import main as cli
from open_cloc.cli.screen import say, say_json

FAKE = """
import sys, types
from open_cloc.cli import main as c
from open_cloc.cli.screen import say
def main(argv):
    from open_cloc.cli.screen import say
    {body}
    return 0
sys.modules['fake_verb'] = types.SimpleNamespace(main=main)
c.VERBS['fake'] = ('fake_verb:main', '')
sys.argv = ['open-cloc', 'fake']
sys.exit(c.main())
"""


def run(body: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """A verb of one line as a process of its own, its streams turned elsewhere by the shell."""
    line = f'exec {sys.executable} -c "$1" {shell}'
    return subprocess.run(
        ["sh", "-c", line, "sh", FAKE.format(body=body)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


def test_control_characters_and_secrets_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\x1b[2Jb\n\tc")
    say("from https://u:hunter2@h/0.tar?sig=hunter2", to_errors=True)
    printed = capsys.readouterr()
    assert printed.out == "a\\x1b[2Jb\n\tc\n"
    assert printed.err == "from https://***@h/0.tar\n"


def test_json_for_programs_stays_json(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"label": "pipe:a smoking\x1b[2J man", "image": "https://a@b?c"}
    say_json(document)
    printed = capsys.readouterr().out
    assert json.loads(printed) == document
    assert "\x1b" not in printed


def test_errors_show_no_control_characters_and_secrets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "check", "\x1b]0;owned\x07"]) == 2
    assert cli.main(["data", "check", "table:https://u:hunter2@h/a.csv"]) == 2
    assert cli.main(["eval", "grounding", "--weights", "x", "--data", "ark:https://u:hunter2@h"]) == 2
    assert (
        cli.main(["eval", "grounding", "--weights", "x", "--data", "shards:s3://u:hunter2@h,colour=1"]) == 2
    )
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert "hunter2" not in error
    assert error.count("\n") == 4


def test_log_lines_show_neither() -> None:
    made = run(
        "import logging; "
        "logging.getLogger('open_cloc.x').warning('a\\x1b[2Jb of %s', 'https://u:hunter2@h/0.tar?x=1')"
    )
    assert made.stderr == "a\\x1b[2Jb of https://***@h/0.tar\n"


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "LANG": "C"},
        {"LC_ALL": "POSIX", "LANG": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
    ids=str,
)
def test_terminals_that_know_few_characters(tmp_path: Path, environment: dict[str, str]) -> None:
    """What they do not know is shown as text, and files have their names all the same."""
    (tmp_path / "gefäß").write_text("found")
    body = f"say('\\u043a'); say(open({str(tmp_path)!r} + '/gef\\xe4\\xdf').read())"
    made = run(body, **environment)
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout in ("\\u043a\nfound\n", "\u043a\nfound\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("body", ["say('x')", "print('x')", "print('x' * 100000)"])
def test_output_that_cannot_be_written_is_one_line(body: str) -> None:
    made = run(body, "> /dev/full")
    assert made.returncode == 1
    assert re.fullmatch(r"open-cloc fake: No space left on device.* \(free some space, .*\)\n", made.stderr)


@pytest.mark.parametrize("shell", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_no_harm(tmp_path: Path, shell: str) -> None:
    """The next file that is opened does not become the output."""
    file = tmp_path / "a"
    body = f"f = open({str(file)!r}, 'w'); say('x'); say('y', to_errors=True); f.write('z'); f.close()"
    made = run(body, shell)
    assert made.returncode == 0
    assert file.read_text() == "z"


def test_errors_that_nobody_hears_have_their_exit_code() -> None:
    made = run("raise c.UserError('bad')", "2> /dev/full")
    assert made.returncode == 2
