"""The pointing game against a slow reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from open_cloc.errors import UserError
from open_cloc.evaluation.batches import evaluation_batches
from open_cloc.evaluation.methods import open_method
from open_cloc.evaluation.run import evaluate
from open_cloc.model.cloc import CLOC
from tests.evaluation.tiny_data import Samples


@torch.inference_mode()
def test_it_is_the_slow_reference(model: CLOC, samples: Samples) -> None:
    result = evaluate(model, samples, "pointing", method="roialign")
    method = open_method("roialign", model)
    hits = []
    for sample in samples:
        (batch,) = evaluation_batches(Samples([sample]), method.canvas)
        tokens = method.embed_tokens(batch)[0]  # type: ignore[attr-defined]
        height, width = sample.pixels().shape[:2]
        rows, columns = tokens.shape[:2]
        x1, y1, x2, y2 = batch.content_boxes[0].tolist()
        for text in dict.fromkeys(region.text for region in sample.regions):
            wanted = method.embed_texts([text])[0]
            best, where = -2.0, (0.0, 0.0)
            for row in range(rows):
                for column in range(columns):
                    x, y = (column + 0.5) / columns, (row + 0.5) / rows
                    score = float(tokens[row, column] @ wanted)
                    if x1 <= x <= x2 and y1 <= y <= y2 and score > best:
                        best, where = score, ((x - x1) / (x2 - x1), (y - y1) / (y2 - y1))
            boxes = [region.box for region in sample.regions if region.text == text]
            hits.append(any(a <= where[0] <= c and b <= where[1] <= d for a, b, c, d in boxes))
        assert height
        assert width
    assert result["metrics"]["pointing_acc"] == pytest.approx(np.mean(hits))
    assert 0 < np.mean(hits) < 1
    assert result["protocol"]["num_phrases"] == len(hits)


@torch.inference_mode()
def test_a_method_that_finds_boxes_points_at_their_centres(model: CLOC, samples: Samples) -> None:
    result = evaluate(model, samples, "pointing", method="prompter")
    method = open_method("prompter", model)
    hits = []
    for sample in samples:
        (batch,) = evaluation_batches(Samples([sample]), method.canvas)
        phrases = list(dict.fromkeys(region.text for region in sample.regions))
        if not phrases:
            continue
        found = method.ground(batch, [phrases]).boxes.numpy()  # type: ignore[attr-defined]
        for text, (x1, y1, x2, y2) in zip(phrases, found):
            x, y = (x1 + x2) / 2, (y1 + y2) / 2
            boxes = [region.box for region in sample.regions if region.text == text]
            hits.append(any(a <= x <= c and b <= y <= d for a, b, c, d in boxes))
    assert result["metrics"]["pointing_acc"] == pytest.approx(np.mean(hits))


def test_a_method_that_knows_no_place_is_refused(model: CLOC, samples: Samples) -> None:
    with pytest.raises(UserError, match="method crop has no embedding for each place"):
        evaluate(model, samples, "pointing", method="crop")
    with pytest.raises(UserError, match="no regions in its 1 images"):
        evaluate(model, Samples(samples[:1]), "pointing")
