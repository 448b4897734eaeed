"""What tests of all hosts share: a model folder, pictures of noise on disk, and the page's own code."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.tiny import picture, tiny_model

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "integrations.md"


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a model with random weights, in which no two parts are alike."""
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    folder = tmp_path_factory.mktemp("hosts") / "model"
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Folder of three pictures of 50 x 90, without loss."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(3):
        Image.fromarray(picture(seed=seed)).save(folder / f"{seed}.png")
    return folder


def blocks_of_the_page(heading: str, language: str) -> list[str]:
    """Code of one language under a heading of the page on integrations."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


@pytest.fixture
def run_the_page(
    weights: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Run Python blocks under a heading, beside `photos` and `photo.jpg`; gives the names that they made."""

    def run(heading: str, blocks: slice = slice(None)) -> dict[str, Any]:
        monkeypatch.chdir(photos.parent)
        Image.fromarray(picture(190, 210)).save("photo.jpg")
        names: dict[str, Any] = {"__name__": "page"}
        for code in blocks_of_the_page(heading, "python")[blocks]:
            exec(compile(code.replace("path/to/model", weights), heading, "exec", dont_inherit=True), names)
        return names

    return run
