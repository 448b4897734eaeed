"""OWL-ViT and OWLv2 beside the library's forward pass."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from open_cloc.labelling.detectors.texts import TextCache
from tests.labelling.detectors.made import (
    PHRASES,
    SIZE,
    detector,
    make_owl,
    picture,
)


@pytest.mark.parametrize("model_type", ["owlv2", "owlvit"])
def test_owl_equals_the_librarys_forward_pass(folders: dict[str, Path], model_type: str) -> None:
    own = detector(folders[model_type])
    pixels = torch.randn(8, 3, SIZE, SIZE)
    most = max(map(len, PHRASES))
    ids = torch.zeros(8, most, 8, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, phrases in enumerate(PHRASES):
        encoded = own.tokenizer(phrases, padding="max_length", max_length=8, return_tensors="pt")
        ids[row, : len(phrases)], mask[row, : len(phrases)] = encoded["input_ids"], encoded["attention_mask"]
    with torch.inference_mode():
        expected = own.model(ids.flatten(0, 1), pixels, mask.flatten(0, 1))
        for _ in range(2):  # the second time all texts come from the cache
            raw = own.raw(pixels, PHRASES)
            for row, phrases in enumerate(PHRASES):
                scores = expected.logits[row, :, : len(phrases)].sigmoid()
                torch.testing.assert_close(raw[row].scores, scores, atol=1e-5, rtol=0)
                torch.testing.assert_close(raw[row].boxes, expected.pred_boxes[row], atol=1e-5, rtol=0)
    assert own.text_cache.num_encoded == len({phrase for phrases in PHRASES for phrase in phrases})
    assert expected.logits[0, :, 0].sigmoid().std() > 1e-3  # or the comparison would say nothing


def test_a_picture_size_that_is_not_the_models_own(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = make_owl(tmp_path / "owlv2", "owlv2")
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 96, "width": 96}}))
    own = detector(folder)
    raw = own.raw(torch.randn(2, 3, 96, 96), [["dog"]] * 2)
    assert raw[0].boxes.shape == (36, 4)
    (found,) = own([picture((30, 60))], [["dog"]])
    assert len(found.boxes)
    assert detector(folders["owlv2"]).provenance["preprocess"]["pad_value"] == 0.0
    asked = detector(folders["owlv2"], image_size=96)
    assert asked.provenance["preprocess"] == own.provenance["preprocess"]
    (same,) = asked([picture((30, 60))], [["dog"]])
    np.testing.assert_array_equal(same.boxes, found.boxes)


@pytest.mark.parametrize("model_type", ["owlv2", "owlvit"])
def test_phrases_in_passes_of_one_size(folders: dict[str, Path], model_type: str) -> None:
    """As on a GPU: what a phrase becomes does not depend on the others, nor on its place among them."""
    own, alone = detector(folders[model_type]), detector(folders[model_type])
    own.text_cache = TextCache(own._encode_texts, at_once=8)
    texts = ["dog", "red car", "dog on a car", "car"]
    together = own.text_cache.get(texts)
    turned = TextCache(own._encode_texts, at_once=8).get(texts[::-1]).flip(0)
    torch.testing.assert_close(turned, together, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(together, alone.text_cache.get(texts), rtol=1e-5, atol=1e-6)
