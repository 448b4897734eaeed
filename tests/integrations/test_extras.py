"""Hosts stay out of everybody's way: nobody imports them, and one that is missing is told in one line."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

import open_cloc
from open_cloc.cli.doctor import ENABLES
from open_cloc.errors import UserError
from open_cloc.integrations import fiftyone
from tests.test_style import area_of, graph, imports_of
from tests.tiny import picture

HOSTS = ("supervision", "autodistill", "fiftyone", "cvat", "lancedb")
ROOT = Path(__file__).resolve().parents[2]


def test_nobody_imports_a_host() -> None:
    edges = graph(imports_of)
    assert any(area_of(module) == "integrations" for module in edges)
    importers = {
        module
        for module, uses in edges.items()
        if any(area_of(used) == "integrations" != area_of(module) for used in uses)
    }
    assert importers == set()


def test_each_host_has_an_extra_and_a_section() -> None:
    page = (ROOT / "docs" / "guides" / "integrations.md").read_text(encoding="utf-8")
    sections = [heading.lower() for heading in re.findall(r"^## (\w+)$", page, flags=re.MULTILINE)]
    assert sections == list(HOSTS)
    extras = [{"lancedb": "index"}.get(host, host) for host in HOSTS]
    assert set(extras) <= set(ENABLES)


@pytest.mark.parametrize(
    ("module", "hidden", "extra"),
    [
        ("autodistill", "roboflow", "autodistill"),
        ("cvat", "cvat_sdk.auto_annotation", "cvat"),
        ("fiftyone.model", "fiftyone.core.labels", "fiftyone"),
        ("lancedb", "lancedb.embeddings", "index"),
    ],
)
def test_a_host_that_is_missing(
    module: str, hidden: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"open_cloc.integrations.{module}"
    monkeypatch.setitem(sys.modules, hidden, None)
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(UserError, match=rf"is needed here.*pip install 'open-cloc\[{extra}\]'") as caught:
        importlib.import_module(name)
    assert "\n" not in str(caught.value)


def test_supervision_is_missing(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match=r"'supervision' is needed.*pip install 'open-cloc\[supervision\]'"):
        open_cloc.load(weights, "cpu").detections(picture(), ["a dog"])


def test_fiftyone_is_missing_where_its_zoo_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(UserError, match=r"'fiftyone' is needed.*pip install 'open-cloc\[fiftyone\]'"):
        fiftyone.add_to_zoo()
