"""What a run says of its health, against the plain sums, and that looking changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from open_cloc.objectives import Objectives
from open_cloc.samples import Features
from open_cloc.training.health import health_of, separable
from open_cloc.training.loop import train
from open_cloc.training.recipe import Recipe
from tests.training.tiny_recipes import assert_same_run, with_run


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def features_of(seed: int = 0) -> Features:
    """Four images of three regions, some masked, a text that repeats, and one image with one region."""
    draw = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw).requires_grad_()

    texts = randn(4, 3, 8)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 0, 1]]).bool()
    ids = torch.tensor([[1, 2, 3], [4, 1, 0], [5, 0, 0], [6, 0, 6]])
    regions = (texts.detach() + 0.3 * torch.randn(4, 3, 8, generator=draw)).requires_grad_()
    return Features(
        image_features=randn(4, 8),
        text_features=randn(4, 8),
        caption_mask=torch.tensor([True, True, True, False]),
        region_features=regions,
        region_text_features=texts,
        region_mask=mask,
        region_text_ids=ids,
        pred_boxes=torch.rand(4, 3, 4, generator=draw).sort(-1).values.requires_grad_(),
        boxes=torch.rand(4, 3, 4, generator=draw).sort(-1).values,
        logit_scale=torch.tensor([10.0], requires_grad=True),
    )


def test_numbers_are_those_of_plain_loops() -> None:
    features, objectives = separable(features_of()), Objectives()
    losses = objectives(features)
    found = {n: v.item() for n, v in health_of(features, losses, objectives.terms).items()}
    images = F.normalize(features.image_features, dim=-1)
    pairs = [float(images[i] @ images[j]) for i in range(4) for j in range(4) if i != j]
    assert found["image_cosine"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)
    captions = F.normalize(features.text_features, dim=-1)
    gap = (images[:3].mean(0) - captions[:3].mean(0)).norm()
    assert found["image_modality_gap"] == pytest.approx(float(gap), abs=1e-5)
    places = [(i, r) for i in range(4) for r in range(3) if features.region_mask[i, r]]
    regions = F.normalize(features.region_features, dim=-1)
    texts = F.normalize(features.region_text_features, dim=-1)
    ids = features.region_text_ids

    def named(place: tuple[int, int]) -> int:
        return int(ids[max(places, key=lambda other: float(regions[place] @ texts[other]))])

    own, others = [], []
    for image, row in places:
        real = [r for r in range(3) if features.region_mask[image, r]]
        neighbour = real[(real.index(row) + 1) % len(real)]
        if ids[image, row] != ids[image, neighbour]:
            own.append(named((image, row)) == ids[image, row])
            others.append(named((image, neighbour)) == ids[image, row])
    assert len(own) == 5
    assert found["region_acc"] == pytest.approx(sum(own) / len(own))
    assert found["prompt_gain"] == pytest.approx(sum(own) / len(own) - sum(others) / len(others))
    assert found["repeated_text_share"] == pytest.approx(4 / len(places))
    for term in objectives.terms:
        again = separable(features_of())
        reached = [t for t in again.tensors().values() if t.requires_grad]
        pulls = torch.autograd.grad(objectives(again)[term.label], reached, allow_unused=True)
        norm = torch.stack([p.norm() for p in pulls if p is not None]).norm()
        assert found[f"pull_{term.label}"] == pytest.approx(float(norm), rel=1e-4)


def test_a_batch_without_regions_or_captions_says_what_it_can() -> None:
    bare = Features(image_features=torch.randn(2, 8), caption_mask=torch.tensor([False, False]))
    assert health_of(bare, {}, ()) == {}
    empty = features_of()
    empty = Features(**{**vars(empty), "region_mask": torch.zeros(4, 3, dtype=torch.bool)})
    found = health_of(separable(empty), {}, ())
    assert found["prompt_gain"] == found["region_acc"] == found["repeated_text_share"] == 0
    assert found["region_modality_gap"].isnan()  # which is not logged


@pytest.mark.parametrize("accumulate", [1, 2])
def test_looking_changes_nothing_and_is_logged(tiny: Recipe, tmp_path: Path, accumulate: int) -> None:
    seen = with_run(tiny, samples=24, log_steps=2, health_steps=3, accumulate=accumulate)
    train(seen)
    train(with_run(seen, health_steps=0, output=str(tmp_path / "blind")))
    assert_same_run(seen.run.output, tmp_path / "blind", step=6)
    lines = read_log(Path(seen.run.output))
    with_health = [line["step"] for line in lines if "health/prompt_gain" in line]
    assert with_health == [4, 6]  # those of step 3 with the next line
    assert "health/pull_region_text" in lines[1]
    assert not any(key.startswith("health/") for line in read_log(tmp_path / "blind") for key in line)
