"""A picture looked at once: lists, masks, whole pictures, threads, and answers as JSON."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from open_cloc.errors import UserError
from open_cloc.inference.answer import Answer, FoundPhrase, Label, NamedRegion
from open_cloc.inference.encoded import EncodedImage
from open_cloc.inference.predictor import Predictor
from tests.tiny import BOXES, PROMPTERS, picture, tiny_model

LABELS = ["a dog", "a cat", "two trees"]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(tiny_model())


@pytest.fixture(scope="module")
def image(predictor: Predictor) -> EncodedImage:
    return predictor.encode(picture(50, 90))


def test_a_list_is_one_pass_and_equals_each_alone(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [picture(50, 90), picture(90, 50, seed=1), picture(7, 300, seed=2)]
    alone = [predictor.encode(pixels) for pixels in pictures]
    real, sizes = predictor.model.encode_image, []
    monkeypatch.setattr(
        predictor.model,
        "encode_image",
        lambda images, boxes: sizes.append(len(images)) or real(images, boxes),
    )
    together = predictor.encode(pictures)
    assert sizes == [3]
    assert predictor.encode([]) == []
    for one, other, pixels in zip(alone, together, pictures, strict=True):
        assert one.size_hw == other.size_hw == pixels.shape[:2]
        box = [[0, 0, pixels.shape[1] / 2, pixels.shape[0]]]
        np.testing.assert_allclose(one.embed(), other.embed(), atol=1e-5)
        np.testing.assert_allclose(one.embed(box), other.embed(box), atol=1e-5)
        for (_, a, score), (_, b, other_score) in zip(
            one.find(LABELS, candidates=0), other.find(LABELS, candidates=0)
        ):
            np.testing.assert_allclose(a, b, atol=1e-2)
            assert score == pytest.approx(other_score, abs=1e-4)


def test_a_picture_of_a_list_does_not_keep_the_others(predictor: Predictor) -> None:
    first, _ = predictor.encode([picture(), picture(seed=1)])
    tokens = first.state.image_tokens
    assert tokens.untyped_storage().nbytes() == tokens.numel() * tokens.element_size()


def test_bytes_are_pictures(predictor: Predictor, image: EncodedImage) -> None:
    stream = io.BytesIO()
    Image.fromarray(picture(50, 90)).save(stream, "PNG")
    np.testing.assert_array_equal(predictor.encode(stream.getvalue()).embed(), image.embed())


def test_nothing_changes_an_encoded_picture(image: EncodedImage) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        image.geometry = None  # type: ignore[misc, assignment]
    assert "tensor" not in repr(image)


@pytest.mark.parametrize("prompter", ["mean", "prompt"])
def test_a_mask_that_fills_a_box_is_the_box(prompter: str) -> None:
    image = Predictor(tiny_model(prompter)).encode(picture(50, 90))
    boxes = [[3, 5, 40, 31], [0, 0, 90, 50], [88, 48, 90, 50]]
    masks = np.zeros((3, 50, 90), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes):
        mask[y1:y2, x1:x2] = True
    np.testing.assert_allclose(image.embed(masks=masks), image.embed(boxes), atol=1e-5)
    named = image.classify(LABELS, masks=masks)
    np.testing.assert_allclose([region.box for region in named], boxes, atol=1e-6)
    upper_left = np.add.outer(np.arange(50) / 50, np.arange(90) / 90) < 0.5
    half = masks[:1] & upper_left
    assert np.abs(image.embed(masks=half) - image.embed(boxes[:1])).max() > 1e-3
    assert image.embed(masks=[]).shape == (0, 32)


def test_empty_masks_and_two_kinds_at_once_are_refused(image: EncodedImage) -> None:
    with pytest.raises(ValueError, match="must cover something; got an empty one in row 0"):
        image.embed(masks=np.zeros((1, 50, 90), bool))
    with pytest.raises(ValueError, match="boxes, masks or points, not several"):
        image.embed(BOXES, masks=np.ones((1, 50, 90), bool))


def test_without_regions_the_whole_picture_is_meant(predictor: Predictor, image: EncodedImage) -> None:
    assert image.embed().shape == (32,)
    (named,) = image.classify(LABELS)
    assert named.box == (0, 0, 90, 50)
    cosines = predictor.encode_text(LABELS) @ image.embed()
    assert [label for label, _ in named.labels] == [LABELS[i] for i in np.argsort(-cosines)]
    assert sum(score for _, score in named.labels) == pytest.approx(1)


def test_phrases_below_a_score_are_left_out(image: EncodedImage) -> None:
    everything = image.find(LABELS, candidates=0)
    assert [found.phrase for found in everything] == LABELS
    middle = sorted(found.score for found in everything)[1]
    assert image.find(LABELS, candidates=0, min_score=middle) == [f for f in everything if f.score >= middle]
    assert image.find(LABELS, candidates=0, min_score=1.1) == []


@pytest.mark.parametrize("prompter", PROMPTERS)
def test_threads_get_what_each_gets_alone(prompter: str) -> None:
    """Many threads, two pictures, one predictor that has seen no text yet."""

    def ask(predictor: Predictor, pixels: np.ndarray, labels: list[str]) -> tuple[Any, ...]:
        image = predictor.encode(pixels)
        box = [[0, 0, pixels.shape[1] / 2, pixels.shape[0] / 2]]
        scores = [score for region in image.classify(labels, box) for _, score in region.labels]
        found = image.find(labels, candidates=20)
        return image.embed(), image.embed(box), scores, [(*box, score) for _, box, score in found]

    questions = [(picture(50, 90), LABELS), (picture(64, 40, seed=1), [*LABELS[1:], "a red mat"])]
    alone = [ask(Predictor(tiny_model(prompter)), *question) for question in questions]
    shared = Predictor(tiny_model(prompter))
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, shared, *questions[i % 2]) for i in range(12)]
        for i, answer in enumerate(asked):
            for got, expected in zip(answer.result(), alone[i % 2], strict=True):
                np.testing.assert_allclose(got, expected, atol=1e-3)
    assert shared.texts.num_encoded == 4


def test_answers_are_tuples_and_json(image: EncodedImage) -> None:
    named = image.classify(LABELS, BOXES, top_k=2)
    found = image.find(LABELS[:1], candidates=0)
    ((phrase, (x1, y1, x2, y2), score),) = found
    document = Answer(image.size_hw, named, found).as_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["size"] == [90, 50]
    assert document["phrases"] == [{"phrase": phrase, "box": [x1, y1, x2, y2], "score": score}]
    box, labels = named[1]
    assert document["regions"][1] == {
        "box": list(box),
        "labels": [{"label": label, "score": score} for label, score in labels],
    }
    assert Answer((50, 90)).as_json() == {"size": [90, 50], "regions": [], "phrases": []}
    assert NamedRegion((0, 0, 1, 1), [Label("a", 0.5)]).labels == [("a", 0.5)]
    assert FoundPhrase("a", (0, 0, 1, 1), 0.5) == ("a", (0, 0, 1, 1), 0.5)


def test_labels_past_the_context_are_said_and_refused_where_they_are_alike(
    image: EncodedImage, predictor: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    long = "dog " * predictor.model.tokenize.context_length
    with caplog.at_level(logging.WARNING):
        image.classify(["a new text", f"one {long}"])
        image.classify(["a new text", f"one {long}"])
    (record,) = caplog.records  # a text is embedded once
    assert record.getMessage().startswith(
        "1 of 2 texts are longer than the 16 tokens this model reads, and lose"
    )
    with pytest.raises(UserError, match=r"of 'dog dog.* it reads the same: their ends are past its context"):
        image.classify([f"{long} by a tree", f"{long} in a car"])
    with pytest.raises(UserError, match="reads 'A cat' and 'a  cat' alike"):
        image.classify(["A cat", "a  cat"])
