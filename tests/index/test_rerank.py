"""Ranking again by the box that a phrase finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from open_cloc.boxes import iou
from open_cloc.errors import UserError
from open_cloc.index.region_index import RegionIndex
from open_cloc.index.rerank import OVERLAP_WEIGHT
from open_cloc.inference.predictor import Predictor
from tests.index.made import sample
from tests.tiny import picture


def test_scores_are_the_slow_reference(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    index = RegionIndex.build(tmp_path / "ix", predictor)
    files = sorted(photos.iterdir())
    index.add(
        [sample(number, image=file, key=file.name) for number, file in enumerate(files)], "grid:30", "labels"
    )
    query = index.text("a dog") + index.text("two red cats")
    before = index.search(query, 100, where="area < 0.5")
    spread = np.std([hit.score for hit in before])
    expected = {}
    for hit in before:
        found = predictor.encode(Path(hit.path)).find(["a dog", "two red cats"], candidates=0)
        overlaps = [float(iou(torch.tensor(one.box), torch.tensor(hit.box))) for one in found]
        gain = OVERLAP_WEIGHT * spread * sum(overlaps) / 2
        expected[hit.id] = hit.score + (gain if hit.source == "grid" else 0)
    assert {hit.source for hit in before} == {"grid", "made"}
    after = index.search(query, 7, where="area < 0.5", rerank=True)
    assert [hit.id for hit in after] == sorted(expected, key=lambda name: -expected[name])[:7]
    scores = {hit.id: hit.score for hit in before}
    np.testing.assert_allclose([hit.score for hit in after], [scores[hit.id] for hit in after], atol=1e-5)
    for hit in after:
        assert (hit.overlap is None) == (hit.source != "grid")


def test_a_second_phrase_never_runs_the_tower(
    predictor: Predictor, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = RegionIndex.build(tmp_path / "ix", predictor, tokens=tmp_path / "tokens")
    files = sorted(photos.iterdir())
    index.add([sample(number, image=file, key=file.name) for number, file in enumerate(files)], "grid:30")
    without = RegionIndex.open(tmp_path / "ix", predictor).search("a dog", rerank=True)

    def stop(*args: Any, **options: Any) -> None:
        raise AssertionError("the tower ran")

    monkeypatch.setattr(predictor.model, "encode_image", stop)
    for file in files:  # nor is the picture needed
        file.unlink()
    ranked = index.search("a dog", rerank=True)
    np.testing.assert_allclose([hit.score for hit in ranked], [hit.score for hit in without], atol=2e-3)
    np.testing.assert_allclose([hit.overlap for hit in ranked], [hit.overlap for hit in without], atol=2e-2)


def test_pictures_that_were_never_files_keep_their_order(index: RegionIndex) -> None:
    plain, ranked = (index.search("a dog", rerank=rerank) for rerank in (False, True))
    assert [hit.id for hit in ranked] == [hit.id for hit in plain]
    assert [hit.score for hit in ranked] == pytest.approx([hit.score for hit in plain])


def test_only_texts_rank(index: RegionIndex, predictor: Predictor) -> None:
    with pytest.raises(UserError, match="only hits of a text can be ranked again"):
        index.search(index.picture(picture()), rerank=True)
    with pytest.raises(UserError, match="limit must be at least 1"):
        index.search("a dog", 0, rerank=True)
