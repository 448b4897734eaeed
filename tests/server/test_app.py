"""The server over HTTP: answers equal the predictor's, and whatever is wrong is said with a 4xx."""

from __future__ import annotations

import base64
import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from open_cloc.inference.predictor import Predictor
from open_cloc.server.limits import Limits
from tests.server.conftest import png, text_of
from tests.tiny import BOXES, picture

LABELS = ["a dog", "a cat", "a mug"]
QUESTIONS = {
    "/v1/embed/image": {},
    "/v1/embed/regions": {"boxes": BOXES},
    "/v1/classify": {"labels": LABELS, "boxes": BOXES},
    "/v1/ground": {"phrases": ["a mug"]},
}
PATHS = [*QUESTIONS, "/v1/embed/text", "/v1/search"]


def client_of(predictor: Predictor, **options: Any) -> Any:
    from fastapi.testclient import TestClient

    from open_cloc.server.app import create_app

    return TestClient(create_app(predictor, **options), raise_server_exceptions=False)


def test_embeddings_are_the_predictors(client: Any, predictor: Predictor, photo: bytes) -> None:
    image = predictor.encode(photo)
    one = client.post("/v1/embed/image", json={"image": text_of(photo)}).json()
    np.testing.assert_allclose(one["embedding"], image.embed(), atol=1e-6)
    assert one["size"] == [90, 50]
    given = {"image": text_of(photo), "boxes": BOXES}
    rows = client.post("/v1/embed/regions", json=given).json()["embeddings"]
    np.testing.assert_allclose(rows, image.embed(BOXES), atol=1e-6)
    texts = client.post("/v1/embed/text", json={"texts": LABELS, "encoding": "base64"}).json()["embeddings"]
    decoded = np.stack([np.frombuffer(base64.b64decode(text), "<f4") for text in texts])
    np.testing.assert_allclose(decoded, predictor.encode_text(LABELS), atol=1e-6)


def test_names_and_phrases_are_the_predictors(client: Any, predictor: Predictor, photo: bytes) -> None:
    image = predictor.encode(photo)
    given = {"image": f"data:image/png;base64,{text_of(photo)}", "labels": LABELS, "boxes": BOXES, "top_k": 2}
    regions = client.post("/v1/classify", json=given).json()["regions"]
    expected = image.classify(LABELS, BOXES, top_k=2)
    assert [[n["label"] for n in r["labels"]] for r in regions] == [
        [n.label for n in r.labels] for r in expected
    ]
    assert regions[1]["labels"][0]["score"] == pytest.approx(expected[1].labels[0].score, abs=1e-5)
    whole = client.post("/v1/classify", json={"image": text_of(photo), "labels": LABELS}).json()["regions"]
    assert len(whole) == 1
    assert whole[0]["box"] == [0, 0, 90, 50]
    found = client.post("/v1/ground", json={"image": text_of(photo), "phrases": LABELS}).json()["phrases"]
    for one, other in zip(found, image.find(LABELS), strict=True):
        np.testing.assert_allclose(one["box"], other.box, atol=1e-2)


@pytest.mark.parametrize("path", QUESTIONS)
def test_a_file_says_what_json_says(path: str, client: Any, photo: bytes) -> None:
    rest = QUESTIONS[path]
    as_json = client.post(path, json={"image": text_of(photo), **rest})
    as_file = client.post(path, files={"image": photo}, data={"request": json.dumps(rest)})
    assert as_json.status_code == as_file.status_code == 200
    assert as_json.json() == as_file.json()


def test_normalised_boxes_of_another_format(client: Any, predictor: Predictor, photo: bytes) -> None:
    given = {
        "image": text_of(photo),
        "boxes": [[0.5, 0.5, 0.2, 0.4]],
        "box_format": "cxcywh",
        "normalized": True,
    }
    rows = client.post("/v1/embed/regions", json=given).json()["embeddings"]
    expected = predictor.encode(photo).embed([[0.4, 0.3, 0.6, 0.7]], normalized=True)
    np.testing.assert_allclose(rows, expected, atol=1e-5)


