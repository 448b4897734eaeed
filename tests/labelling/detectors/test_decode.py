"""What the heads say may be anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from open_cloc.labelling.detectors.decode import CUT, keep_boxes
from open_cloc.labelling.recipe import DetectorConfig
from open_cloc.labelling.types import Failure
from tests.labelling.detectors.made import (
    assert_equal_detections,
    detector,
    picture,
)


def test_numbers_that_are_not_finite(folders: dict[str, Path]) -> None:
    own = detector(folders["owlv2"])
    images = [picture((64, 64), seed) for seed in range(3)]
    usual = own(images, [["dog"]] * 3)
    predict = own.model.class_predictor

    def broken(features, queries, mask):
        logits = predict(features, queries, mask)[0]
        logits[0] = torch.nan
        logits[1, :5] = torch.nan
        return (logits,)

    own.model.class_predictor = broken
    failed, partly, fine = own(images, [["dog"]] * 3)
    assert isinstance(failed, Failure)
    assert failed.cause == "detector gave no finite output"
    assert "16" in failed.message
    assert partly.dropped["not finite"] == 5
    assert np.isfinite(partly.scores).all()
    assert_equal_detections(fine, usual[2])


def test_keep_boxes_by_hand() -> None:
    nan, inf = float("nan"), float("inf")
    rows = [
        ((0.1, 0.2, 0.5, 0.6), (0.3, 0.1)),
        ((-0.5, 0.2, 0.5, 1.6), (0.2, 0.9)),  # clipped
        ((0.1, 0.2, 0.5, 0.6), (0.02, 0.01)),  # not above the threshold
        ((1.1, 0.2, 1.5, 0.6), (0.5, 0.1)),  # in the padding
        ((1.1, 0.2, 1.5, 0.6), (0.01, 0.0)),  # in the padding, but nobody asked
        ((0.5, 0.2, 0.5, 0.6), (0.5, 0.1)),  # no width
        ((0.5, nan, 0.6, 0.6), (0.5, 0.1)),
        ((0.5, 0.1, 0.6, 0.6), (inf, 0.1)),
        ((0.2, 0.2, 0.3, 0.3), (0.25, 0.4)),
        ((0.3, 0.2, 0.4, 0.3), (0.25, 0.4)),  # of equal scores the first
        ((0.4, 0.2, 0.5, 0.3), (0.35, 0.0)),
    ]
    boxes, scores = (torch.tensor(column) for column in zip(*rows))
    found = keep_boxes(boxes, scores, DetectorConfig(raw_score=0.02, max_boxes=3), cut=2)
    np.testing.assert_allclose(
        found.boxes, [(0, 0.2, 0.5, 1), (0.2, 0.2, 0.3, 0.3), (0.3, 0.2, 0.4, 0.3)], atol=1e-7
    )
    np.testing.assert_allclose(found.scores, [(0.2, 0.9), (0.25, 0.4), (0.25, 0.4)])
    assert found.boxes.dtype == found.scores.dtype == np.float32
    assert found.dropped == {
        "not finite": 2,
        "outside the picture": 1,
        "empty": 1,
        "beyond the best 3": 2,
        CUT: 2,
    }


def test_boxes_in_the_padding_are_dropped_and_counted(folders: dict[str, Path]) -> None:
    own = detector(folders["owlv2"])
    wide = picture((20, 80))
    (found,) = own([wide], [["dog"]])
    assert found.dropped["outside the picture"] > 0
    assert len(found.boxes) + found.dropped["outside the picture"] == 16
    assert ((found.boxes >= 0) & (found.boxes <= 1)).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
