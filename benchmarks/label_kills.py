"""Labelling that is killed: python -m benchmarks.label_kills

A tiny OWLv2 labels pictures. Then the same again, with `kill -9` of the worker that reads and finds phrases,
of the one that detects, of the one that writes, and of the process that started the run at three points of
its way; killed runs are started again. Each time all files must be those of the undisturbed run.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from benchmarks.labelling import make_detector, make_pictures
from benchmarks.timing import verdict, write_json

# How Ray names the processes of our stages.
WORKERS = {
    "read": "ray::FlatMap(Read",
    "stages": "ray::MapWorker(Map(OnRows",
    "write": "ray::write_unit_or_tell",
}
# Files that must exist when the driver is killed.
MOMENTS = {
    "before any detection": "label.json",
    "raw boxes there": "raw/*.json",
    "a shard there": "*_label.json",
}
LONGEST = 300.0  # seconds of one run


@dataclass
class Options:
    """Attributes:
    pictures: How many; 64 are a shard.
    spacy_model: Tagger: an installed pipeline, or a folder.
    """

    pictures: int = 320
    spacy_model: str = "en_core_web_sm"


def command(folder: Path, output: str, options: Options) -> list[str]:
    return [
        *(
            sys.executable,
            "-m",
            "open_cloc.cli",
            "label",
            "vesl",
            f"shards:{folder / 'in'}",
            str(folder / output),
        ),
        *("--detect.weights", str(folder / "owlv2"), "--phrases.spacy-model", options.spacy_model),
        *("--detect.raw-score", "0.5", "--filter.min-score", "0.5", "--run.detectors", "1"),
    ]


def checksums(folder: Path) -> dict[str, str]:
    """Of all files but the report, which is made from them."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("report.html", "report.json", "sheet.jpg")
    }


def descendants(name: str, root: int) -> list[int]:
    """Processes whose title contains a name and that descend from another process, or from its cluster."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                environment = (entry / "environ").read_bytes()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if name in title and f"LABEL_KILLS={root}".encode() in environment:
                found.append(int(entry.name))
    return found


def start(arguments: list[str], mark: int) -> subprocess.Popen[bytes]:
    environment = os.environ | {"LABEL_KILLS": str(mark), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    return subprocess.Popen(
        arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def wait_for(what: Callable[[], bool], process: subprocess.Popen[bytes]) -> bool:
    """Whether it became true before the process ended."""
    deadline = time.monotonic() + LONGEST
    while process.poll() is None and time.monotonic() < deadline:
        if what():
            return True
        time.sleep(0.01)
    return False


def run_to_end(arguments: list[str], mark: int) -> None:
    process = start(arguments, mark)
    _, errors = process.communicate(timeout=LONGEST)
    if process.returncode:
        raise SystemExit(f"labelling failed: {errors.decode()[-2000:]}")


def kill_worker(arguments: list[str], name: str, mark: int) -> bool:
    """Run to the end, killing one worker of a stage on the way; whether there was one."""
    process = start(arguments, mark)
    hit = wait_for(lambda: bool(descendants(name, mark)), process)
    time.sleep(1.0)  # into its work, or into loading its model
    for pid in descendants(name, mark)[:1]:
        os.kill(pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=LONGEST)
    if process.returncode:
        raise SystemExit(f"labelling did not survive the death of a worker: {errors.decode()[-2000:]}")
    return hit


def kill_driver(arguments: list[str], output: Path, pattern: str, mark: int) -> bool:
    """Kill a run's first process once certain files exist, then start it again; whether it was hit."""
    process = start(arguments, mark)
    hit = wait_for(lambda: any(output.glob(pattern)), process)
    process.kill()
    process.communicate()
    run_to_end(arguments, mark + 1)
    return hit


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_detector(folder / "owlv2", side=384)
        make_pictures(folder / "in", options.pictures)
        run_to_end(command(folder, "undisturbed", options), 1)
        expected = checksums(folder / "undisturbed")
        rows: dict[str, dict[str, bool]] = {}
        cases = [("worker", *item) for item in WORKERS.items()] + [
            ("driver", *item) for item in MOMENTS.items()
        ]
        for number, (victim, what, pattern) in enumerate(cases, 1):
            output = f"killed{number}"
            arguments = command(folder, output, options)
            if victim == "worker":
                hit = kill_worker(arguments, pattern, 10 * number)
            else:
                hit = kill_driver(arguments, folder / output, pattern, 10 * number)
            same = checksums(folder / output) == expected
            rows[f"{victim}, {what}"] = {"killed": hit, "same": same}
            print(
                f"{victim}, {what}: {'killed' if hit else 'NOT KILLED'}, {'same' if same else 'OTHER'} files",
                flush=True,
            )
    good = sum(row["killed"] and row["same"] for row in rows.values())
    aims = [
        verdict(
            f"kills of {len(rows)} that leave the same {len(expected)} files", good, len(rows), least=True
        )
    ]
    result = json.loads(json.dumps({"options": asdict(options), "kills": rows, "aims": aims}))
    print(write_json("label_kills", result))


if __name__ == "__main__":
    main()
