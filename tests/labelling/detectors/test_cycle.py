"""The cycle score beside the predictor asked twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from open_cloc.inference.predictor import Predictor
from open_cloc.labelling.cycle import CycleScorer
from tests.labelling.detectors.made import (
    PHRASES,
    pictures,
)


def test_cycle_equals_the_predictor_asked_twice(folders: dict[str, Path]) -> None:
    scorer = CycleScorer(str(folders["cloc"]), "cpu")
    predictor = Predictor(scorer.grounder.model)
    images, phrases = pictures(), [*PHRASES[:4], [], *PHRASES[5:]]
    phrases[0] = [*phrases[0], phrases[0][0]]  # two boxes of the same phrase
    for image, own, scores in zip(images, phrases, scorer(images, phrases), strict=True):
        expected = [predictor.ground([phrase], image=image)[0][2] for phrase in own]
        np.testing.assert_allclose(scores, np.array(expected, np.float32), atol=1e-4)
    assert json.loads(json.dumps(scorer.provenance)) == scorer.provenance


def test_cycle_needs_a_cloc_model(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="must be a CLOC model"):
        CycleScorer(str(folders["owlv2"]), "cpu")
