"""Search against a slow reference: the nearest rows by NumPy, filters and folding in plain Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from open_cloc.errors import UserError
from open_cloc.index.query import Query
from open_cloc.index.region_index import RegionIndex
from open_cloc.index.search import COPY, MOST_OVERLAP
from open_cloc.inference.predictor import Predictor
from open_cloc.samples import Region
from tests.index.made import fill, nearest, rows_of, sample

FILTERS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "": lambda row: True,
    "area > 0.1 AND source = 'grid'": lambda row: row["area"] > 0.1 and row["source"] == "grid",
    "text = 'a dog' OR score IS NULL": lambda row: row["text"] == "a dog" or row["score"] is None,
    "year >= 2006 AND `order` = 'even'": lambda row: row["year"] >= 2006 and row["order"] == "even",
    "NOT Kept -- and not only a comment": lambda row: not row["Kept"],
    "text = 'it''s (' OR text = ';' OR area < 0.2": lambda row: row["area"] < 0.2,
}


@pytest.mark.parametrize("where", FILTERS)
@pytest.mark.parametrize("kind", ["regions", "pictures", "all"])
def test_search_is_the_slow_reference(index: RegionIndex, where: str, kind: Any) -> None:
    query = index.text("two red cats")
    rows = [row for row in rows_of(index) if FILTERS[where](row)]
    wanted = {
        "regions": lambda s: s != "picture",
        "pictures": lambda s: s == "picture",
        "all": lambda s: True,
    }
    expected = nearest([row for row in rows if wanted[kind](row["source"])], query.vector)
    hits = index.search(query, 15, where=where, rows=kind, fold=False)
    assert len(hits) == min(15, len(expected))
    np.testing.assert_allclose(
        [hit.score for hit in hits], [row["cosine"] for row in expected[:15]], atol=1e-5
    )
    by_name = {row["id"]: row for row in rows}
    for hit in hits:  # in whichever order equal ones come
        row = by_name[hit.id]
        assert hit.score == pytest.approx(nearest([row], query.vector)[0]["cosine"], abs=1e-5)
        assert hit.box == (row["x1"], row["y1"], row["x2"], row["y2"])
        assert (hit.text, hit.source, hit.key) == (row["text"], row["source"], row["key"])
        assert hit.columns == {name: row[name] for name in ("year", "order", "Kept")}


def overlap(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Of two boxes, each in [0, 1] of its picture."""
    a, b = (
        [
            row["x1"] / row["width"],
            row["y1"] / row["height"],
            row["x2"] / row["width"],
            row["y2"] / row["height"],
        ]
        for row in (one, other)
    )
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, width) * max(0.0, height)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return both / (areas - both)


def folded(rows: list[dict[str, Any]], limit: int) -> list[tuple[str, list[str]]]:
    """The rule of folding once more, row by row over all rows."""
    kept: list[tuple[dict[str, Any], list[str]]] = []
    for row in rows:
        for other, names in kept:
            cosine = float(np.dot(row["vector"], other["vector"]))
            is_same = row["picture"] == other["picture"] or cosine >= COPY
            if is_same and overlap(row, other) >= MOST_OVERLAP:
                names.append(row["id"])
                break
        else:
            if len(kept) < limit:
                kept.append((row, []))
    return [(row["id"], names) for row, names in kept]


