"""A CLOC model as a detector beside the predictor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from open_cloc.inference.predictor import Predictor
from open_cloc.labelling.cycle import CycleScorer
from open_cloc.labelling.detectors.cloc import relative_scores
from open_cloc.labelling.detectors.decode import CUT
from open_cloc.labelling.types import Detections, Failure
from tests.labelling.detectors.made import (
    PHRASES,
    ROUNDING,
    VOTES_PX,
    detector,
    picture,
    pictures,
)


def test_cloc_equals_the_predictor(folders: dict[str, Path]) -> None:
    own = detector(folders["cloc"], raw_score=0.0)
    predictor = Predictor(own.grounder.model)
    scale = own.grounder.model.clip.logit_scale.exp().item()
    for image, phrases, found in zip(pictures(), PHRASES, own(pictures(), PHRASES)):
        size = np.array([*image.shape[1::-1]] * 2)
        boxes_px = np.array([predictor.ground([phrase], image=image)[0][1] for phrase in phrases])
        regions = predictor.encode_regions(boxes_px, image=image)
        cosines = regions @ predictor.encode_text(phrases).T
        expected = np.exp(scale * (cosines - cosines.max()))
        best = expected.max(1)
        order = np.argsort(-best, kind="stable")
        np.testing.assert_allclose(found.scores, expected[order], atol=1e-4)
        for row, box in enumerate(found.boxes * size):  # phrases that score alike may have changed places
            alike = boxes_px[np.abs(best - best[order[row]]) < 1e-4]
            assert np.abs(alike - box).max(1).min() < VOTES_PX


def test_scores_of_a_sigmoid_model_are_its_own_probabilities(folders: dict[str, Path]) -> None:
    own = detector(folders["cloc"])
    model = own.grounder.model
    model.clip.logit_bias = torch.nn.Parameter(torch.tensor([-10.0]))
    image = picture((50, 80))
    (found,) = own([image], [["dog"]])
    ((_, _, cosine),) = Predictor(model).ground(["dog"], image=image)
    logit = model.clip.logit_scale.exp().item() * cosine - 10
    np.testing.assert_allclose(found.scores, [[1 / (1 + np.exp(-logit))]], atol=1e-5)


def test_relative_scores_by_hand() -> None:
    scores = relative_scores(torch.tensor([[3.0, 1.0], [0.0, 2.0]]))
    np.testing.assert_allclose(scores, [[1, np.exp(-2)], [np.exp(-3), np.exp(-1)]], atol=1e-6)


@pytest.mark.parametrize("broken", ["box_head.2.bias", "project.weight"])
def test_cloc_without_finite_numbers_is_a_failure(folders: dict[str, Path], broken: str) -> None:
    own = detector(folders["cloc"])
    own.grounder.model.prompter.get_parameter(broken).data.fill_(torch.nan)
    found = own([picture((50, 80))] * 2, [["dog", "cat"], []])
    assert isinstance(found[0], Failure)
    assert isinstance(found[1], Detections)


def test_a_cloc_detector_knows_its_own_cycle_score(folders: dict[str, Path]) -> None:
    images, phrases = pictures()[:4], PHRASES[:4]
    found = detector(folders["cloc"])(images, phrases)
    expected = CycleScorer(str(folders["cloc"]), "cpu")(images, phrases)
    for own, cosines in zip(found, expected, strict=True):
        np.testing.assert_allclose(own.cycle, cosines, atol=1e-5)


def test_long_phrases_keep_their_last_words_and_are_counted(folders: dict[str, Path]) -> None:
    own = detector(folders["cloc"], raw_score=0.0)
    image, most = picture((50, 80)), own.grounder.model.tokenize.context_length
    long = " ".join(["red"] * most + ["dog"])
    cut, whole = own([image] * 2, [[long, "cat"], ["dog", "cat"]])
    assert cut.dropped == {CUT: 1}
    assert whole.dropped == {}
    (short, is_cut), (kept, is_kept) = own.grounder.shorten(long), own.grounder.shorten("a red dog")
    assert (short.split()[-1], len(short.split()), is_cut) == ("dog", most - 2, True)
    assert (kept, is_kept) == ("a red dog", False)
    scored = own([image], [[short, "cat"]])[0]
    np.testing.assert_allclose(cut.scores, scored.scores, atol=ROUNDING)
