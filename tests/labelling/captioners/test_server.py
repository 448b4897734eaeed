"""A server on loopback that is slow, busy, rude or gone."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from email.utils import formatdate
from typing import Any

import pytest

from open_cloc.errors import UserError
from open_cloc.labelling.captioners import open_captioner
from open_cloc.labelling.captioners.bounded import MOST_BYTES
from open_cloc.labelling.captioners.server import NoServerError, ServerCaptioner
from open_cloc.labelling.recipe import CaptionConfig
from open_cloc.labelling.types import Caption
from tests.labelling.caption_server import Reply, Server, answer, error, picture_in
from tests.labelling.captioners.made import captions_of, texts_of
from tests.labelling.made import encoded

KEY = "sk-very-secret-1234"


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
    config = CaptionConfig(kind="server", weights="m", url=server.url, api_key_env="TEST_CAPTION_KEY")
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
        if n % 24 < 4:
            together.wait()  # passes only if four run at once, the second time from both threads
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
    [
        ("7", 7, 7),
        ("0", 0.5, 1),
        ("nan", 0.5, 1),
        ("soon", 0.5, 1),
        ("99999", 600, 600),
        ("1e999", 600, 600),
        ("date", 25, 31),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0.5, 1),
    ],
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
            NoServerError, match=r"answered 429: slow down; lower caption\.requests .*\(tried 3"
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
        with pytest.raises(NoServerError, match=r"failed on all 5 pictures of a batch.*502: bad gateway"):
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
        with pytest.raises(NoServerError, match=r"failed on all 2 pictures.*gave no answer in 0\.3 s"):
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
    config = CaptionConfig(kind="server", weights="m", url=server.url, retries=2)
    with pytest.raises(NoServerError) as caught:
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
            NoServerError, match=r"no server answers at .*/chat/completions.*\(tried 2 times\)"
        ):
            captions_of(captioner, [encoded(1), encoded(2)])
        server.http.shutdown = lambda: None  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (401, "set the environment variable TEST_CAPTION_KEY to the server's key"),
        (403, "set the environment variable TEST_CAPTION_KEY to a key that may use this model"),
        (404, r"check caption\.url \(up to /v1\) and caption\.weights='m'"),
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
        (200, {"Content_Encoding": "gzip"}, gzip.compress(bytes(2**28))),
        (200, {}, b"[" * 200_000),
        (200, {}, b" " * (MOST_BYTES + 1)),
        answer(""),
        answer(" \n"),
        answer(None),
        answer([{"type": "text"}]),
    ],
)
def test_unusable_answers_are_asked_for_once_more(reply: Reply) -> None:
    with serving(lambda n, body: reply if n else answer("fine")) as (server, captioner, _):
        captions_of(captioner, [encoded(1)])
        server.requests.clear()
        server.reply = lambda n, body: reply
        assert texts_of(captions_of(captioner, [encoded(1)])) == ["(unusable answer)"]
        assert len(server.requests) == 2
        server.requests.clear()
        server.reply = lambda n, body: answer("fine") if n else reply
        assert texts_of(captions_of(captioner, [encoded(1)])) == ["fine"]


def chosen(**choice: Any) -> Reply:
    return 200, {}, json.dumps({"choices": [choice]}).encode()


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (answer("<think>hm</think>\nA mug."), "A mug."),
        (answer([{"type": "text", "text": "A mug."}]), "A mug."),
        (answer("I'm sorry, but I can't help with that."), "(captioner refused)"),
        (chosen(message={"content": None, "refusal": "no"}, finish_reason="stop"), "(captioner refused)"),
        (chosen(message={"content": ""}, finish_reason="content_filter"), "(captioner refused)"),
        (chosen(message={"content": "A mug on a wo"}, finish_reason="length"), "(caption cut off)"),
        (chosen(message={"content": "A mug. On a wo"}, finish_reason="length"), "A mug."),
        (chosen(message={"content": "half \ud83d"}, finish_reason="stop"), "half"),
    ],
)
def test_answers_that_are_no_captions(reply: Reply, text: str) -> None:
    with serving(lambda n, body: reply) as (server, captioner, _):
        (result,) = captions_of(captioner, [encoded(1)])
        assert texts_of([result]) == [text]
        assert len(server.requests) == 1  # greedy decoding would say the same again
        if "length" in reply[2].decode() and isinstance(result, Caption):
            assert result.is_cut


def test_odd_codes_fail_one_picture_once_the_server_has_answered() -> None:
    odd = encoded(1)

    def reply(n: int, body: dict[str, Any]) -> Reply:
        return error(302, Location="http://127.0.0.1:9/v1") if picture_in(body) == odd else answer("fine")

    with serving(reply) as (server, captioner, _):
        assert texts_of(captions_of(captioner, [encoded(0)])) == ["fine"]
        assert texts_of(captions_of(captioner, [odd, encoded(2)])) == ["(refused by server)", "fine"]
        assert len(server.requests) == 3  # the redirect was not followed


@pytest.mark.parametrize("proxy", ["not a url", "socks9://user:word@x", "socks5://127.0.0.1:9", "::::"])
def test_damaged_proxy_variables_are_named(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy)
    config = CaptionConfig(kind="server", weights="m", url="http://captions.invalid/v1", retries=0, timeout=2)
    with pytest.raises((UserError, NoServerError)) as caught:
        ServerCaptioner(config)
    assert "word" not in str(caught.value)
    assert "\n" not in str(caught.value)
    with serving(lambda n, body: answer("fine")) as (
        _,
        captioner,
        _,
    ):  # of this machine itself, none is asked
        assert texts_of(captions_of(captioner, [encoded(1)])) == ["fine"]


@pytest.mark.parametrize(
    "url", ["http://user:word@h:99999999/v1", "http://user:word@[::1/v1", "user:word@host", "://user:word@h"]
)
def test_passwords_of_urls_are_not_repeated(url: str) -> None:
    with pytest.raises((UserError, NoServerError)) as caught:
        ServerCaptioner(CaptionConfig(kind="server", weights="m", url=url, retries=0, timeout=2))
    assert "word@" not in str(caught.value)


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
    with pytest.raises(ValueError, match=rf"caption\.weights must name a model of {server.url}; it has a, b"):
        opened()
    for reply in (error(404), error(500), (200, {}, b"<html>"), (200, {}, b"[1]"), (0, {}, b"")):
        server.models = reply if reply[0] else error(503)
        captioner = opened(weights="x", retries=1)  # what it does not tell is not needed
        assert captioner.provenance["server_model"] is None
        captioner.close()
    server.models = error(401, "who are you")
    with pytest.raises(ValueError, match=r"/models answered 401: who are you; set the environment variable"):
        opened(weights="x")
    server.close()


def test_a_key_that_no_header_can_hold_is_refused_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk schlüssel")
    with pytest.raises(ValueError, match="the key in the environment variable OPENAI_API_KEY") as caught:
        open_captioner(CaptionConfig(kind="server", weights="m"))
    assert "schlüssel" not in str(caught.value)
