"""Zero-shot classification and retrieval of whole images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_data import NAMES, Samples

from open_cloc.errors import UserError
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.run import evaluate
from open_cloc.inference.predictor import Predictor
from open_cloc.model.cloc import CLOC
from open_cloc.samples import RegionSample


def test_classification_labels_come_from_metadata_or_the_only_caption(model: CLOC, samples: Samples) -> None:
    expected = evaluate(model, samples, "zeroshot_classification")
    labelled = Samples(
        RegionSample(s.key, s.image, (), (), {"label": s.captions[0].upper()}) for s in samples
    )
    assert evaluate(model, labelled, "zeroshot_classification")["metrics"] == expected["metrics"]
    two = Samples([RegionSample("s0", samples[0].image, ("a", "b"))])
    with pytest.raises(UserError, match="exactly one caption"):
        evaluate(model, two, "zeroshot_classification")


def test_retrieval_with_several_captions_per_image_equals_loops(model: CLOC, samples: Samples) -> None:
    captions = [tuple(f"{name} number {i}" for name in NAMES[: 1 + i % 3]) for i in range(len(samples))]
    several = Samples(RegionSample(s.key, s.image, c) for s, c in zip(samples, captions))
    metrics = evaluate(model, several, "zeroshot_retrieval", EvaluationConfig(recall_k=(1, 3, 6)))["metrics"]
    predictor = Predictor(model)
    images = np.stack([predictor.encode_image(s.pixels()) for s in samples])
    owners = [i for i, own in enumerate(captions) for _ in own]
    scores = images @ predictor.encode_text([c for own in captions for c in own]).T  # (9, T)
    for k in (1, 3, 6):
        to_text = [any(owners[t] == i for t in np.argsort(-row)[:k]) for i, row in enumerate(scores)]
        to_image = [owner in np.argsort(-column)[:k] for owner, column in zip(owners, scores.T)]
        assert metrics[f"text_retrieval_recall@{k}"] == pytest.approx(np.mean(to_text))
        assert metrics[f"image_retrieval_recall@{k}"] == pytest.approx(np.mean(to_image))


def test_retrieval_is_clip_benchmarks(model: CLOC, samples: Samples) -> None:
    """Captions repeat, in a picture and in two: where the order of ties decides theirs, ours is between."""
    theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    captions = [
        (f"a {NAMES[i % 7]}", f"a {NAMES[i % 3]} {i}", f"a {NAMES[i % 7]}") for i in range(len(samples))
    ]
    ks = (1, 3, 6, 9)
    data = Samples(RegionSample(s.key, s.image, own) for s, own in zip(samples, captions))
    metrics = evaluate(model, data, "zeroshot_retrieval", EvaluationConfig(recall_k=ks))["metrics"]
    predictor = Predictor(model)
    images = torch.from_numpy(np.stack([predictor.encode_image(s.pixels()) for s in samples]))
    texts = torch.from_numpy(predictor.encode_text([text for own in captions for text in own]))
    owners = torch.arange(len(samples)).repeat_interleave(3)
    agreed = 0
    for name, scores, right in (
        ("image", texts @ images.T, owners[:, None] == torch.arange(len(samples))),
        ("text", images @ texts.T, torch.arange(len(samples))[:, None] == owners),
    ):
        for k in ks:
            one, other = (
                float((theirs.recall_at_k(scores[:, order], right[:, order], k) > 0).float().mean())
                for order in (torch.arange(scores.shape[1]), torch.arange(scores.shape[1]).flip(0))
            )
            low, high = sorted((one, other))
            assert low - 1e-6 <= metrics[f"{name}_retrieval_recall@{k}"] <= high + 1e-6
            agreed += one == other
    assert agreed >= 6


def test_rows_of_one_picture_are_one_image(model: CLOC, samples: Samples) -> None:
    """As open_clip's tables have a row for each caption."""
    each = Samples(
        RegionSample(f"{s.key}-{i}", s.image, (f"{s.captions[0]} {i}",)) for s in samples for i in "ab"
    )
    whole = Samples(
        RegionSample(s.key, s.image, tuple(f"{s.captions[0]} {i}" for i in "ab")) for s in samples
    )
    expected, found = (evaluate(model, data, "zeroshot_retrieval") for data in (whole, each))
    assert found["metrics"] == expected["metrics"]
    assert found["intervals"] == expected["intervals"]
    assert (found["protocol"]["num_samples"], found["protocol"]["num_images"]) == (
        2 * len(samples),
        len(samples),
    )
