"""Captioners: the given text, a server on loopback, and tiny local models with random weights."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image

from open_cloc.labelling.captioners import open_captioner
from open_cloc.labelling.captioners.pictures import data_url, decoded
from open_cloc.labelling.recipe import CaptionConfig
from open_cloc.labelling.types import Caption, Failure

KEY = "sk-very-secret-1234"


def encoded(number: int = 0, picture_format: str = "PNG", size: tuple[int, int] = (24, 16)) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (*size[::-1], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, picture_format)
    return buffer.getvalue()


def captions_of(captioner: Any, images: list[bytes]) -> list[Caption | Failure]:
    return captioner(images, [()] * len(images))


def texts_of(results: list[Caption | Failure]) -> list[str]:
    return [result.text if isinstance(result, Caption) else f"({result.cause})" for result in results]


# --- given ----------------------------------------------------------------------------------------


def test_given_takes_the_first_that_is_not_blank() -> None:
    captioner = open_captioner(CaptionConfig())
    results = captioner([b""] * 3, [["", " \n", " a mug ", "b"], [], [" "]])
    assert results[0] == Caption(" a mug ", "given")
    assert [result.cause for result in results[1:] if isinstance(result, Failure)] == ["no caption"] * 2
    assert captioner.provenance == {"name": "given"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "gpt"}, r"caption\.kind must be given, local, server or package\.module:Name; got 'gpt'"),
        ({"kind": "no.such:Thing"}, "no captioner at 'no.such:Thing'"),
        ({"requests": 0}, r"caption\.requests must be at least 1; got 0"),
        ({"retries": -1}, r"caption\.retries must be at least 0; got -1"),
        ({"max_new_tokens": 0}, r"caption\.max_new_tokens must be at least 1; got 0"),
        ({"timeout": 0.0}, r"caption\.timeout must be more than 0 seconds"),
        (
            {"kind": "server", "url": "localhost:8000/v1"},
            r"caption\.url must be like http://localhost:8000/v1",
        ),
        ({"kind": "server", "url": "http://localhost:port/v1"}, r"caption\.url must be a URL"),
    ],
)
def test_wrong_configs_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_captioner(replace(CaptionConfig(), **changes))


# --- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("picture_format", ["JPEG", "PNG", "WEBP"])
def test_known_formats_are_sent_as_they_are(picture_format: str) -> None:
    image = encoded(1, picture_format)
    head, _, body = data_url(image).partition(",")
    assert head == f"data:image/{picture_format.lower()};base64"
    assert base64.b64decode(body) == image


@pytest.mark.parametrize("picture_format", ["BMP", "TIFF", "GIF"])
def test_others_are_sent_as_png(picture_format: str) -> None:
    image = encoded(1, picture_format)
    head, _, body = data_url(image).partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(body))) as sent:
        np.testing.assert_array_equal(np.asarray(sent), np.asarray(decoded(image)))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("image", [b"", b"no picture", encoded(1, "TIFF")[:40], encoded(1)[:30]])
def test_unreadable_pictures_have_a_cause_and_a_stable_message(image: bytes) -> None:
    for read in (data_url, decoded):
        result = read(image)
        if read is data_url and image.startswith(b"\x89PNG"):
            continue  # the server may judge a damaged PNG
        assert isinstance(result, Failure)
        assert result.cause == "unreadable picture"
        assert "0x" not in result.message


# --- a server -------------------------------------------------------------------------------------

Reply = tuple[int, dict[str, str], bytes]


def answer(text: Any) -> Reply:
    return 200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


def error(status: int, said: str = "no", **headers: str) -> Reply:
    return status, headers, json.dumps({"error": {"message": said}}).encode()


def picture_in(body: dict[str, Any]) -> bytes:
    (message,) = body["messages"]
    url = next(part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url")
    return base64.b64decode(url.partition(",")[2])


class Server:
    """A chat-completions server on loopback whose answers a test decides."""

    def __init__(self, reply: Callable[[int, dict[str, Any]], Reply]) -> None:
        self.reply = reply
        self.models: Reply = (200, {}, json.dumps({"data": [{"id": "m", "root": "org/m"}]}).encode())
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.running = self.most = 0
        self.trickle = 0.0  # seconds between two bytes of an answer
        self.stopping = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._send(*(owner.models if self.path == "/v1/models" else error(404)))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with owner.lock:
                    number = len(owner.requests)
                    owner.requests.append(body)
                    owner.headers.append(dict(self.headers))
                    owner.running += 1
                    owner.most = max(owner.most, owner.running)
                reply = owner.reply(number, body) if self.path == "/v1/chat/completions" else error(404)
                with owner.lock:
                    owner.running -= 1
                if reply[0] == 0:
                    self.close_connection = True  # hangs up without a word
                    return
                self._send(*reply)

            def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(body))}).items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                try:
                    for byte in [body] if not owner.trickle else [body[i : i + 1] for i in range(len(body))]:
                        self.wfile.write(byte)
                        self.wfile.flush()
                        if owner.stopping.wait(owner.trickle) and owner.trickle:
                            return
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # the client has lost its patience

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Clients that hang up are part of the tests."""

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def stall(self, seconds: float = 30) -> None:
        self.stopping.wait(seconds)

    def close(self) -> None:
        self.stopping.set()
        self.http.shutdown()
        self.http.server_close()


