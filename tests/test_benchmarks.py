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
