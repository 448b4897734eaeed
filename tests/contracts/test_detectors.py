"""What every detector keeps to, whatever its kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from open_cloc.labelling.detectors import DETECTORS, open_scaling
from open_cloc.labelling.detectors.decode import CUT
from open_cloc.labelling.recipe import DetectorConfig
from open_cloc.labelling.types import Detections
from tests.labelling.detectors.made import (
    PHRASES,
    ROUNDING,
    assert_equal_detections,
    detector,
    make_all,
    picture,
    pictures,
)

# Kinds that leave the cutting of long phrases to the model's own tokenizer.
UNCUT = ("cloc",)
# Kinds that choose their best queries, with random weights by a hair.
CHOOSING = ("grounding-dino", "mm-grounding-dino", "omdet-turbo")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_all(tmp_path_factory.mktemp("detectors"))


@pytest.fixture(params=DETECTORS)
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    """A checkpoint of each kind of the dict."""
    return folders[request.param]


def test_a_picture_says_the_same_alone_and_among_others(folder: Path) -> None:
    own = detector(folder)
    other = detector(folder)
    together = own(pictures(), PHRASES)
    assert sum(len(found.boxes) for found in together) >= 8
    for image, phrases, expected in zip(pictures(), PHRASES, together):
        (alone,) = other([image], [phrases])
        assert alone.scores.shape == (len(expected.boxes), len(phrases))
        assert_equal_detections(alone, expected)


def test_pictures_may_be_scaled_before_they_come(folder: Path) -> None:
    """On another processor, beside a GPU: not a bit of a label changes."""
    own = detector(folder)
    scale = open_scaling(own.config if hasattr(own, "config") else DetectorConfig(weights=str(folder)))
    if scale is None:
        pytest.skip("it scales pictures by itself")
    large = [np.repeat(np.repeat(image, 3, axis=0), 3, axis=1) for image in pictures()[:1]]
    scaled = [scale(image) for image in large]
    assert all(after.nbytes < before.nbytes for after, before in zip(scaled, large))
    for one, other in zip(own(large, PHRASES[:1]), own(scaled, PHRASES[:1])):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.scores, other.scores)


def test_boxes_lie_in_the_picture_and_scores_between_0_and_1(folder: Path) -> None:
    for found in detector(folder)(pictures(), PHRASES):
        assert isinstance(found, Detections)
        assert found.boxes.dtype == found.scores.dtype == np.float32
        for numbers in (found.boxes, found.scores):
            assert ((numbers >= 0) & (numbers <= 1)).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        assert (np.diff(found.scores.max(1)) <= 0).all()  # best first


def test_the_least_score_and_the_most_boxes_are_kept_to(folder: Path) -> None:
    everything = detector(folder)(pictures(), PHRASES)
    middle = float(np.median(np.concatenate([found.scores.max(1) for found in everything])))
    chosen = detector(folder, raw_score=middle, max_boxes=2)(pictures(), PHRASES)
    for found, whole in zip(chosen, everything, strict=True):
        above = whole.scores.max(1) > middle
        np.testing.assert_array_equal(found.boxes, whole.boxes[above][:2])


def test_phrases_and_pictures_make_a_difference(folder: Path) -> None:
    first, second = detector(folder)([picture((64, 64), 0), picture((64, 64), 1)], [["dog", "cat"]] * 2)
    assert np.abs(first.boxes[:1] - second.boxes[:1]).max() > 1e-4
    if folder.name != "cloc":
        assert np.abs(first.scores[:, 0] - first.scores[:, 1]).max() > 1e-4


def test_what_was_asked_before_changes_no_bit(folder: Path) -> None:
    """Or a run that was stopped and started again would not give the same bytes."""
    warm = detector(folder)
    warm(pictures()[::-1], PHRASES[::-1])
    for first, second in zip(warm(pictures(), PHRASES), detector(folder)(pictures(), PHRASES)):
        np.testing.assert_array_equal(first.scores, second.scores)
        np.testing.assert_array_equal(first.boxes, second.boxes)


def test_pictures_without_phrases_cost_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = detector(folder)
    images = pictures()[:3]
    alone = own([images[1]], [["dog"]])[0]
    mixed = own(images, [[], ["dog"], []])
    assert [found.boxes.shape for found in (mixed[0], mixed[2])] == [(0, 4)] * 2
    assert mixed[0].scores.shape == (0, 0)
    assert_equal_detections(mixed[1], alone)
    monkeypatch.setattr(own, "_detect", None)  # whoever calls it now fails
    assert [len(found.boxes) for found in own(images, [[], [], []])] == [0, 0, 0]
    assert own([], []) == []


def test_twenty_phrases(folder: Path) -> None:
    """More than the tiny Grounding DINO's 24 tokens hold: it needs several passes."""
    phrases = [
        f"{a} {b}" for a in ("red", "blue", "small", "two") for b in ("dog", "cat", "bird", "car", "tree")
    ]
    (found,) = detector(folder)([picture((50, 80))], [phrases])
    assert found.scores.shape[1] == 20
    assert (found.scores.max(0) > 0).all()
    assert found.dropped.get(CUT) is None


