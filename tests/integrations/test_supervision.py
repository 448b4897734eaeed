"""`Predictor.detections` in supervision's own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import open_cloc
from open_cloc.errors import UserError
from open_cloc.inference.encoded import EncodedImage
from open_cloc.inference.predictor import Predictor
from tests.tiny import picture

PHRASES = ["a dog", "two red cats", "a mat"]


@pytest.fixture(scope="module")
def predictor(weights: str) -> Predictor:
    return open_cloc.load(weights, "cpu")


@pytest.fixture(scope="module")
def sv() -> Any:
    return pytest.importorskip("supervision")


def test_a_detection_is_a_found_phrase_and_its_embedding(sv: Any, predictor: Predictor) -> None:
    found = predictor.detections(picture(), PHRASES)
    assert isinstance(found, sv.Detections)
    image = predictor.encode(picture())
    expected = image.find(PHRASES)
    boxes = [each.box for each in expected]
    np.testing.assert_allclose(found.xyxy, boxes, atol=1e-4)
    np.testing.assert_allclose(found.confidence, [each.score for each in expected], atol=1e-6)
    assert found.class_id.tolist() == [0, 1, 2]
    assert found.data["class_name"].tolist() == PHRASES
    np.testing.assert_allclose(found.data["embedding"], image.embed(boxes), atol=1e-6)
    cosines = (found.data["embedding"] * predictor.encode_text(PHRASES)).sum(-1)
    np.testing.assert_allclose(found.confidence, cosines, atol=1e-4)


def test_classes_are_places_in_the_phrases_whatever_is_left_out(sv: Any, predictor: Predictor) -> None:
    all_of_them = predictor.detections(picture(), PHRASES)
    worst = int(all_of_them.confidence.argmin())
    least = np.sort(all_of_them.confidence)[1]
    found = predictor.detections(picture(), PHRASES, min_score=float(least))
    others = [place for place in range(3) if place != worst]
    assert found.class_id.tolist() == others
    assert found.data["class_name"].tolist() == [PHRASES[place] for place in others]
    np.testing.assert_array_equal(found.data["embedding"], all_of_them.data["embedding"][others])


def test_nothing_found_merges_with_what_is(sv: Any, predictor: Predictor) -> None:
    none = predictor.detections(picture(), PHRASES, min_score=1.01)
    assert none.xyxy.shape == (0, 4)
    assert none.data["embedding"].shape == (0, predictor.model.embed_dim)
    assert len(sv.Detections.merge([none, predictor.detections(picture(), PHRASES)])) == 3


def test_annotators_draw_it(sv: Any, predictor: Predictor) -> None:
    found = predictor.detections(picture(), PHRASES)
    canvas = Image.fromarray(picture())
    drawn = sv.LabelAnnotator().annotate(sv.BoxAnnotator().annotate(canvas.copy(), found), found)
    assert np.any(np.asarray(drawn) != picture())


def test_opencvs_arrays(sv: Any, predictor: Predictor) -> None:
    rgb = predictor.detections(picture(), PHRASES)
    bgr = predictor.detections(picture()[..., ::-1], PHRASES, bgr=True)
    np.testing.assert_array_equal(rgb.data["embedding"], bgr.data["embedding"])
    wrong = predictor.detections(picture()[..., ::-1], PHRASES)
    assert np.abs(rgb.data["embedding"] - wrong.data["embedding"]).max() > 1e-3
    of_pil = predictor.detections(Image.fromarray(picture()), PHRASES, bgr=True)
    np.testing.assert_array_equal(rgb.data["embedding"], of_pil.data["embedding"])


def test_the_slicer_asks_each_tile(sv: Any, predictor: Predictor) -> None:
    wide = picture(50, 100)[..., ::-1]
    slicer = sv.InferenceSlicer(
        callback=lambda tile: predictor.detections(tile, PHRASES, bgr=True),
        slice_wh=(50, 50),
        overlap_wh=(0, 0),
        overlap_filter=sv.OverlapFilter.NONE,
        thread_workers=1,
    )
    found = slicer(np.ascontiguousarray(wide))
    left = predictor.detections(wide[:, :50], PHRASES, bgr=True)
    right = predictor.detections(wide[:, 50:], PHRASES, bgr=True)
    np.testing.assert_allclose(found.xyxy, [*left.xyxy, *(right.xyxy + np.array([50, 0, 50, 0]))], atol=1e-4)
    np.testing.assert_allclose(
        found.data["embedding"], [*left.data["embedding"], *right.data["embedding"]], atol=1e-6
    )


def test_the_page(sv: Any, run_the_page: Any) -> None:
    names = run_the_page("supervision", slice(1))
    assert names["found"].data["embedding"].shape == (len(names["found"]), 32)
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    assert isinstance(run_the_page("supervision")["slicer"], sv.InferenceSlicer)


def test_a_box_without_area_is_no_detection(
    sv: Any, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = EncodedImage.find

    def flat(self: EncodedImage, phrases: list[str], **options: Any) -> list[Any]:
        first, *others = find(self, phrases, **options)
        return [first._replace(box=(3.0, 0.0, 3.0, 9.0)), *others]

    monkeypatch.setattr(EncodedImage, "find", flat)
    assert predictor.detections(picture(), PHRASES).class_id.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ((picture(), []), "phrases must hold at least one text; got none"),
        ((picture(), "a dog"), "phrases must be a list of strings; got str"),
        ((picture()[..., 0], PHRASES), r"picture as an array must be \(H, W, 3\) uint8 RGB"),
        ((picture().astype(float), PHRASES), "uint8 RGB; got float64"),
        ((Path("nowhere.png"), PHRASES), "picture not found: nowhere.png"),
    ],
)
def test_wrong_orders(sv: Any, predictor: Predictor, asked: tuple[Any, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        predictor.detections(*asked, bgr=True)
    assert "\n" not in str(caught.value)
