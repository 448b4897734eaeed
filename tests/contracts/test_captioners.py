"""What every captioner keeps to, whatever its kind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from open_cloc.labelling.captioners import CAPTIONERS, open_captioner
from open_cloc.labelling.recipe import CaptionConfig
from open_cloc.labelling.types import Caption, Captioner, Failure
from tests.labelling.caption_server import Server, answer, picture_in
from tests.labelling.captioners.made import local_config, save_git
from tests.labelling.made import encoded

IMAGES = [encoded(i, "PNG", size) for i, size in enumerate([(24, 16), (64, 16), (16, 64), (40, 40), (1, 1)])]
GIVEN = [[f"caption {i}", "another"] for i in range(len(IMAGES))]


@pytest.fixture(params=CAPTIONERS)
def captioner(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Captioner]:
    """A captioner of each kind of the dict."""
    if request.param == "server":
        pytest.importorskip("httpx")
        server = Server(lambda _, body: answer(f"{len(picture_in(body))} bytes"))
        own: Any = open_captioner(CaptionConfig(kind="server", weights="m", url=server.url))
        yield own
        own.close()
        server.close()
    elif request.param == "local":
        save_git(tmp_path)
        yield open_captioner(local_config(tmp_path))
    else:
        yield open_captioner(CaptionConfig(kind=request.param))


def test_each_picture_has_a_caption_in_order_and_alone_the_same(captioner: Captioner) -> None:
    together = captioner(IMAGES, GIVEN)
    assert all(isinstance(own, Caption) and own.text.strip() and own.source for own in together)
    for image, given, expected in zip(IMAGES, GIVEN, together, strict=True):
        assert captioner([image], [given]) == [expected]
    assert captioner([], []) == []


def test_a_picture_that_cannot_be_captioned_fails_alone(captioner: Captioner) -> None:
    good, bad, other = captioner([IMAGES[0], b"no picture", IMAGES[1]], [GIVEN[0], [], GIVEN[1]])
    assert [good, other] == captioner(IMAGES[:2], GIVEN[:2])
    assert isinstance(bad, Failure)
    assert bad.cause
    assert "\n" not in bad.message


def test_it_says_what_it_is(captioner: Captioner) -> None:
    assert captioner.provenance["name"] in CAPTIONERS
    assert json.loads(json.dumps(captioner.provenance)) == captioner.provenance


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "gpt"}, r"unknown caption\.kind 'gpt'; expected one of given, local, server or package"),
        ({"kind": "no.such:Thing"}, "no caption.kind at 'no.such:Thing'"),
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
