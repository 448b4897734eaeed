"""Signs of collapse, of embeddings whose state is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny_data import Samples
from torch import Tensor
from torch.nn import functional as F

from open_cloc.errors import UserError
from open_cloc.evaluation.collect import collect_regions
from open_cloc.evaluation.methods import open_method
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.run import evaluate
from open_cloc.evaluation.tasks.health import effective_rank, mean_cosine, modality_gap
from open_cloc.model.cloc import CLOC
from open_cloc.samples import Region, RegionSample


def test_mean_cosine_and_effective_rank_of_known_vectors() -> None:
    assert mean_cosine(torch.eye(4))[0] == pytest.approx(0)
    assert mean_cosine(torch.eye(4)[[1, 1, 1]])[0] == pytest.approx(1)
    assert mean_cosine(torch.eye(4)[[0, 0, 1]])[0] == pytest.approx(1 / 3)
    cross = torch.cat([torch.eye(4), -torch.eye(4)]).double()
    assert effective_rank(cross)[0] == pytest.approx(4)
    assert effective_rank(cross[[0, 1, 4, 5]])[0] == pytest.approx(2)
    assert effective_rank(cross[[0, 4]])[0] == pytest.approx(1, abs=1e-5)
    rank, influence = effective_rank(cross[[0, 0]])
    assert rank == 1  # nothing left to have a rank
    assert not influence.any()


def weighted_mean_cosine(rows: Tensor, weights: Tensor) -> Tensor:
    apart = weights[:, None] * weights * (1 - torch.eye(len(rows)))
    return (apart * (rows @ rows.T)).sum() / apart.sum()


def weighted_rank(rows: Tensor, weights: Tensor) -> Tensor:
    mean = (weights[:, None] * rows).sum(0) / weights.sum()
    singular = torch.linalg.svdvals(weights.sqrt()[:, None] * (rows - mean))
    shares = singular / singular.sum()
    return torch.special.entr(shares).sum().exp()


def weighted_gap(rows: Tensor, weights: Tensor) -> Tensor:
    return ((weights[:, None] * (rows - rows.roll(1, 1))).sum(0) / weights.sum()).norm()


@pytest.mark.parametrize(
    ("fast", "slow"),
    [
        (mean_cosine, weighted_mean_cosine),
        (effective_rank, weighted_rank),
        (lambda rows: modality_gap(rows, rows.roll(1, 1)), weighted_gap),
    ],
    ids=["mean_cosine", "effective_rank", "modality_gap"],
)
def test_influences_equal_differences(fast: Callable[..., Any], slow: Callable[..., Tensor]) -> None:
    """What a metric does when one row counts a little more, or a little less."""
    rows = F.normalize(torch.randn(12, 5, dtype=torch.float64), dim=1)
    value, influence = fast(rows)
    ones, step = torch.ones(12, dtype=torch.float64), 1e-5
    assert value == pytest.approx(slow(rows, ones).item())
    for row in range(12):
        change = torch.zeros(12, dtype=torch.float64)
        change[row] = step
        difference = (slow(rows, ones + change) - slow(rows, ones - change)) / (2 * step)
        assert influence[row].item() == pytest.approx(difference.item(), rel=1e-4, abs=1e-7)


def test_numbers_equal_loops(model: CLOC, samples: Samples) -> None:
    result = evaluate(model, samples, "region-health", EvaluationConfig(batch_size=2))
    method = open_method("prompter", model)
    with torch.inference_mode():
        found = collect_regions(method, samples, EvaluationConfig())
        texts = method.embed_texts(found.texts).numpy()
    rows, image = found.features.numpy(), found.image_index.numpy()
    apart = ~np.eye(len(rows), dtype=bool)
    cosines = rows @ rows.T
    pairs = [apart & (image == i)[:, None] & (image == i)[None] for i in range(9)]
    expected = {
        "mean_cosine": cosines[apart].mean(),
        "mean_cosine_in_image": np.mean([cosines[own].mean() for own in pairs if own.any()]),
        "mean_text_cosine": (rows * texts).sum(1).mean(),
        "modality_gap": np.linalg.norm(rows.mean(0) - texts.mean(0)),
        "repeated_text_share": np.mean([found.texts.count(text) > 1 for text in found.texts]),
    }
    singular = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
    shares = singular / singular.sum()
    expected["effective_rank"] = np.exp(-(shares * np.log(shares + 1e-30)).sum())
    assert result["metrics"] == pytest.approx(expected, rel=1e-3)
    assert result["protocol"]["num_images_with_two_regions"] == sum(own.any() for own in pairs)


def test_regions_must_have_company(model: CLOC, samples: Samples) -> None:
    lonely = [RegionSample("a", samples[0].image, regions=(Region((0, 0, 1, 1), "a"),))]
    with pytest.raises(UserError, match="an image with two regions; got none of 1"):
        evaluate(model, lonely, "region_health")


def test_repeated_texts_are_counted(model: CLOC, samples: Samples) -> None:
    texts = [region.text.lower() for sample in samples for region in sample.regions]
    expected = np.mean([texts.count(text) > 1 for text in texts])
    assert evaluate(model, samples, "region_health")["metrics"]["repeated_text_share"] == pytest.approx(
        expected
    )


def test_health_is_both_tasks(model: CLOC, samples: Samples) -> None:
    both = evaluate(model, samples, "health")
    for task in ("region_health", "prompt_gain"):
        alone = evaluate(model, samples, task)
        for name, value in alone["metrics"].items():
            assert both["metrics"][name] == pytest.approx(value)
            assert both["intervals"][name] == pytest.approx(alone["intervals"][name])
        assert both["protocol"][task]["num_regions"] == alone["protocol"]["num_regions"]


def test_a_text_tower_that_tells_nothing_apart_is_a_finding(model: CLOC, samples: Samples) -> None:
    """It is what health is asked for: numbers and a warning, where classification refuses."""
    with torch.no_grad():
        model.clip.text.ln_final.weight.zero_()
        model.clip.text.ln_final.bias.fill_(1.0)
    metrics = evaluate(model, samples, "health")["metrics"]
    assert abs(metrics["prompt_gain_whole_image"]) < 0.2
    with pytest.raises(UserError, match="has not learned to tell texts apart"):
        evaluate(model, samples, "zeroshot_region_classification")
