"""LanceDB's embedding function: a table that embeds what is added, and is searched by texts and regions."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import open_cloc
from open_cloc.errors import UserError
from open_cloc.inference.predictor import Predictor
from tests.tiny import BOXES, picture

lancedb: Any = pytest.importorskip("lancedb", reason="lancedb is not installed")

from lancedb.embeddings import get_registry  # noqa: E402
from lancedb.pydantic import LanceModel, Vector  # noqa: E402

MODULE = "open_cloc.integrations.lancedb"
module: Any = importlib.import_module(MODULE)


class RegionOf(LanceModel):
    """A region as a table holds it: a picture's bytes and a box in it, or none."""

    image: bytes
    box: list[float] | None


@pytest.fixture(scope="module")
def predictor(weights: str) -> Predictor:
    return open_cloc.load(weights, "cpu")


def function(weights: str, **options: Any) -> Any:
    return get_registry().get("open-cloc").create(weights=weights, device="cpu", **options)


def rows(photos: Path) -> list[dict[str, Any]]:
    """Two boxes and the whole of three pictures, those of a picture apart from each other."""
    return [
        {"name": f"{seed} {box}", "region": {"image": (photos / f"{seed}.png").read_bytes(), "box": box}}
        for box in (BOXES[0], BOXES[1], None)
        for seed in range(3)
    ]


def expected(predictor: Predictor) -> np.ndarray:
    """(9, D), what `rows` should be embedded as."""
    images = [predictor.encode(picture(seed=seed)) for seed in range(3)]
    boxed = [image.embed([box])[0] for box in BOXES[:2] for image in images]
    return np.stack([*boxed, *(image.embed() for image in images)])


def table(weights: str, photos: Path, place: Path) -> Any:
    cloc = function(weights)

    class Row(LanceModel):
        name: str
        region: RegionOf = cloc.SourceField()
        vector: Vector(cloc.ndims()) = cloc.VectorField()  # type: ignore[valid-type]

    made = lancedb.connect(place).create_table("regions", schema=Row)
    made.add(rows(photos))
    return made


def test_a_table_embeds_its_regions(weights: str, predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    found = table(weights, photos, tmp_path / "db").to_arrow().to_pydict()
    assert found["name"] == [row["name"] for row in rows(photos)]
    np.testing.assert_allclose(np.array(found["vector"]), expected(predictor), atol=1e-5)


def nearest(features: np.ndarray, query: np.ndarray, photos: Path) -> list[str]:
    order = np.argsort(-(features @ query))
    return [rows(photos)[place]["name"] for place in order[:3]]


def test_search_by_text_and_by_region(
    weights: str, predictor: Predictor, photos: Path, tmp_path: Path
) -> None:
    regions = table(weights, photos, tmp_path / "db")
    features = expected(predictor)

    def names(query: Any) -> list[str]:
        found = regions.search(query).distance_type("cosine").limit(3).to_list()
        return [row["name"] for row in found]

    (text,) = predictor.encode_text(["two red cats"])
    assert names("two red cats") == nearest(features, text, photos)
    whole = predictor.encode(picture(seed=1)).embed()
    assert names(Image.fromarray(picture(seed=1))) == nearest(features, whole, photos)


def test_a_query_may_be_a_region(weights: str, predictor: Predictor) -> None:
    asked = {"image": Image.fromarray(picture()), "box": BOXES[1]}
    (found,) = function(weights).compute_query_embeddings(asked)
    np.testing.assert_allclose(found, predictor.encode(picture()).embed([BOXES[1]])[0], atol=1e-6)


def test_another_process_opens_the_table(weights: str, photos: Path, tmp_path: Path) -> None:
    """By the name and the weights in its metadata, once the function is imported."""
    regions = table(weights, photos, tmp_path / "db")
    here = [row["name"] for row in regions.search("a dog").limit(9).to_list()]
    code = (
        f"import json, lancedb, {MODULE}\n"
        f"table = lancedb.connect({str(tmp_path / 'db')!r}).open_table('regions')\n"
        f"table.add({[row | {'name': 'new'} for row in rows(photos)[:1]]!r})\n"
        "print(json.dumps([row['name'] for row in table.search('a dog').limit(10).to_list()]))\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    there = json.loads(said)
    assert [name for name in there if name != "new"] == here
    assert abs(there.index("new") - there.index(rows(photos)[0]["name"])) == 1


def test_opening_a_table_reads_no_weights(weights: str, photos: Path, tmp_path: Path) -> None:
    """A stranger's table may name any."""
    table(weights, photos, tmp_path / "db")
    module._predictor.cache_clear()
    opened = lancedb.connect(tmp_path / "db").open_table("regions")
    assert opened.embedding_functions["vector"].function.weights == weights
    assert module._predictor.cache_info().misses == 0


def test_a_picture_goes_through_the_tower_once(
    weights: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[int] = []
    encode = Predictor._encode

    def counted(self: Predictor, pictures: Any) -> Any:
        looked_at.append(len(pictures))
        return encode(self, pictures)

    monkeypatch.setattr(Predictor, "_encode", counted)
    asked = [row["region"] for row in rows(photos)]
    assert len(function(weights, batch_size=2).compute_source_embeddings(asked)) == 9
    assert looked_at == [2, 1]


def test_columns_of_paths_texts_and_nulls(weights: str, predictor: Predictor, photos: Path) -> None:
    path = str(photos / "2.png")
    one, nothing = function(weights).compute_source_embeddings([path, None])
    np.testing.assert_allclose(one, predictor.encode(path).embed(), atol=1e-6)
    assert nothing is None
    nothing, one = function(weights, strings="text").compute_source_embeddings([None, "a dog"])
    np.testing.assert_allclose(one, predictor.encode_text(["a dog"])[0], atol=1e-6)
    assert nothing is None


def test_the_page(run_the_page: Any) -> None:
    names = run_the_page("LanceDB")
    image = open_cloc.load(names["cloc"].weights).encode(names["picture"])
    found = names["table"].to_arrow().to_pydict()["vector"]
    np.testing.assert_allclose(found[0], image.embed([[10, 20, 200, 180]])[0], atol=1e-5)
    np.testing.assert_allclose(found[1], image.embed(), atol=1e-5)


def test_boxes_of_shares(weights: str, predictor: Predictor) -> None:
    asked = {"image": Image.fromarray(picture()), "box": [0.1, 0.2, 0.6, 0.9]}
    (found,) = function(weights, normalized=True).compute_source_embeddings([asked])
    boxed = predictor.encode(picture()).embed([asked["box"]], normalized=True)
    np.testing.assert_allclose(found, boxed[0], atol=1e-6)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (7, r"a row must be a path, bytes, a PIL image or \{image, box\}; got int"),
        ({"picture": b"", "box": None}, "a row must have an image, and a box or null; got picture, box"),
        ({"image": None, "box": [0, 0, 1, 1]}, "must have an image, and a box or null; got image, box"),
        (b"no picture", "picture cannot be decoded"),
        ("nowhere.png", "picture not found: nowhere.png"),
        ({"image": Image.new("RGB", (9, 9)), "box": [5, 5, 2, 8]}, "boxes must have x1 < x2 and y1 < y2"),
    ],
)
def test_wrong_rows(weights: str, row: Any, reason: str) -> None:
    """The error of the row, at once, and not LanceDB's after seven tries."""
    with pytest.raises(UserError, match=reason):
        function(weights).compute_source_embeddings_with_retry([row])
