"""An HTTP answer over `EncodedImage` is one small file: nothing in the package has to know of it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from open_cloc.errors import UserError
from open_cloc.inference.answer import Answer
from open_cloc.inference.predictor import Predictor
from tests.tiny import picture, tiny_model


def make_handler(predictor: Predictor) -> type[BaseHTTPRequestHandler]:
    """`POST /?box=10,20,200,180&label=a dog&phrase=a red umbrella` with a picture's bytes as the body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = parse_qs(urlsplit(self.path).query)
            try:
                self.reply(200, self.answer(asked).as_json())
            except UserError as error:
                self.reply(400, {"error": str(error)})

        def answer(self, asked: dict[str, list[str]]) -> Answer:
            image = predictor.encode(self.rfile.read(int(self.headers["Content-Length"])))
            boxes = [text.split(",") for text in asked.get("box", [])]
            regions = image.classify(asked.get("label", []), boxes) if boxes else []
            phrases = image.find(asked["phrase"], candidates=20) if "phrase" in asked else []
            return Answer(image.size_hw, regions, phrases)

        def reply(self, status: int, document: dict[str, Any]) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(tiny_model())


@pytest.fixture(scope="module")
def address(predictor: Predictor) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(predictor))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_a_picture_and_boxes_give_json(address: str, predictor: Predictor) -> None:
    question = "?box=0,0,10,20&box=5.5,3,60,40&label=dog&label=cat&phrase=a%20dog"
    with urlopen(address + question, png(picture(50, 90))) as response:
        document = json.load(response)
    image = predictor.encode(picture(50, 90))
    named = image.classify(["dog", "cat"], [[0, 0, 10, 20], [5.5, 3, 60, 40]])
    assert document == Answer(image.size_hw, named, image.find(["a dog"], candidates=20)).as_json()


@pytest.mark.parametrize(
    ("question", "body", "message"),
    [
        ("?box=0,0,10,500&label=dog", None, "inside the picture of 90 x 50"),
        ("?box=0,0,10,x&label=dog", None, "boxes must be (R, 4) numbers"),
        ("?box=0,0,10,20", None, "labels must hold at least one text"),
        ("?phrase=dog", b"nothing that is a picture", "picture cannot be decoded"),
    ],
)
def test_mistakes_are_the_askers(address: str, question: str, body: bytes | None, message: str) -> None:
    with pytest.raises(HTTPError) as caught:
        urlopen(address + question, body or png(picture(50, 90)))
    assert caught.value.code == 400
    assert message in json.load(caught.value)["error"]
