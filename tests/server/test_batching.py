"""Pictures go through the tower together, each once, within a bound of memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from open_cloc.inference.encoded import EncodedImage
from open_cloc.inference.predictor import Predictor
from open_cloc.server.batching import Batcher, ImageBatcher, ImageCache, bytes_of
from open_cloc.server.limits import RefusedError
from tests.tiny import picture


class Tower:
    """A predictor that counts what it looks at."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.sizes: list[int] = []

    def __call__(self, pictures: Sequence[np.ndarray]) -> Sequence[EncodedImage]:
        self.sizes.append(len(pictures))
        if any(pixels.max() == 0 for pixels in pictures):
            raise ValueError("a black picture")
        return self.predictor.encode(list(pictures))


def look(tower: Tower, pictures: dict[str, np.ndarray], names: Sequence[str], **options: Any) -> list[Any]:
    """Ask for pictures by name, all at once; errors are answers."""

    async def run() -> list[Any]:
        with ThreadPoolExecutor(1) as pool:
            cache = options.pop("cache", ImageCache(2**30))
            batcher = ImageBatcher(tower, pool, cache, **{"batch": 8, "waiting": 100, **options})

            async def decoded(name: str) -> np.ndarray:
                await asyncio.sleep(0)
                return pictures[name]

            asked = [batcher(name, lambda name=name: decoded(name)) for name in names]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            await batcher.close()
            return answers

    return asyncio.run(run())


def test_what_comes_together_goes_together(predictor: Predictor) -> None:
    pictures = {str(seed): picture(seed=seed) for seed in range(20)}
    tower = Tower(predictor)
    images = look(tower, pictures, list(pictures))
    assert sorted(tower.sizes) == [4, 8, 8]
    for name, image in zip(pictures, images):
        alone = predictor.encode(pictures[name])
        np.testing.assert_allclose(image.embed(), alone.embed(), atol=1e-5)


def test_one_picture_asked_for_by_many_is_looked_at_once(predictor: Predictor) -> None:
    tower = Tower(predictor)
    images = look(tower, {"a": picture()}, ["a"] * 10)
    assert tower.sizes == [1]
    assert all(image is images[0] for image in images)


def test_a_bad_picture_costs_only_itself(predictor: Predictor) -> None:
    tower = Tower(predictor)
    pictures = {"a": picture(seed=1), "bad": np.zeros((9, 9, 3), np.uint8), "c": picture(seed=2)}
    first, bad, last = look(tower, pictures, ["a", "bad", "c"])
    assert isinstance(first, EncodedImage)
    assert isinstance(last, EncodedImage)
    assert isinstance(bad, ValueError)


def test_a_picture_that_cannot_be_decoded_fails_for_all_who_wait(predictor: Predictor) -> None:
    answers = look(Tower(predictor), {}, ["lost", "lost"])
    assert [type(answer) for answer in answers] == [KeyError, KeyError]


def test_the_cache_forgets_what_was_not_asked_for_longest(predictor: Predictor) -> None:
    images = predictor.encode([picture(seed=seed) for seed in range(3)])
    size = bytes_of(images[0].state)
    assert size > images[0].state.image_tokens.numel() * 4
    cache = ImageCache(2 * size)
    cache.put("a", images[0])
    cache.put("b", images[1])
    assert cache.get("a") is images[0]
    cache.put("c", images[2])
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (images[0], None, images[2])
    assert cache.bytes == 2 * size
    assert len(cache) == 2


@pytest.mark.parametrize("room", [0, 10])
def test_a_cache_without_room_keeps_nothing(room: int, predictor: Predictor) -> None:
    cache = ImageCache(room)
    cache.put("a", predictor.encode(picture()))
    assert (cache.get("a"), cache.bytes) == (None, 0)


def test_what_comes_while_the_model_works_is_taken_when_it_is_free() -> None:
    sizes: list[int] = []
    free = threading.Event()

    def answer(asked: Sequence[int]) -> list[int]:
        sizes.append(len(asked))
        return [-number for number in asked]

    async def run() -> list[int]:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(free.wait, 60)  # another job of the model's
            batcher = Batcher(answer, pool, batch=100)
            asked = [asyncio.create_task(batcher(number)) for number in range(3)]
            await asyncio.sleep(0.05)
            asked += [asyncio.create_task(batcher(number)) for number in range(3, 6)]
            await asyncio.sleep(0.05)
            free.set()
            answers = await asyncio.gather(*asked)
            await batcher.close()
            return answers

    assert asyncio.run(run()) == [0, -1, -2, -3, -4, -5]
    assert sizes == [6]


def test_who_goes_away_holds_up_nobody_and_a_closed_one_refuses() -> None:
    def answer(asked: Sequence[int]) -> list[int]:
        return [-number for number in asked]

    async def run() -> list[Any]:
        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(answer, pool, batch=100, wait=0.05)
            gone, stays = (asyncio.create_task(batcher(number)) for number in (1, 2))
            await asyncio.sleep(0)
            gone.cancel()
            answers = await asyncio.gather(gone, stays, return_exceptions=True)
            waits = asyncio.create_task(batcher(3))
            await asyncio.sleep(0)
            await batcher.close()
            return [*answers, *await asyncio.gather(waits, batcher(4), return_exceptions=True)]

    gone, stays, waited, late = asyncio.run(run())
    assert isinstance(gone, asyncio.CancelledError)
    assert stays == -2
    assert [error.status for error in (waited, late) if isinstance(error, RefusedError)] == [503, 503]


def test_who_asked_first_may_go_and_the_others_are_answered(predictor: Predictor) -> None:
    async def run() -> Any:
        with ThreadPoolExecutor(1) as pool:
            batcher = ImageBatcher(Tower(predictor), pool, ImageCache(2**30), batch=8, waiting=9)

            async def decoded() -> np.ndarray:
                await asyncio.sleep(0.05)
                return picture()

            first = asyncio.create_task(batcher("a", decoded))
            other = asyncio.create_task(batcher("a", decoded))
            await asyncio.sleep(0.01)
            first.cancel()
            image = await other
            await batcher.close()
            return image

    assert isinstance(asyncio.run(run()), EncodedImage)