class Sleeps(list):
    """Remembers how long it was asked to wait, and does not."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)
        await asyncio.sleep(0)


@contextmanager
def serving(
    reply: Callable[[int, dict[str, Any]], Reply], **changes: Any
) -> Iterator[tuple[Server, Any, Sleeps]]:
    """A server, a captioner of it, and the waits of its back-off."""
    pytest.importorskip("httpx")
    from open_cloc.labelling.captioners.server import ServerCaptioner

    server = Server(reply)
    sleeps = Sleeps()
    config = CaptionConfig(kind="server", model="m", url=server.url, api_key_env="TEST_CAPTION_KEY")
    captioner = None
    try:
        captioner = ServerCaptioner(replace(config, **changes), sleep=sleeps)
        yield server, captioner, sleeps
    finally:
        if captioner is not None:
            captioner.close()
        server.close()


def test_what_the_server_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_CAPTION_KEY", f" {KEY}\n")
    images = [encoded(0, "JPEG"), encoded(1, "PNG"), encoded(2, "WEBP")]
    with serving(lambda n, body: answer(" A red\nmug. "), prompt="Say.", max_new_tokens=7) as (
        server,
        captioner,
        _,
    ):
        results = captioner(images, [["old"], [], []])
        assert results == [Caption("A red mug.", "server m")] * 3
        assert {picture_in(body) for body in server.requests} == set(images)
        for body in server.requests:
            assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, 7)
            parts = body["messages"][0]["content"]
            assert [part.get("text") for part in parts] == [None, "Say."]
            assert "old" not in json.dumps(body)
        assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
        provenance = captioner.provenance
        assert provenance["server_model"] == "org/m"
        assert (provenance["model"], provenance["prompt"], provenance["url"]) == ("m", "Say.", server.url)
        assert KEY not in json.dumps(provenance)
        assert captioner([], []) == []


def test_requests_run_together_but_never_too_many_and_answers_keep_their_order() -> None:
    images = [encoded(i) for i in range(24)]
    number_of = {image: i for i, image in enumerate(images)}
    together = threading.Barrier(4, timeout=10)

    def reply(n: int, body: dict[str, Any]) -> Reply:
        number = number_of[picture_in(body)]
        if n < 4:
            together.wait()  # passes only if four run at once
        time.sleep(0.03 * ((number * 7) % 4))
        return answer(f"picture {number}")

    with serving(reply, requests=4) as (server, captioner, _):
        assert texts_of(captions_of(captioner, images)) == [f"picture {i}" for i in range(24)]
        assert server.most == 4
        server.most = 0
        both = [threading.Thread(target=captions_of, args=(captioner, images[half::2])) for half in (0, 1)]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        assert server.most == 4
        assert len(server.requests) == 48


def test_it_works_where_an_event_loop_runs() -> None:
    async def main(captioner: Any) -> list[Any]:
        return captions_of(captioner, [encoded(1)])

    with serving(lambda n, body: answer("fine")) as (_, captioner, _):
        assert texts_of(asyncio.run(main(captioner))) == ["fine"]


@pytest.mark.parametrize("trouble", [error(500), error(503), error(408), error(429), (0, {}, b"")])
def test_trouble_that_passes_is_waited_for(trouble: Reply) -> None:
    with serving(lambda n, body: trouble if n < 3 else answer("fine")) as (server, captioner, sleeps):
        assert texts_of(captions_of(captioner, [encoded(1)])) == ["fine"]
        assert len(server.requests) == 4
        assert [0.5 <= wait / 2**i <= 1 for i, wait in enumerate(sleeps)] == [True] * 3
        first = list(sleeps)
        server.requests.clear()
        sleeps.clear()
        captions_of(captioner, [encoded(1)])
        assert sleeps == first  # the jitter comes from the picture
        server.requests.clear()
        sleeps.clear()
        captions_of(captioner, [encoded(2)])
        assert sleeps != first


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [("7", 7, 7), ("0", 0.5, 1), ("nan", 0.5, 1), ("soon", 0.5, 1), ("99999", 600, 600), ("date", 25, 31)],
)
def test_retry_after_is_honoured(header: str, low: float, high: float) -> None:
    def reply(n: int, body: dict[str, Any]) -> Reply:
        value = formatdate(time.time() + 30, usegmt=True) if header == "date" else header
        return error(429, Retry_After=value) if n == 0 else answer("fine")

    with serving(reply) as (_, captioner, sleeps):
        assert texts_of(captions_of(captioner, [encoded(1)])) == ["fine"]
        assert len(sleeps) == 1
        assert low <= sleeps[0] <= high


def test_a_server_that_stays_busy_stops_the_run() -> None:
    with serving(lambda n, body: error(429, "slow down"), retries=2) as (server, captioner, _):
        with pytest.raises(
            ConnectionError, match=r"answered 429: slow down; lower caption\.requests .*\(tried 3"
        ):
            captions_of(captioner, [encoded(1)])
        assert len(server.requests) == 3


def test_one_picture_that_breaks_the_server_is_a_failure_and_all_stop_the_run() -> None:
    poison = encoded(3)
    images = [encoded(i) for i in range(5)]

    def reply(n: int, body: dict[str, Any]) -> Reply:
        return error(500, "out of memory") if picture_in(body) == poison else answer("fine")

    with serving(reply, retries=1) as (server, captioner, _):
        results = captions_of(captioner, images)
        assert texts_of(results) == ["fine"] * 3 + ["(server error)", "fine"]
        assert "answered 500: out of memory (tried 2 times)" in results[3][1]
        assert texts_of(captions_of(captioner, [poison])) == ["(server error)"]  # others have been answered
        server.reply = lambda n, body: error(502, "bad gateway")
        with pytest.raises(ConnectionError, match=r"failed on all 5 pictures of a batch.*502: bad gateway"):
            captions_of(captioner, images)


def test_a_server_that_stalls_times_out() -> None:
    slow = encoded(0)
    images = [slow, encoded(1)]

    def reply(n: int, body: dict[str, Any]) -> Reply:
        if picture_in(body) == slow:
            server.stall()
        return answer("fine")

    with serving(reply, timeout=0.3, retries=1) as (server, captioner, _):
        start = time.perf_counter()
        assert texts_of(captions_of(captioner, images)) == ["(server timed out)", "fine"]
        assert 0.6 <= time.perf_counter() - start < 5
        assert len(server.requests) == 3
        with pytest.raises(ConnectionError, match=r"failed on all 2 pictures.*gave no answer in 0\.3 s"):
            captions_of(captioner, [slow, slow])


def test_a_trickle_of_bytes_times_out_too() -> None:
    with serving(lambda n, body: answer("fine"), timeout=0.4, retries=0) as (server, captioner, _):
        assert texts_of(captions_of(captioner, [encoded(1)])) == ["fine"]
        server.trickle = 0.05  # a byte well within any limit between bytes
        start = time.perf_counter()
        assert texts_of(captions_of(captioner, [encoded(1)])) == ["(server timed out)"]
        assert time.perf_counter() - start < 3


def test_a_server_that_is_not_there_is_named() -> None:
    pytest.importorskip("httpx")
    from open_cloc.labelling.captioners.server import ServerCaptioner

    server = Server(lambda n, body: answer("x"))
    server.close()
    sleeps = Sleeps()
    config = CaptionConfig(kind="server", model="m", url=server.url, retries=2)
    with pytest.raises(ConnectionError) as caught:
        ServerCaptioner(config, sleep=sleeps)
    message = str(caught.value)
    assert f"no server answers at {server.url}/models" in message
    assert "(tried 3 times); start a server" in message
    assert len(sleeps) == 2


def test_a_server_that_goes_away_stops_the_run() -> None:
    with serving(lambda n, body: answer("fine"), retries=1) as (server, captioner, _):
        captions_of(captioner, [encoded(1)])
        server.http.shutdown()
        server.http.server_close()
        captioner._run(captioner._client._transport.aclose())  # the server's end of open connections lives on
        with pytest.raises(
            ConnectionError, match=r"no server answers at .*/chat/completions.*\(tried 2 times\)"
        ):
            captions_of(captioner, [encoded(1), encoded(2)])
        server.http.shutdown = lambda: None  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (401, "set the environment variable TEST_CAPTION_KEY to the server's key"),
        (403, "set the environment variable TEST_CAPTION_KEY to a key that may use this model"),
        (404, r"check caption\.url \(up to /v1\) and caption\.model='m'"),
        (301, r"check caption\.url"),
    ],
)
def test_what_no_repetition_helps_stops_the_run_at_once(
    status: int, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_CAPTION_KEY", KEY)
    with serving(lambda n, body: error(status, f"not with\n{KEY}!")) as (server, captioner, sleeps):
        with pytest.raises(ValueError, match=rf"answered {status}: not with \*\*\*!; {advice}") as caught:
            captions_of(captioner, [encoded(1)])
        assert KEY not in str(caught.value)
        assert f"{server.url}/chat/completions" in str(caught.value)
        assert len(server.requests) == 1
        assert sleeps == []


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_picture_is_a_failure(status: int) -> None:
    bad = encoded(1)

    def reply(n: int, body: dict[str, Any]) -> Reply:
        return error(status, "too large") if picture_in(body) == bad else answer("fine")

    with serving(reply) as (server, captioner, sleeps):
        results = captions_of(captioner, [encoded(0), bad, b"no picture"])
        assert texts_of(results) == ["fine", "(refused by server)", "(unreadable picture)"]
        assert f"answered {status}: too large" in results[1][1]
        assert len(server.requests) == 2
        assert sleeps == []


@pytest.mark.parametrize(
    "reply",
    [
        (200, {}, b"<html>"),
        (200, {}, b'{"choices": []}'),
        (200, {}, b'{"choices": [{"message": {}}]}'),
        (200, {}, b'{"choices": [{"message": null}]}'),
        (200, {}, b"[]"),
        (200, {}, b"\xff\xfe\x00"),
        (200, {"Content_Encoding": "gzip"}, b"no gzip"),
        answer(""),
        answer(" \n"),
        answer(None),
        answer([{"type": "text"}]),
    ],
)
def test_unusable_answers_are_asked_for_once_more(reply: Reply) -> None:
    broken = "Content_Encoding" in reply[1]  # says the transport, hence counts with dropped connections
    with serving(lambda n, body: reply if n else answer("fine"), retries=1 if broken else 5) as (
        server,
        captioner,
        _,
    ):
        captions_of(captioner, [encoded(1)])
        server.requests.clear()
        server.reply = lambda n, body: reply
        cause = "server error" if broken else "unusable answer"
        assert texts_of(captions_of(captioner, [encoded(1)])) == [f"({cause})"]
        assert len(server.requests) == 2
        server.requests.clear()
        server.reply = lambda n, body: answer("fine") if n else reply
        assert texts_of(captions_of(captioner, [encoded(1)])) == ["fine"]


def test_models_of_the_server() -> None:
    def listing(*entries: dict[str, str]) -> Reply:
        return 200, {}, json.dumps({"data": list(entries)}).encode()

    pytest.importorskip("httpx")
    from open_cloc.labelling.captioners.server import ServerCaptioner

    server = Server(lambda n, body: answer(body["model"]))
    config = CaptionConfig(kind="server", url=server.url.replace("//", "//user:word@") + "/")

    def opened(**changes: Any) -> ServerCaptioner:
        return ServerCaptioner(replace(config, **changes), sleep=Sleeps())

    captioner = opened()  # the only one needs no name
    assert texts_of(captions_of(captioner, [encoded(1)])) == ["m"]
    assert captioner.provenance["url"] == server.url
    captioner.close()
    captioner.close()
    server.models = listing({"id": "a"}, {"id": "b"})
    with pytest.raises(ValueError, match=rf"caption\.model must name a model of {server.url}; it has a, b"):
        opened()
    for reply in (error(404), error(500), (200, {}, b"<html>"), (200, {}, b"[1]"), (0, {}, b"")):
        server.models = reply if reply[0] else error(503)
        captioner = opened(model="x", retries=1)  # what it does not tell is not needed
        assert captioner.provenance["server_model"] is None
        captioner.close()
    server.models = error(401, "who are you")
    with pytest.raises(ValueError, match=r"/models answered 401: who are you; set the environment variable"):
        opened(model="x")
    server.close()


def test_a_key_that_no_header_can_hold_is_refused_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk schlüssel")
    with pytest.raises(ValueError, match="the key in the environment variable OPENAI_API_KEY") as caught:
        open_captioner(CaptionConfig(kind="server", model="m"))
    assert "schlüssel" not in str(caught.value)
