"""Queries: texts, boxes, pictures, rows, and their sums and differences."""

from __future__ import annotations

import numpy as np
import pytest

from open_cloc.errors import UserError
from open_cloc.index.query import Query
from open_cloc.index.region_index import RegionIndex
from open_cloc.inference.predictor import Predictor
from tests.index.made import rows_of
from tests.tiny import picture

BOX = [5.5, 3, 60, 40]


def test_what_each_query_is(index: RegionIndex, predictor: Predictor) -> None:
    image = predictor.encode(picture(seed=5))
    np.testing.assert_allclose(index.box(picture(seed=5), BOX).vector, image.embed([BOX])[0], atol=1e-6)
    np.testing.assert_allclose(index.picture(picture(seed=5)).vector, image.embed(), atol=1e-6)
    one, other = predictor.encode_text(["a dog", "a cat"])
    np.testing.assert_allclose(index.text("a dog", "a cat").vector, one + other, atol=1e-6)
    row = rows_of(index)[7]
    np.testing.assert_allclose(index.row(row["id"]).vector, row["vector"])


def test_boxes_of_other_forms(index: RegionIndex) -> None:
    x1, y1, x2, y2 = BOX
    same = index.box(picture(), [x1, y1, x2 - x1, y2 - y1], box_format="xywh")
    np.testing.assert_allclose(same.vector, index.box(picture(), BOX).vector, atol=1e-6)
    shares = [x1 / 90, y1 / 50, x2 / 90, y2 / 50]
    same = index.box(picture(), shares, normalized=True)
    np.testing.assert_allclose(same.vector, index.box(picture(), BOX).vector, atol=1e-5)
    with pytest.raises(UserError, match="inside the picture"):
        index.box(picture(), [0, 0, 900, 10])


def test_sums_and_differences(index: RegionIndex, predictor: Predictor) -> None:
    dog, cat = predictor.encode_text(["a dog", "a cat"])
    image = predictor.encode(picture(seed=5))
    query = index.text("a dog") + 0.5 * index.box(picture(seed=5), BOX) - np.float64(2) * index.text("a cat")
    np.testing.assert_allclose(query.vector, dog + 0.5 * image.embed([BOX])[0] - 2 * cat, atol=1e-6)
    assert query.phrases == ("a dog",)
    assert not query.of_pictures
    assert np.linalg.norm(query.direction()) == pytest.approx(1, abs=1e-6)
    assert (-1 * index.text("a dog")).phrases == ()
    scores = [hit.score for hit in index.search(query, 5, fold=False)]
    vectors = np.array([row["vector"] for row in rows_of(index) if row["source"] != "picture"])
    expected = np.sort(vectors @ query.direction())[::-1][:5]
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_equals_leave_nothing(index: RegionIndex) -> None:
    with pytest.raises(UserError, match="nothing is left to look for"):
        index.search(index.text("a dog") - index.text("a dog"))
    with pytest.raises(UserError, match="nothing is left"):
        index.search(float("nan") * index.text("a dog"))


def test_pictures_alone_look_for_pictures(index: RegionIndex) -> None:
    both = index.picture(picture(seed=3)) + index.picture(picture(seed=4))
    assert {hit.source for hit in index.search(both, 4)} == {"picture"}
    mixed = index.picture(picture(seed=3)) + index.text("a dog")
    assert "picture" not in {hit.source for hit in index.search(mixed, 4)}
    (first, *_) = index.search(index.picture(picture(50, 90, seed=0)))
    assert first.key == "picture 0"
    assert first.score == pytest.approx(1, abs=1e-5)
    assert index.row(first.id).of_pictures


@pytest.mark.parametrize("fold", [False, True])
def test_a_row_finds_others(index: RegionIndex, fold: bool) -> None:
    """What a plain search for its vector finds, less itself and what repeats it."""
    row = next(row for row in rows_of(index) if row["source"] == "made")
    query = index.row(row["id"])
    plain = index.search(Query(query.vector), 8, fold=fold)
    (itself,) = [hit for hit in plain if row["id"] in (hit.id, *hit.folded)]
    assert itself.score == pytest.approx(1, abs=1e-5)
    found = index.search(query, 7, fold=fold)
    assert [hit.id for hit in found] == [hit.id for hit in plain if hit is not itself]
    both = index.search(query + index.text("a dog"), 1000, fold=False)
    assert row["id"] not in {hit.id for hit in both}
    away = index.search(index.text("a dog") - query, 1000, fold=False)
    assert row["id"] in {hit.id for hit in away}


@pytest.mark.parametrize("name", ["nope", "x' OR '1'='1", "\\' OR 1=1 --", "\0", "'", "id"])
def test_ids_are_names_and_no_sql(index: RegionIndex, name: str) -> None:
    with pytest.raises(UserError, match="the index has no region"):
        index.row(name)
    assert index.thumbnail(name) is None


def test_texts_that_say_nothing(index: RegionIndex) -> None:
    with pytest.raises(UserError, match="non-empty"):
        index.search("  ")