def test_long_phrases_keep_their_last_words_and_are_counted(folder: Path) -> None:
    if folder.name in UNCUT:
        pytest.skip("its tokenizer cuts")
    own = detector(folder)
    long = "the two small red blue red blue small two the a " * 3 + "dog on a small red mat"
    endless = " ".join(["red"] * 5000)
    most = own.max_tokens - (3 if "grounding-dino" in folder.name else 2)
    short = " ".join(long.split()[-most:])
    image = picture((50, 80))
    found, expected = own([image, image], [[long], [short]])
    assert found.dropped[CUT] == 1
    assert CUT not in expected.dropped
    # One question from two rows of a batch: products round by their place in it.
    np.testing.assert_allclose(found.scores, expected.scores, atol=ROUNDING)
    (found,) = own([image], [["dog", endless, long]])
    assert found.dropped[CUT] == 2
    assert found.scores.shape[1] == 3


def test_the_prompt_is_what_is_asked(folder: Path) -> None:
    image = picture((64, 64))
    (prompted,) = detector(folder, prompt="the red {}")([image], [["dog", "cat"]])
    (spelled,) = detector(folder)([image], [["the red dog", "the red cat"]])
    np.testing.assert_array_equal(prompted.scores, spelled.scores)


def test_provenance_is_json_and_tells_models_apart(folder: Path, tmp_path: Path) -> None:
    own = detector(folder, prompt="a {}")
    told = json.loads(json.dumps(own.provenance))
    assert told == own.provenance
    assert told["weights"] == str(folder)
    assert told["prompt"] == "a {}"
    assert {"sha256", "torch", "transformers", "raw_score", "max_boxes", "precision", "class"} <= set(told)
    shutil.copytree(folder, tmp_path / "same")
    assert detector(tmp_path / "same").provenance["sha256"] == told["sha256"]
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other/notes.txt").write_text("changed")
    assert detector(tmp_path / "other").provenance["sha256"] != told["sha256"]


def test_bf16_is_near_fp32(folder: Path) -> None:
    images, phrases = pictures()[:2], [["dog", "cat"]] * 2
    for exact, rough in zip(
        detector(folder)(images, phrases),
        detector(folder, precision="bf16")(images, phrases),
    ):
        assert rough.scores.dtype == np.float32
        if folder.name in CHOOSING:
            assert abs(exact.scores.max() - rough.scores.max()) < 0.1
            continue
        # A sliver at the border may be inside for one and outside for the other.
        wide = (exact.boxes[:, 2:] - exact.boxes[:, :2]).min(1) > 0.05
        apart = np.abs(exact.boxes[wide, None] - rough.boxes[None]).max(-1)  # (wide, N)
        assert wide.sum() >= 2
        assert apart.min(1).max() < 0.02
        assert np.abs(exact.scores[wide] - rough.scores[apart.argmin(1)]).max() < 0.1


def test_wrong_pictures_are_refused(folder: Path) -> None:
    own = detector(folder)
    with pytest.raises(ValueError, match="2 lists"):
        own([picture((9, 9))], [["dog"], ["cat"]])
    with pytest.raises(ValueError, match=r"uint8; got float64"):
        own([np.zeros((9, 9, 3))], [["dog"]])
    with pytest.raises(ValueError, match=r"\(9, 9\)"):
        own([np.zeros((9, 9), np.uint8)], [["dog"]])
    (tiny,) = own([np.zeros((1, 1, 3), np.uint8)], [["dog"]])
    assert isinstance(tiny, Detections)
