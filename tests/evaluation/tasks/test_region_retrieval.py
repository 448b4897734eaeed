"""Three readings of region retrieval, written once more as loops over every region and its text."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_data import NAMES, Samples
from torch import Tensor

from open_cloc.errors import UserError
from open_cloc.evaluation.collect import collect_regions
from open_cloc.evaluation.methods import open_method
from open_cloc.evaluation.options import DUPLICATES, EvaluationConfig
from open_cloc.evaluation.run import evaluate
from open_cloc.evaluation.tasks.regions import RIGHT
from open_cloc.model.cloc import CLOC
from open_cloc.model.embed import embed_texts

KS = (1, 2, 5, 10)


def embedded(model: CLOC, samples: Samples) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(X, D) regions, (X, D) their texts, equal where texts are, and the texts."""
    with torch.inference_mode():
        found = collect_regions(open_method("prompter", model), samples, EvaluationConfig())
        names = sorted(set(found.texts))
        rows: Tensor = embed_texts(model, names)
    texts = rows[[names.index(text) for text in found.texts]]
    return found.features.double().numpy(), texts.double().numpy(), found.texts


def expected_recall(scores: np.ndarray, right: np.ndarray, k: int) -> float:
    """Mean over 4,000 random orders of entries that tie; right (Q, G) bool."""
    rng = np.random.default_rng(0)
    hits = []
    for row, own in zip(scores.round(5), right):  # equal texts differ by rounding here
        if len(set(row)) == len(row):
            hits.append(float(own[np.argsort(-row)[:k]].any()))
            continue
        orders = (np.lexsort((rng.random(len(row)), -row))[:k] for _ in range(4000))
        hits.append(float(np.mean([own[order].any() for order in orders])))
    return float(np.mean(hits))


@pytest.mark.parametrize("reading", DUPLICATES)
def test_a_reading_equals_its_loops(model: CLOC, samples: Samples, reading: str) -> None:
    regions, texts, names = embedded(model, samples)
    same = np.array([[one == other for other in names] for one in names])
    own = np.eye(len(names), dtype=bool)
    first = [names.index(name) for name in sorted(set(names))]
    to_text, to_region = regions @ texts.T, texts @ regions.T
    right_text, right_region = (own, own) if reading == "own" else (same, same)
    if reading == "merge":
        to_text, right_text = to_text[:, first], same[:, first]
        to_region, right_region = to_region[first], same[first]
    config = EvaluationConfig(recall_k=KS, duplicates=reading)  # type: ignore[arg-type]
    result = evaluate(model, samples, "region_retrieval", config)
    assert len(first) < len(names)
    for k in KS:
        found = result["metrics"]
        assert found[f"region_to_text_recall@{k}"] == pytest.approx(
            expected_recall(to_text, right_text, k), abs=0.01
        )
        assert found[f"text_to_region_recall@{k}"] == pytest.approx(
            expected_recall(to_region, right_region, k), abs=0.01
        )
    protocol = result["protocol"]
    assert (protocol["duplicates"], protocol["right"]) == (reading, RIGHT[reading])
    assert protocol["num_texts"] == (len(first) if reading == "merge" else len(names))
    assert (protocol["num_regions"], protocol["num_distinct_texts"]) == (len(names), len(first))
    assert set(result["intervals"]) == set(result["metrics"])


def test_the_papers_reading_is_the_default(model: CLOC, samples: Samples) -> None:
    """Every region against every region caption."""
    plain = evaluate(model, samples, "region_retrieval")
    assert plain["protocol"]["duplicates"] == "own"
    assert plain == evaluate(model, samples, "region_retrieval", EvaluationConfig(duplicates="own"))
    with pytest.raises(UserError, match="duplicates must be one of own, any, merge; got 'all'"):
        EvaluationConfig(duplicates="all")  # type: ignore[arg-type]


def test_readings_agree_where_no_text_repeats(model: CLOC, samples: Samples) -> None:
    seen: set[str] = set()
    for i, sample in enumerate(samples):
        kept = [r for r in sample.regions if not (r.text.lower() in seen or seen.add(r.text.lower()))]
        samples[i] = type(sample)(sample.key, sample.image, sample.captions, tuple(kept))
    assert len(seen) == len(NAMES)
    config = {reading: EvaluationConfig(recall_k=KS, duplicates=reading) for reading in DUPLICATES}  # type: ignore[arg-type]
    own, either, merged = (evaluate(model, samples, "region_retrieval", config[r]) for r in DUPLICATES)
    assert own["metrics"] == pytest.approx(either["metrics"])
    assert own["metrics"] == pytest.approx(merged["metrics"])
    assert own["intervals"] == either["intervals"] == merged["intervals"]
