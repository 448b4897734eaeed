"""Pictures of hits: the file if it is as it was, else the small one; and the contact sheet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from open_cloc.data.readers import open_reader
from open_cloc.index.region_index import RegionIndex
from open_cloc.inference.predictor import Predictor
from tests.tiny import picture


@pytest.fixture
def of_files(predictor: Predictor, photos: Path, tmp_path: Path) -> RegionIndex:
    index = RegionIndex.build(tmp_path / "ix", predictor)
    index.add(open_reader(f"folder:{photos}"), "grid:20")
    return index


def test_a_picture_that_is_gone_or_another_is_shown_small(of_files: RegionIndex, photos: Path) -> None:
    hits = of_files.search("a dog", 40, fold=False)
    by_name = {Path(hit.path).name: hit for hit in hits}
    assert set(by_name) == {"0.png", "1.png", "2.png", "3.png"}
    (photos / "0.png").unlink()
    Image.fromarray(picture(20, 20, seed=9)).save(photos / "1.png")
    (photos / "2.png").write_text("no picture any more")
    assert of_files.picture_of(by_name["3.png"]) == photos.resolve() / "3.png"
    for name in ("0.png", "1.png", "2.png"):
        assert isinstance(of_files.picture_of(by_name[name]), bytes)
    assert of_files.sheet(list(by_name.values())).std() > 10
    ranked = of_files.search("a dog", 40, fold=False, rerank=True)
    # Of what cannot be looked at, the score is what it was.
    kept = {hit.id: hit.score for hit in hits if hit.path.endswith("0.png")}
    assert kept
    again = {hit.id: hit.score for hit in ranked if hit.id in kept}
    assert again
    assert all(score == pytest.approx(kept[name], abs=1e-6) for name, score in again.items())


def test_the_sheet_shows_each_hit_with_its_box(of_files: RegionIndex, photos: Path) -> None:
    hits = of_files.search("a dog", 3)
    sheet = of_files.sheet(hits, columns=3, tile=180)
    assert sheet.dtype == np.uint8
    assert sheet.shape[1] > 3 * 180
    # A picture of 50 x 90 fills the width of its tile; its own pixels are there, the box drawn over them.
    tile = sheet[8 : 8 + 180, 8 : 8 + 180].astype(int)
    own = Image.open(hits[0].path).resize((180, 100), Image.Resampling.BILINEAR)
    shown = tile[40:140]
    same = np.abs(shown - np.asarray(own).astype(int)).mean(-1)
    edge = np.zeros(same.shape, bool)
    x1, y1, x2, y2 = (round(2 * side) for side in hits[0].box)
    edge[max(0, y1) : y2, max(0, x1) : x2] = True
    edge[y1 + 4 : y2 - 4, x1 + 4 : x2 - 4] = False
    assert same[edge].mean() > 2 * same[~edge].mean()
    assert sheet[:, 8 + 188 :].std() > 10
    assert (sheet[8 + 180 :, :180] < 128).any()  # texts below