@pytest.fixture(scope="module")
def drawn(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> RegionIndex:
    """Nine pictures, three of which have copies, with embeddings of which no two are equal."""
    index = RegionIndex.build(tmp_path_factory.mktemp("drawn") / "ix", predictor)
    fill(index, 9)
    return index


@pytest.mark.parametrize("limit", [1, 7, 40, 300])
@pytest.mark.parametrize("seed", range(3))
def test_folding_is_the_slow_reference(drawn: RegionIndex, limit: int, seed: int) -> None:
    query = Query(np.random.default_rng(seed).normal(size=32))
    order = nearest([row for row in rows_of(drawn) if row["source"] != "picture"], query.vector)
    expected = folded(order, limit)
    assert sum(len(names) for _, names in folded(order, 300)) > 60
    hits = drawn.search(query, limit)
    assert [hit.id for hit in hits] == [name for name, _ in expected]
    for hit, (_, names) in zip(hits, expected):
        # Whatever was asked for: rows that repeat a hit from far behind it are not named.
        assert list(hit.folded) == names[: len(hit.folded)]
        assert limit < 300 or list(hit.folded) == names


def test_copies_of_a_picture_are_one_hit(drawn: RegionIndex) -> None:
    for row in (row for row in rows_of(drawn) if row["key"] == "0 3 0"):
        query = Query(drawn.row(row["id"]).vector)
        (hit, *_) = drawn.search(query, 3, rows="all")
        assert any(name.split(":")[0] != hit.picture for name in hit.folded)
        loose = drawn.search(query, 3, rows="all", fold=False)
        assert loose[1].id in hit.folded or loose[1].picture == hit.picture
        assert all(not each.folded for each in loose)


def test_more_rows_are_asked_for_until_there_are_hits_enough(
    predictor: Predictor, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred boxes of one thing, and one of another that comes after all of them."""
    index = RegionIndex.build(tmp_path / "ix", predictor, thumbnail=0)
    many = [Region((0.1, 0.1, 0.6 + number * 1e-4, 0.6), "") for number in range(100)]
    index.add([sample(0, regions=tuple(many)), sample(1, regions=(Region((0.0, 0.0, 1.0, 1.0), ""),))])
    vector = index.row(next(hit.id for hit in index.search("a dog", 1, where="key = 'picture 0'"))).vector
    asked = []
    real = index.store.nearest

    def spied(*args: Any, **options: Any) -> Any:
        asked.append(args[1])
        return real(*args, **options)

    monkeypatch.setattr(index.store, "nearest", spied)
    hits = index.search(Query(vector), 2)
    assert [hit.key for hit in hits] == ["picture 0", "picture 1"]
    assert asked == [8, 32, 128]
    assert len(hits[0].folded) == 99


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("nope > 1", "no column is named nope"),
        ("aera > 0.1", "no column is named aera; did you mean area?"),
        ("yeer = 2001", "no column is named yeer; did you mean year?"),
        ("area >", "Expected: an expression, found: EOF"),
        ("(area > 1", "Expected: ), found: EOF"),
        ("area > 'x'", "could not convert"),
        ("area", "does not return a boolean"),
        ("foo(area) = 1", "Invalid function 'foo'"),
        ("area > 0)) OR ((1=1", "')' stands where it ends nothing"),
        ("area > 0; DROP TABLE x", "';' stands where it ends nothing"),
        ("text = 'a", "Unterminated string"),
    ],
)
def test_wrong_filters_are_told_as_the_user_wrote_them(index: RegionIndex, where: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        index.search("a dog", where=where)
    said = str(caught.value)
    assert said.startswith(f"the filter {where!r} cannot be applied: ")
    assert reason in said
    assert "source" not in said
    assert "cargo" not in said
    assert len(said.splitlines()) == 1
    assert len(said) < 200


def test_limits(index: RegionIndex) -> None:
    with pytest.raises(UserError, match="limit must be at least 1; got 0"):
        index.search("a dog", 0)
    everything = index.search("a dog", 10**18, fold=False)
    assert len(everything) == index.store.count("source != 'picture'")
    assert index.search("a dog", where="area > 2") == []


def test_an_empty_index_finds_nothing(predictor: Predictor, tmp_path: Any) -> None:
    index = RegionIndex.build(tmp_path / "ix", predictor)
    assert index.search("a dog") == []
    assert index.search("a dog", rerank=True) == []
    with pytest.raises(UserError, match="nothing to draw"):
        index.sheet([])


def test_a_hit_as_json(index: RegionIndex) -> None:
    import json

    (hit,) = index.search("a dog", 1, where="source = 'made'")
    document = json.loads(json.dumps(hit.as_json(), allow_nan=False))
    height, width = hit.size_hw
    assert document["size"] == [width, height]
    assert document["label_score"] == 0.5
    assert document["box"] == list(hit.box)
    (grid,) = index.search("a dog", 1, where="source = 'grid'")
    assert json.loads(json.dumps(grid.as_json(), allow_nan=False))["label_score"] is None
