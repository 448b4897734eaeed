"""Choosing a detector: wrong settings, models that are none, missing weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from open_cloc.labelling.detectors import open_detector
from open_cloc.labelling.recipe import DetectorConfig
from tests.labelling.detectors.made import (
    TYPES,
    detector,
    make_owl,
)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"weights": "/nowhere/at/all"}, FileNotFoundError, "no folder /nowhere/at/all"),
        ({"weights": "nobody/nothing"}, FileNotFoundError, "nobody/nothing"),
        ({"kind": "magic"}, ValueError, "unknown detect.kind 'magic'; expected one of owlv2, owlvit"),
        ({"precision": "fp8"}, ValueError, "auto, fp32, tf32, bf16"),
        ({"prompt": "dog"}, ValueError, "prompt"),
        ({"raw_score": 2}, ValueError, "raw_score"),
        ({"max_boxes": 0}, ValueError, "max_boxes"),
        ({"image_size": -1}, ValueError, "image_size"),
        ({"revision": "main"}, ValueError, "hub"),
        ({"kind": "cloc"}, ValueError, "holds a owlv2 model; detect.kind cloc is for cloc"),
    ],
)
def test_wrong_settings_are_one_sentence(
    folders: dict[str, Path], changes: Any, error: type[Exception], message: str
) -> None:
    config = replace(DetectorConfig(weights=str(folders["owlv2"])), **changes)
    with pytest.raises(error, match=message) as caught:
        open_detector(config, "cpu")
    assert "\n" not in str(caught.value)


def test_models_that_are_no_detectors(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"bert model.*grounding-dino, mm-grounding-dino.*owlv2, owlvit"):
        open_detector(DetectorConfig(weights=str(tmp_path)), "cpu")
    for name in ("grounding-dino", "cloc"):
        with pytest.raises(ValueError, match="image_size is for OWL models"):
            open_detector(DetectorConfig(weights=str(folders[name]), image_size=96), "cpu")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "owlv2"}))
    with pytest.raises(FileNotFoundError, match="safetensors"):
        open_detector(DetectorConfig(weights=str(tmp_path)), "cpu")


def test_the_architecture_that_is_named_is_the_one_that_the_weights_name(folders: dict[str, Path]) -> None:
    for name in [*TYPES, "cloc"]:
        named = open_detector(DetectorConfig(kind=name, weights=str(folders[name])), "cpu")
        found = open_detector(DetectorConfig(weights=str(folders[name])), "cpu")
        assert type(named) is type(found)
        assert named.provenance == found.provenance


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_owl(tmp_path / "owlvit", "owlvit")
    state = load_file(folder / "model.safetensors")
    del state["class_head.dense0.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 tensors.*class_head.dense0.weight"):
        detector(folder)
