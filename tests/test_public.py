"""The names of the package itself: all there, and nothing heavy before one is used."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

import open_cloc

HEAVY = ("torch", "numpy", "open_clip", "transformers", "tyro", "PIL")


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = f"import sys, open_cloc; dir(open_cloc); print([n for n in {HEAVY} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", [*open_cloc.__all__, "__version__"])
def test_every_name_is_there(name: str) -> None:
    assert getattr(open_cloc, name) is not None
    assert name in dir(open_cloc)


def test_the_version_is_the_installed_one() -> None:
    assert open_cloc.__version__ == metadata.version("open-cloc")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'open_cloc' has no attribute 'losses'"):
        _ = open_cloc.losses


@torch.no_grad()
def test_a_model_is_made_saved_and_loaded(tiny_model_cfg: dict[str, Any], tmp_path: Path) -> None:
    made = open_cloc.create_model(tiny_model_cfg, prompter={"box_prior": True}, device="cpu")
    assert isinstance(made, open_cloc.CLOC)
    made.save_pretrained(tmp_path / "model")
    predictor = open_cloc.load(tmp_path / "model", device="cpu", dtype="bf16")
    assert isinstance(predictor, open_cloc.Predictor)
    assert predictor.encode_text(["a dog"]).dtype == "float32"
