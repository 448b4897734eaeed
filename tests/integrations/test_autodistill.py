"""The base model of autodistill, whose `label` makes a YOLO folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import open_cloc
from open_cloc.errors import UserError
from tests.tiny import picture

autodistill = pytest.importorskip("autodistill", reason="autodistill is not installed: make test-hosts")

from autodistill.detection import CaptionOntology  # noqa: E402

from open_cloc.integrations.autodistill import OpenCLOC  # noqa: E402

PROMPTS = {"a dog": "pet", "a mat": "thing", "two red cats": "pet"}


@pytest.fixture(scope="module")
def model(weights: str) -> OpenCLOC:
    return OpenCLOC(CaptionOntology(PROMPTS), weights=weights, device="cpu")


def test_prompts_are_found_and_named_by_their_classes(model: OpenCLOC, weights: str) -> None:
    found = model.predict(Image.fromarray(picture()))
    expected = open_cloc.load(weights, "cpu").detections(picture(), list(PROMPTS))
    np.testing.assert_array_equal(found.xyxy, expected.xyxy)
    np.testing.assert_array_equal(found.confidence, expected.confidence)
    assert found.class_id.tolist() == [0, 1, 0]
    assert found.data["class_name"].tolist() == ["pet", "thing", "pet"]


def test_paths_and_opencvs_arrays_are_the_same_picture(model: OpenCLOC, photos: Path) -> None:
    of_path = model.predict(str(photos / "0.png"))
    of_array = model.predict(picture(seed=0)[..., ::-1])
    np.testing.assert_array_equal(of_path.data["embedding"], of_array.data["embedding"])


def test_label_writes_what_predict_finds(model: OpenCLOC, photos: Path, tmp_path: Path) -> None:
    dataset = model.label(str(photos), extension=".png", output_folder=str(tmp_path / "out"))
    assert len(dataset) == 3
    written = {path.stem: path for path in (tmp_path / "out").rglob("labels/?.txt")}
    assert sorted(written) == ["0", "1", "2"]
    rows = np.array([line.split() for line in written["1"].read_text().splitlines()], dtype=float)
    found = model.predict(picture(seed=1)[..., ::-1])
    assert rows[:, 0].tolist() == found.class_id.tolist()
    x, y, width, height = (rows[:, 1:] * [90, 50, 90, 50]).T
    corners = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=-1)
    np.testing.assert_allclose(corners, found.xyxy, atol=0.01)
    assert yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())["names"][:2] == ["pet", "thing"]


def test_least_scores_and_slices(weights: str) -> None:
    strict = OpenCLOC(CaptionOntology(PROMPTS), weights, min_score=1.01, device="cpu")
    assert len(strict.predict(picture())) == 0
    assert len(strict.sahi_predict(picture())) == 0


def test_the_page(run_the_page: Any, photos: Path) -> None:
    Image.fromarray(picture()).save(photos / "3.jpg")
    assert run_the_page("autodistill")["base"].ontology.classes() == ["mug", "mug", "dog"]
    assert len(list((photos.parent / "labelled").rglob("*.jpg"))) == 1


def test_wrong_orders(model: OpenCLOC, weights: str) -> None:
    with pytest.raises(UserError, match=r"ontology must be a CaptionOntology.*; got dict"):
        OpenCLOC(PROMPTS, weights)
    with pytest.raises(
        UserError, match="picture must be a path, bytes, a PIL image or an array; got NoneType"
    ):
        model.predict(None)  # what `cv2.imread` gives for a file that is no picture
