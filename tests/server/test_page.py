"""The page in a real browser: a box drawn by mouse is named, a phrase gets its box, a search shows hits."""

from __future__ import annotations

import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from open_cloc.inference.predictor import Predictor
from tests.server.conftest import png
from tests.tiny import picture

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")

# Nothing that asks the network for something of the browser's own.
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
QUIET += ("--disable-background-networking", "--disable-component-update")
SECONDS = 30


@pytest.fixture(scope="module")
def address(predictor: Predictor, searched: Any) -> Iterator[str]:
    import uvicorn

    from open_cloc.server.app import create_app

    app = create_app(predictor, name="tiny", index=searched)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + SECONDS
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join(SECONDS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, address: str, tmp_path: Path) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    page = context.new_page()
    page.set_default_timeout(1000 * SECONDS)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.goto(address)
    yield page
    context.close()
    assert faults == []


def open_photo(page: Any, tmp_path: Path, seed: int = 3) -> None:
    file = tmp_path / "photo.png"
    file.write_bytes(png(picture(200, 360, seed)))
    page.set_input_files("#file", str(file))
    page.wait_for_selector("#stage:not([hidden])")


def drag(page: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw a box, in shares of the picture."""
    frame = page.locator("#overlay").bounding_box()
    for number, (x, y) in enumerate((start, end)):
        page.mouse.move(frame["x"] + x * frame["width"], frame["y"] + y * frame["height"], steps=4)
        (page.mouse.up if number else page.mouse.down)()


def test_a_box_is_drawn_and_named(page: Any, predictor: Predictor, tmp_path: Path) -> None:
    open_photo(page, tmp_path)
    page.fill("#labels", "mug\ncat\nold chair")
    drag(page, (0.25, 0.25), (0.75, 0.5))
    page.wait_for_selector("#named li")
    assert page.locator("#named li").count() == 3
    best = page.locator("#named li .name").first.inner_text()
    expected = predictor.encode(tmp_path / "photo.png").classify(
        ["mug", "cat", "old chair"], [[90, 50, 270, 100]]
    )
    assert best == expected[0].labels[0].label
    assert page.locator(".tag").inner_text() == best
    label = page.locator("g.box").get_attribute("aria-label")
    assert re.fullmatch(rf"Box 1: {best}, 0\.\d\d", label)


def test_a_phrase_gets_its_box(page: Any, predictor: Predictor, tmp_path: Path) -> None:
    open_photo(page, tmp_path)
    page.fill("#phrases", "a red mug, the cat")
    page.keyboard.press("Enter")
    page.wait_for_selector("#found li")
    assert page.locator("#found .name").all_inner_texts() == ["a red mug", "the cat"]
    rect = page.locator("g.box rect").first
    x1, y1, _, _ = predictor.encode(tmp_path / "photo.png").find(["a red mug", "the cat"])[0].box
    assert float(rect.get_attribute("x")) == pytest.approx(x1, abs=0.5)
    assert float(rect.get_attribute("y")) == pytest.approx(y1, abs=0.5)


def test_search_shows_hits_with_their_boxes(page: Any, searched: Any) -> None:
    page.click("#tab-search")
    page.fill("#query", "a red mug")
    page.keyboard.press("Enter")
    page.wait_for_selector(".hit .frame i")
    hits = searched.search("a red mug", 12)
    assert page.locator(".hit").count() == len(hits)
    assert page.locator(".hit .what").first.inner_text() == (hits[0].text or hits[0].caption)
    # Of the first hit, not the first that is there: a mark comes with its picture, and pictures in any order.
    own = page.locator(".hit").first.locator(".frame i")
    own.wait_for()
    mark = own.evaluate("mark => parseFloat(mark.style.left)")
    assert mark == pytest.approx(100 * hits[0].box[0] / hits[0].size_hw[1], abs=0.1)
    page.locator(".hit button").first.click()  # more like this one
    page.locator("#searched", has_text="more like").wait_for()
    page.wait_for_selector(".hit .frame i")
    alike = searched.search(searched.row(hits[0].id), 12)
    shown = page.locator(".hit .score").all_inner_texts()
    assert shown == [f"{hit.score:.2f}" for hit in alike]


def test_a_box_of_the_own_picture_is_searched_for(page: Any, tmp_path: Path) -> None:
    open_photo(page, tmp_path)
    drag(page, (0.1, 0.1), (0.5, 0.6))
    page.wait_for_selector("#named li")
    page.click("#search-box")
    page.wait_for_selector(".hit .frame i")
    assert "the box of" in page.locator("#searched").inner_text()


def test_all_of_it_by_keyboard(page: Any, tmp_path: Path) -> None:
    open_photo(page, tmp_path)
    page.focus("#add-box")
    page.keyboard.press("Enter")
    page.wait_for_selector("#named li")

    def side(name: str) -> float:
        return float(page.locator("g.box rect").get_attribute(name))

    left, width = side("x"), side("width")
    page.keyboard.press("ArrowRight")
    assert side("x") > left
    page.keyboard.press("Shift+ArrowRight")
    assert side("width") > width
    page.wait_for_selector(".tag")  # named again
    page.keyboard.press("Delete")
    assert page.locator("g.box").count() == 0


def test_a_file_that_is_no_picture_is_said(page: Any, tmp_path: Path) -> None:
    file = tmp_path / "notes.png"
    file.write_text("no picture")
    page.set_input_files("#file", str(file))
    page.wait_for_selector("#status.bad")
    assert "no picture" in page.locator("#status").inner_text()


def test_everything_has_a_name_for_screen_readers(page: Any, tmp_path: Path) -> None:
    open_photo(page, tmp_path)
    drag(page, (0.1, 0.1), (0.5, 0.6))
    page.wait_for_selector("#named li")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea, [role=button], img')]
            .filter((one) => !(one.textContent.trim() || one.getAttribute('aria-label')
                || one.hasAttribute('alt') || (one.labels && one.labels.length)))
            .map((one) => one.outerHTML)"""
    )
    assert nameless == []


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(width: int, scheme: str, browser: Any, address: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("#tab-search:not([hidden])")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground, text = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert contrast(ground, text) > 7
    context.close()


def contrast(one: str, other: str) -> float:
    """The ratio of two colours by WCAG 2."""
    lights = []
    for colour in (one, other):
        channels = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)
