"""The model's side of a server: one thread computes, all others wait without holding anything up."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from open_cloc.index.query import of_image, total
from open_cloc.inference.encoded import EncodedImage, Regions
from open_cloc.inference.inputs import boxes_of_picture
from open_cloc.inference.predictor import Predictor
from open_cloc.inference.tokens import content_of
from open_cloc.pictures import read_pixels
from open_cloc.server.batching import Batcher, ImageBatcher, ImageCache
from open_cloc.server.fetch import Fetcher
from open_cloc.server.limits import Limits, RefusedError
from open_cloc.server.metrics import Metrics
from open_cloc.server.requests import Asked, check_picture, picture_of

if TYPE_CHECKING:
    from open_cloc.index.region_index import RegionIndex

T = TypeVar("T")

DECODERS = 2  # threads
PRIVATE = re.compile(r"\bpath\b", re.IGNORECASE)  # a column that says where the machine keeps its pictures
MOST_FILTER = 500  # characters


class Service:
    """Answers questions about pictures.

    Attributes:
        predictor: The model.
        limits: What is taken.
        index: What is searched, if anything.
        fetch: Fetches pictures by URL.
        metrics: Counters.
    """

    def __init__(
        self,
        predictor: Predictor,
        limits: Limits,
        index: RegionIndex | None = None,
        allowed_urls: Sequence[str] = (),
    ) -> None:
        self.predictor, self.limits, self.index = predictor, limits, index
        self.fetch = Fetcher(allowed_urls, limits)
        self._model = ThreadPoolExecutor(1, "model")
        self._others = ThreadPoolExecutor(DECODERS, "decode")
        cache = ImageCache(limits.cache_megabytes * 2**20)
        self.metrics = Metrics(lambda: self.images.waiting, lambda: cache.bytes)
        self.images = ImageBatcher(
            lambda pictures: predictor.encode(list(pictures)),
            self._model,
            cache,
            batch=limits.batch,
            waiting=limits.waiting,
            told=self.metrics.batches.observe,
        )
        self._prompts: Batcher[tuple[EncodedImage, np.ndarray], Regions] = Batcher(
            lambda asked: predictor.embed_together(*zip(*asked)), self._model, batch=limits.batch
        )

    async def close(self) -> None:
        """Let what runs end, and answer what waits."""
        await self.images.close()
        await self._prompts.close()
        for pool in (self._model, self._others):
            pool.shutdown(wait=True, cancel_futures=True)

    async def compute(self, function: Callable[..., T], *args: Any, **named: Any) -> T:
        """Call something in the model's thread."""
        return await asyncio.get_running_loop().run_in_executor(
            self._model, partial(function, *args, **named)
        )

    async def beside(self, function: Callable[..., T], *args: Any, **named: Any) -> T:
        """Call something in a thread that is not the model's."""
        return await asyncio.get_running_loop().run_in_executor(
            self._others, partial(function, *args, **named)
        )

    async def image(self, asked: Asked) -> EncodedImage:
        """The picture of a request, looked at or remembered; raises `RefusedError`."""
        encoded = asked.image if asked.image is not None else await self.read(asked.form.image)
        return await self.look_at(encoded)

    async def regions(self, image: EncodedImage, form: Any) -> Regions:
        """The boxes of a form, embedded together with those of other requests.

        Raises:
            UserError: If a box is not finite, inverted or outside the picture.
        """
        boxes = boxes_of_picture(form.boxes, image.size_hw, form.box_format, form.normalized)
        return await self._prompts((image, boxes))

    async def read(self, text: str) -> bytes:
        """The file of a picture that is given as base64 or as a URL."""
        if re.match(r"https?://", text, re.IGNORECASE):
            return await self.fetch(text)
        return picture_of(text)

    async def look_at(self, encoded: bytes) -> EncodedImage:
        """A picture's file, looked at or remembered."""
        content = content_of(encoded)
        known = self.images.cache.get(content) is not None
        self.metrics.pictures.labels("hit" if known else "miss").inc()
        if not known:
            await self.beside(check_picture, encoded, self.limits)
        return await self.images(content, lambda: self.beside(read_pixels, encoded, "image"))

    async def search(self, asked: Asked) -> list[dict[str, Any]]:
        """Hits of a request as plain JSON types, without the machine's paths."""
        form, index = asked.form, self.index
        if index is None:
            raise RefusedError(404, "this server has no index")
        self.limits.check_count(form.limit, self.limits.hits, "hits")
        wanted, unwanted = _texts(form.text), _texts(form.minus)
        if wanted or unwanted:
            self.limits.check_texts([*wanted, *unwanted], "texts")
        if len(form.where) > MOST_FILTER or PRIVATE.search(form.where):
            raise RefusedError(422, f"where must have at most {MOST_FILTER} characters, and not ask for path")
        parts = [await self.compute(index.text, *wanted)] if wanted else []
        if asked.image is not None or form.image is not None:
            image = await self.image(asked)
            parts.append(await self.compute(of_image, image, form.box))
        elif form.box is not None:
            raise RefusedError(422, "box needs an image: it is a box of that picture")
        if form.like is not None:
            parts.append(await self.beside(index.row, form.like))
        if not parts:
            raise RefusedError(422, "nothing to look for; give text, image (with box) or like")
        query = total(parts, [await self.compute(index.text, text) for text in unwanted])
        rows = None if form.rows == "auto" else form.rows
        hits = await self.beside(index.search, query, form.limit, where=form.where, rows=rows)
        return [hit_as_json(hit.as_json(), hit.picture) for hit in hits]


def _texts(given: str | list[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else list(given or ())


def hit_as_json(document: dict[str, Any], picture: str) -> dict[str, Any]:
    """A hit without the place of its picture on this machine."""
    return {**{name: value for name, value in document.items() if name != "path"}, "picture": picture}


def as_base64(rows: np.ndarray) -> str:
    """Numbers as base64 of little-endian float32."""
    return base64.b64encode(rows.astype("<f4").tobytes()).decode()
