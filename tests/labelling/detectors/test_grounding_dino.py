"""Grounding DINO beside the library's forward pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from open_cloc.labelling.detectors.canvas import Canvas
from open_cloc.labelling.types import Detections
from tests.labelling.detectors.made import (
    ROUNDING,
    detector,
    picture,
    plant,
)


def test_grounding_dino_equals_the_librarys_forward_pass(folders: dict[str, Path]) -> None:
    own = detector(folders["grounding-dino"])
    pixels = torch.randn(1, 3, 64, 96)
    phrases = ["a red dog", "cat", "two bird on the tree"]
    encoded = own.tokenizer("a red dog. cat. two bird on the tree.", return_tensors="pt")
    (caption,), cut = own._captions(phrases)
    assert caption.ids == encoded["input_ids"][0].tolist()
    with torch.inference_mode():
        output = own.model(
            pixel_values=pixels, input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]
        )
        (raw,) = own.raw(pixels, Canvas((64, 96), (64, 96)), [caption], [3])
    tokens = output.logits[0].sigmoid()
    expected = torch.stack([tokens[:, a:b].max(1).values for a, b in [(1, 4), (5, 6), (7, 12)]], dim=1)
    torch.testing.assert_close(raw.scores, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(raw.boxes, output.pred_boxes[0], atol=1e-6, rtol=0)
    assert expected.std() > 1e-3
    assert cut == 0


def test_a_picture_too_thin_for_the_queries_is_padded_and_masked(folders: dict[str, Path]) -> None:
    own = detector(folders["grounding-dino"])
    own.preprocess = replace(own.preprocess, size=(300, 300))
    own.min_area = 300 * 60
    plant(own)
    image = np.zeros((20, 400, 3), np.uint8)
    image[5:15, 100:300] = 255
    canvas = own.preprocess.canvas((20, 400), own.min_area)
    assert canvas == Canvas((15, 300), (60, 300))
    (found,) = own([image], [["dog"]])
    np.testing.assert_allclose(found.boxes[0] * [400, 20, 400, 20], [100, 5, 300, 15], atol=0.5)
    real = detector(folders["grounding-dino"])
    real.model.config.num_queries = real.model.model.config.num_queries = 10
    (found,) = real([picture((2, 400))], [["dog"]])  # 1 x 144 pixels without padding
    assert isinstance(found, Detections)


def test_each_pass_of_grounding_dino_scores_its_own_phrases(folders: dict[str, Path]) -> None:
    own = detector(folders["grounding-dino"])
    phrases = ["a red dog", "cat on the mat", "two small bird on the tree", "the blue car on the tree", "sky"]
    captions, _ = own._captions(phrases)
    assert [caption.phrases for caption in captions] == [[0, 1, 2], [3, 4]]
    assert all(len(caption.ids) <= own.max_tokens for caption in captions)
    image = picture((50, 80))
    (whole,) = own([image], [phrases])
    parts = own([image, image], [phrases[:3], phrases[3:]])
    expected = np.zeros((20, 5), np.float32)
    expected[:10, :3], expected[10:, 3:] = parts[0].scores, parts[1].scores
    order = np.argsort(-expected.max(1), kind="stable")
    np.testing.assert_allclose(whole.scores, expected[order], atol=1e-5)


def test_separators_inside_a_phrase_do_not_split_it(folders: dict[str, Path]) -> None:
    own = detector(folders["grounding-dino"])
    image = picture((50, 80))
    dotted, plain, nothing = own([image] * 3, [["red . dog ?", "cat"], ["red dog", "cat"], [". ?", "cat"]])
    np.testing.assert_allclose(dotted.scores, plain.scores, atol=ROUNDING)
    assert (nothing.scores[:, 0] == 0).all()
    assert (nothing.scores[:, 1] > 0).any()
