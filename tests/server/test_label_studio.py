"""Label Studio's three routes, by the JSON that it sends and expects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from open_cloc.inference.predictor import Predictor
from open_cloc.server.label_studio import read_config
from open_cloc.server.limits import RefusedError
from tests.server.conftest import text_of

CONFIG = """<View><Image name="img" value="$photo"/>
<RectangleLabels name="box" toName="img"><Label value="mug"/><Label value="Cat"/><Label value="other"/>
</RectangleLabels></View>"""


@pytest.fixture
def client(predictor: Predictor) -> Iterator[Any]:
    from fastapi.testclient import TestClient

    from open_cloc.server.app import create_app

    app = create_app(predictor, name="tiny", label_studio=["mug", "Cat=a black cat"])
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def test_boxes_in_percent(client: Any, predictor: Predictor, photo: bytes) -> None:
    assert client.get("/health").json()["status"] == "UP"
    given = {"project": "1.2", "schema": CONFIG, "hostname": "http://ls", "access_token": "t", "extra": 1}
    assert client.post("/setup", json=given).json() == {"model_version": "tiny"}
    task = {"id": 7, "data": {"photo": f"data:image/png;base64,{text_of(photo)}"}}
    answer = client.post("/predict", json={"tasks": [task], "label_config": CONFIG, "params": {}})
    (result,) = answer.json()["results"]
    assert [row["value"]["rectanglelabels"] for row in result["result"]] == [["mug"], ["Cat"]]
    first = result["result"][1]
    x1, y1, x2, y2 = predictor.encode(photo).find(["a black cat"])[0].box
    expected = [100 * x1 / 90, 100 * y1 / 50, 100 * (x2 - x1) / 90, 100 * (y2 - y1) / 50]
    assert [first["value"][side] for side in ("x", "y", "width", "height")] == pytest.approx(
        expected, abs=0.05
    )
    assert (first["from_name"], first["to_name"], first["type"]) == ("box", "img", "rectanglelabels")
    assert (first["original_width"], first["original_height"], first["value"]["rotation"]) == (90, 50, 0)


def test_what_cannot_be_labelled(client: Any) -> None:
    def say(**given: Any) -> str:
        answer = client.post("/predict", json=given)
        assert answer.status_code == 422
        return answer.json()["error"]

    task = {"id": 1, "data": {"photo": "https://elsewhere.org/a.jpg"}}
    assert "does not fetch" in say(tasks=[task], label_config=CONFIG)
    assert "under 'photo'" in say(tasks=[{"id": 1, "data": {}}], label_config=CONFIG)
    assert "at most 100 tasks" in say(tasks=[task] * 101, label_config=CONFIG)
    assert say(tasks="x")


@pytest.mark.parametrize(
    "text",
    ["", "<View>", "<View/>", CONFIG.replace('toName="img"', ""), '<!DOCTYPE a [<!ENTITY b "c">]>' + CONFIG],
)
def test_configurations_without_boxes(text: str) -> None:
    with pytest.raises(RefusedError, match="RectangleLabels"):
        read_config(text)


def test_the_routes_are_there_only_if_asked_for(predictor: Predictor) -> None:
    from fastapi.testclient import TestClient

    from open_cloc.server.app import create_app

    with TestClient(create_app(predictor)) as client:
        assert client.post("/predict", json={"tasks": []}).status_code == 404


def test_a_token_goes_to_no_other_host(client: Any, photo: bytes) -> None:
    """Than the one that it came with: whoever calls /setup next does not inherit it."""
    sent: list[tuple[str, Any]] = []

    async def fetch(url: str, headers: Any = None) -> bytes:
        sent.append((url, headers))
        return photo

    client.app.state.service.fetch = fetch
    asked = {"tasks": [{"id": 1, "data": {"photo": "/data/a.png"}}], "label_config": CONFIG}
    client.post("/setup", json={"hostname": "http://ours", "access_token": "secret"})
    assert client.post("/predict", json=asked).status_code == 200
    client.post("/setup", json={"hostname": "http://theirs"})
    assert client.post("/predict", json=asked).status_code == 200
    assert sent == [
        ("http://ours/data/a.png", {"Authorization": "Token secret"}),
        ("http://theirs/data/a.png", None),
    ]
