"""Ctrl-C and SIGTERM at any time: one line, the signal's exit code, nothing left running or half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

FAKE = """
import multiprocessing, os, signal, sys, time, types
from pathlib import Path
from open_cloc.cli import main as c, stops
from open_cloc.files import write_whole
stops.PATIENCE = 0.5
folder = Path(sys.argv[1])
def ready():
    (folder / "ready").touch()
def main(argv):
    {body}
    return 0
sys.modules["fake_verb"] = types.SimpleNamespace(main=main)
c.VERBS["fake"] = ("fake_verb:main", "")
sys.argv = ["open-cloc", "fake"]
sys.exit(c.main())
"""


def stop(
    folder: Path, body: str, number: signal.Signals, *more: signal.Signals, errors: Any = subprocess.PIPE
) -> tuple[int, str]:
    """Start a verb, send it signals once it is ready; its exit code and what it has printed of errors."""
    code = FAKE.format(body="\n    ".join(body.strip().splitlines()))
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stderr=errors,
        text=True,
        start_new_session=True,
        # pytest may itself run in the background of a shell, where Ctrl-C is ignored, or under nohup.
        preexec_fn=lambda: [signal.signal(each, signal.SIG_DFL) for each in (signal.SIGINT, signal.SIGHUP)],
    ) as process:
        deadline = time.monotonic() + 60
        while not (folder / "ready").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for each in (number, *more):
            process.send_signal(each)
            time.sleep(0.2)
        killer = threading.Timer(60, process.kill)  # of a process that does not end
        killer.start()
        said = process.stderr.read() if process.stderr is not None else ""
        code = process.wait()
        killer.cancel()
        return code, said


TOLD = {
    signal.SIGINT: (130, "open-cloc fake: interrupted\n"),
    signal.SIGTERM: (143, "open-cloc fake: stopped by SIGTERM\n"),
    signal.SIGHUP: (129, "open-cloc fake: stopped: its terminal was closed\n"),
}


LONG_CALL = """
import ctypes
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
libc.pthread_mutex_lock(mutex)
ready()
libc.pthread_mutex_lock(mutex)  # for ever
"""


@pytest.mark.parametrize("number", TOLD)
def test_work_is_undone_and_told_in_one_line(tmp_path: Path, number: signal.Signals) -> None:
    body = """
with write_whole(folder / "half") as part:
    part.write_text("half")
    ready()
    time.sleep(60)
"""
    assert stop(tmp_path, body, number) == TOLD[number]
    assert [path.name for path in tmp_path.iterdir()] == ["ready"]


def test_while_libraries_are_imported_the_process_just_ends(tmp_path: Path) -> None:
    """An exception would be taken for a failed import, or get lost in a callback."""
    (tmp_path / "slow_verb.py").write_text(
        "import time\nfrom pathlib import Path\n"
        f"try:\n    Path({str(tmp_path / 'ready')!r}).touch()\n    time.sleep(60)\n"
        "except BaseException:\n    pass\n"
    )
    code = FAKE.format(body="pass").replace("fake_verb:main", "slow_verb:main")
    code = code.replace("import multi", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport multi")
    (tmp_path / "start.py").write_text(code)
    body = f"os.execv(sys.executable, [sys.executable, {str(tmp_path / 'start.py')!r}, str(folder)])"
    assert stop(tmp_path, body, signal.SIGINT) == TOLD[signal.SIGINT]


def test_a_library_that_is_imported_late_is_waited_for(tmp_path: Path) -> None:
    """An exception within its C++ would abort the process."""
    (tmp_path / "slow_library.py").write_text(
        "import time, __main__\nfrom pathlib import Path\n"
        "try:\n    __main__.ready()\n    time.sleep(0.3)\n"
        f"except BaseException:\n    raise SystemError\nPath({str(tmp_path / 'whole')!r}).touch()\n"
    )
    body = f"sys.path.insert(0, {str(tmp_path)!r})\nimport slow_library\ntime.sleep(60)"
    assert stop(tmp_path, body, signal.SIGINT) == TOLD[signal.SIGINT]
    assert (tmp_path / "whole").exists()


@pytest.mark.parametrize("wrapped", ["raise ImportError('a library that was stopped')", "sys.exit(1)"])
def test_what_libraries_make_of_a_signal_is_not_told(tmp_path: Path, wrapped: str) -> None:
    body = f"""
try:
    ready()
    time.sleep(60)
except KeyboardInterrupt:
    {wrapped}
"""
    assert stop(tmp_path, body, signal.SIGTERM) == TOLD[signal.SIGTERM]


def test_one_long_call_of_a_library_is_not_waited_for(tmp_path: Path) -> None:
    """Python's own handlers do not run meanwhile."""
    assert stop(tmp_path, LONG_CALL, signal.SIGINT) == TOLD[signal.SIGINT]


def test_a_second_signal_ends_what_takes_long_to_undo(tmp_path: Path) -> None:
    body = """
try:
    ready()
    time.sleep(60)
finally:
    time.sleep(60)
"""
    assert stop(tmp_path, body, signal.SIGINT, signal.SIGINT) == TOLD[signal.SIGINT]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_message_that_nobody_hears_does_not_keep_the_process(tmp_path: Path) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        code, _ = stop(tmp_path, LONG_CALL, signal.SIGINT, errors=full)
    assert code == 130


def test_hanging_threads_and_workers_end_too(tmp_path: Path) -> None:
    body = f"""
import threading
threading.Thread(target=time.sleep, args=(60,)).start()
worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
worker.start()
Path({str(tmp_path)!r}, "worker").write_text(str(worker.pid))
ready()
time.sleep(60)
"""
    assert stop(tmp_path, body, signal.SIGTERM) == TOLD[signal.SIGTERM]
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "worker").read_text()), 0)


def test_a_worker_is_ended_by_its_parents_signal(tmp_path: Path) -> None:
    """Without a message or a traceback of its own."""
    body = """
worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
worker.start()
worker.terminate()
worker.join()
assert worker.exitcode == -signal.SIGTERM
ready()
time.sleep(60)
"""
    assert stop(tmp_path, body, signal.SIGINT) == TOLD[signal.SIGINT]


def test_signals_that_are_ignored_or_handled_stay_so(tmp_path: Path) -> None:
    """As `nohup` ignores the end of a terminal, and training takes SIGTERM for a wish."""
    body = """
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
ready()
while not asked:
    time.sleep(0.01)
time.sleep(1)  # longer than what a library's call is given
"""
    assert stop(tmp_path, body, signal.SIGTERM) == (0, "")
    nohup = subprocess.run(
        [sys.executable, "-c", FAKE.format(body="os.kill(os.getpid(), signal.SIGHUP)"), str(tmp_path)],
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert nohup.returncode == 0