def wrong_requests(photo: bytes) -> list[tuple[str, dict[str, Any], int, str]]:
    """Route, what is sent, the status and words of the answer."""
    image = text_of(photo)
    json_type = {"content-type": "application/json"}

    def body(**given: Any) -> dict[str, Any]:
        return {"json": {"image": image, **given}}

    return [
        ("/v1/ground", {}, 415, "application/json"),
        ("/v1/ground", {"content": b"", "headers": json_type}, 422, "JSON"),
        ("/v1/ground", {"content": b"[" * 100_000, "headers": json_type}, 422, "JSON"),
        ("/v1/ground", {"content": b'{"image": "\\ud800"}', "headers": json_type}, 422, ""),
        ("/v1/ground", {"content": b" " * (21 * 2**20), "headers": json_type}, 413, "at most 20 MiB"),
        ("/v1/ground", {"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "multipart"),
        (
            "/v1/ground",
            {"content": b"x", "headers": {"content-type": "multipart/form-data"}},
            422,
            "multipart",
        ),
        ("/v1/ground", {"data": {"other": "1"}, "files": {"image": photo}}, 422, "unknown field 'other'"),
        ("/v1/ground", body(phrases=["x"], more=1), 422, "more"),
        ("/v1/ground", body(phrases="x"), 422, "phrases"),
        ("/v1/ground", body(phrases=[]), 422, "phrases"),
        ("/v1/ground", body(phrases=[" "]), 422, "non-empty"),
        ("/v1/ground", body(phrases=["x" * 10_000]), 422, "at most 1000 characters"),
        ("/v1/ground", body(phrases=["x"] * 10_000), 422, "at most 1000 phrases"),
        ("/v1/ground", {"json": {"image": 3, "phrases": ["x"]}}, 422, "image"),
        ("/v1/ground", {"json": {"image": "", "phrases": ["x"]}}, 422, "empty"),
        ("/v1/ground", {"json": {"image": "?" * 50, "phrases": ["x"]}}, 422, "base64"),
        (
            "/v1/ground",
            {"json": {"image": text_of(b"hello there"), "phrases": ["x"]}},
            422,
            "cannot be decoded",
        ),
        ("/v1/ground", {"json": {"image": text_of(photo[:-30]), "phrases": ["x"]}}, 422, "cannot be decoded"),
        ("/v1/ground", {"json": {"image": "http://x.org/a.jpg", "phrases": ["x"]}}, 422, "does not fetch"),
        ("/v1/embed/regions", body(boxes=[[0, 0, 1]]), 422, "boxes.0"),
        ("/v1/embed/regions", body(boxes=[[0, 0, 1, "2"]]), 422, "number"),
        ("/v1/embed/regions", body(boxes=[[5, 5, 2, 2]]), 422, "x1 < x2"),
        ("/v1/embed/regions", body(boxes=[[0, 0, 900, 20]]), 422, "inside the picture of 90 x 50"),
        ("/v1/embed/regions", body(boxes=[[0, 0, 9, 9]] * 10_000), 422, "at most 1000 boxes"),
        ("/v1/embed/regions", body(boxes=[[0, 0, 9, 9]], box_format="yolo"), 422, "box_format"),
        (
            "/v1/embed/regions",
            {"content": f'{{"image": "{image}", "boxes": [[NaN, 0, 1, 1]]}}', "headers": json_type},
            422,
            "finite",
        ),
        ("/v1/classify", body(labels=["a", "a"]), 422, "distinct"),
        ("/v1/classify", body(labels=[""]), 422, "non-empty"),
        ("/v1/classify", body(labels=["a"], top_k=0), 422, "top_k"),
        ("/v1/embed/text", {"json": {"texts": []}}, 422, "texts"),
        ("/v1/search", {"json": {"text": "x"}}, 404, "no index"),
        ("/v1/nothing", {"json": {}}, 404, "Not Found"),
    ]


def test_what_is_wrong_is_said(client: Any, photo: bytes) -> None:
    for path, sent, status, words in wrong_requests(photo):
        answer = client.post(path, **sent)
        shown = f"{path} {str(sent)[:80]} -> {answer.status_code} {answer.text[:200]}"
        assert answer.status_code == status, shown
        assert set(answer.json()) == {"error"}, shown
        assert words in answer.json()["error"], shown
    assert client.get("/v1/ground").status_code == 405


def test_no_boxes_are_no_error(client: Any, photo: bytes) -> None:
    given = {"image": text_of(photo), "boxes": []}
    assert client.post("/v1/embed/regions", json=given).json() == {"embeddings": []}
    named = client.post("/v1/classify", json={**given, "labels": ["a"]}).json()
    assert named == {"size": [90, 50], "regions": []}


def test_a_bomb_is_refused_before_it_is_decoded(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(encoded, "PNG")
    monkeypatch.setattr("open_cloc.server.service.read_pixels", lambda *given: pytest.fail("decoded"))
    answer = client.post("/v1/embed/image", files={"image": encoded.getvalue()})
    assert answer.status_code == 422
    assert "at most 50 megapixels" in answer.json()["error"]


def test_a_body_without_a_length_is_cut_off(client: Any) -> None:
    def endless() -> Any:
        for _ in range(30):
            yield b" " * 2**20

    answer = client.post("/v1/ground", content=endless(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_a_defect_names_nothing_of_the_machine(predictor: Predictor, photo: bytes, monkeypatch: Any) -> None:
    def break_down(*given: Any) -> None:
        raise KeyError("/home/somebody/secret.txt")

    with client_of(predictor) as client:
        monkeypatch.setattr("open_cloc.server.service.read_pixels", break_down)
        answer = client.post("/v1/embed/image", files={"image": photo})
    assert answer.status_code == 500
    assert answer.json() == {"error": "a defect of the server; its log says more"}


def test_a_token(predictor: Predictor, photo: bytes) -> None:
    with client_of(predictor, token="secret") as client:
        basic = base64.b64encode(b"any:secret").decode()
        for header, status in (
            ({}, 401),
            ({"Authorization": "Bearer other"}, 401),
            ({"Authorization": "Basic !"}, 401),
            ({"Authorization": "Bearer secret"}, 200),
            ({"Authorization": f"Basic {basic}"}, 200),
        ):
            sent = {"files": {"image": photo}, "headers": header}
            assert client.post("/v1/embed/image", **sent).status_code == status
        for path, status in (
            ("/health", 200),
            ("/ready", 200),
            ("/", 200),
            ("/metrics", 401),
            ("/v1/info", 401),
        ):
            assert client.get(path).status_code == status, path
        assert client.get("/v1/info").headers["www-authenticate"] == "Bearer"


def test_other_names_of_the_server_are_refused(predictor: Predictor) -> None:
    with client_of(predictor, hosts=["localhost"]) as client:
        assert client.get("/health").status_code == 400
        assert client.get("/health", headers={"host": "localhost:8000"}).status_code == 200


def test_many_clients_get_their_own_answers(client: Any, predictor: Predictor) -> None:
    photos = [png(picture(40 + seed, 60, seed)) for seed in range(12)]

    def ask(number: int) -> np.ndarray:
        answer = client.post("/v1/embed/image", files={"image": photos[number % 12]})
        return np.array(answer.json()["embedding"])

    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(ask, range(48)))
    for number, row in enumerate(rows):
        np.testing.assert_allclose(row, predictor.encode(photos[number % 12]).embed(), atol=1e-5)
    metrics = client.get("/metrics").text
    assert 'open_cloc_requests_total{route="/v1/embed/image",status="200"} 48.0' in metrics
    assert re.search(r'open_cloc_pictures_total\{cache="hit"\} \d', metrics)


def test_a_server_that_is_full_says_so(predictor: Predictor, photo: bytes, monkeypatch: Any) -> None:
    import threading

    started, go_on = threading.Event(), threading.Event()
    encode = predictor.encode

    def slow(pictures: Any) -> Any:
        started.set()
        assert go_on.wait(30)
        return encode(pictures)

    monkeypatch.setattr(predictor, "encode", slow)
    with client_of(predictor, limits=Limits(waiting=1)) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/v1/embed/image", files={"image": photo})
        assert started.wait(30)
        second = client.post("/v1/embed/image", files={"image": png(picture(seed=5))})
        go_on.set()
        assert (first.result().status_code, second.status_code) == (200, 503)
        assert second.headers["retry-after"] == "1"


def test_searches(predictor: Predictor, searched: Any, photo: bytes) -> None:
    with client_of(predictor, index=searched) as client:

        def hits(**given: Any) -> list[dict[str, Any]]:
            answer = client.post("/v1/search", json=given)
            assert answer.status_code == 200, answer.text
            return answer.json()["hits"]

        first = hits(text="a mug", limit=3)
        expected = searched.search("a mug", 3)
        assert [hit["id"] for hit in first] == [hit.id for hit in expected]
        assert "path" not in first[0]
        both = searched.search(searched.text("a mug") + searched.text("a cat"), 3)
        assert [hit["id"] for hit in hits(text=["a mug", "a cat"], limit=3)] == [hit.id for hit in both]
        assert str(searched.store.place) not in json.dumps(first)
        own = hits(image=text_of(png(picture(seed=3))), box=[9, 5, 45, 30], limit=1)[0]
        assert own["key"] == "photo-3"
        assert own["score"] > 0.999
        assert hits(image=text_of(png(picture(seed=4))), limit=1)[0]["key"] == "photo-4"
        like = hits(like=own["id"], minus="a cat", where="text != 'other'")
        assert like
        assert all(hit["text"] != "other" for hit in like)
        small = client.get(f"/v1/index/pictures/{own['picture']}")
        assert small.headers["content-type"] == "image/jpeg"
        assert Image.open(io.BytesIO(small.content)).size == (90, 50)
        assert client.get("/v1/index/pictures/nothing").status_code == 404
        for given, words in (
            ({}, "nothing to look for"),
            ({"text": []}, "nothing to look for"),
            ({"text": ["x", ""]}, "text"),
            ({"text": "x", "limit": 500}, "at most 100 hits"),
            ({"text": "x", "where": "path LIKE '/home/%'"}, "not ask for path"),
            ({"text": "x", "where": "nonsense ="}, "filter"),
            ({"box": [0, 0, 1, 1]}, "box needs an image"),
            ({"like": "x' OR '1'='1"}, "no region"),
        ):
            answer = client.post("/v1/search", json=given)
            assert answer.status_code == 422, answer.text
            assert words in answer.json()["error"], answer.text


def test_the_page_loads_nothing_from_elsewhere(client: Any) -> None:
    for path in ("/", "/app.js", "/style.css", "/icon.svg"):
        answer = client.get(path)
        assert answer.status_code == 200
        addresses = set(re.findall(r"https?://[\w.]+", answer.text))
        assert addresses <= {"http://www.w3.org"}  # the name of SVG, which nothing loads
    assert "default-src 'self'" in client.get("/").headers["content-security-policy"]
