"""Benchmarks of `make bench` run once in small: they are run by hand, and would break unseen."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import timing

SMALL = "ViT-S-32-alt"  # open_clip's smallest
OPTIONS: dict[str, dict[str, Any]] = {
    "phrases": {"count": 6, "rounds": 1},
    "region_embeddings": {"counts": (2,), "rounds": 1, "crops": 0, "literal": 0},
    "accumulation": {"architecture": SMALL, "batch_size": 4, "parts": 2, "rounds": 1},
    "index": {
        "only": ("speed", "search"),
        "towers": SMALL,
        "pictures": 2,
        "boxes": 2,
        "regions": 60,
        "queries": 2,
    },
    "training_step": {"architecture": SMALL, "batch_size": 2, "rounds": 1, "literal": False},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_it_runs_and_writes_its_aims(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "index":
        pytest.importorskip("lancedb", reason="the extra index is not installed")
    monkeypatch.setattr(timing, "OUTPUT", tmp_path)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    module = importlib.import_module(f"benchmarks.{name}")
    module.main(module.Options(**OPTIONS[name]))
    torch.set_num_threads(threads)
    (written,) = tmp_path.rglob(f"{name}.json")
    aims = json.loads(written.read_text())["aims"]
    assert all({"what", "got", "aim", "met"} <= set(aim) for aim in aims)


def test_a_row_of_the_papers_table(tmp_path: Path) -> None:
    from benchmarks import paper_rows

    threads = torch.get_num_threads()
    options = paper_rows.Options(samples=128, scenes=30, output=tmp_path)
    found = {}
    for name in ("8", "9"):
        paper_rows.train_and_measure(options, name, 0)
        found[name] = {
            key: [value] for key, value in json.loads((tmp_path / f"{name}-0.json").read_text()).items()
        }
    torch.set_num_threads(threads)
    assert set(found["9"]) == {*paper_rows.METRICS, paper_rows.BY_POINT}
    lines = paper_rows.table(found).splitlines()
    assert [line.split(":")[0] for line in lines[2:]] == ["| 8", "| 9", lines[4]]
    assert lines[4].startswith("| less row 8 | ")
