"""How many workers a loader takes by itself."""

from __future__ import annotations

import os

import pytest
import torch

from open_cloc.data.collate import LoaderConfig
from open_cloc.data.workers import default_workers


@pytest.mark.parametrize(
    ("cores", "gpu", "ranks", "expected"),
    [
        (1, False, "1", 0),
        (2, False, "1", 1),
        (64, False, "1", 2),
        (16, True, "1", 15),
        (128, True, "8", 15),
        (256, True, "8", 16),
        (4, True, "8", 1),
    ],
)
def test_by_cores_and_device(
    monkeypatch: pytest.MonkeyPatch, cores: int, gpu: bool, ranks: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert default_workers() == LoaderConfig().num_workers == expected
    assert LoaderConfig(workers=3).num_workers == 3
