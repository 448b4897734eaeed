"""Pictures of many clients through the tower together, each once while it is remembered."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from torch import Tensor

from open_cloc.inference.encoded import EncodedImage
from open_cloc.server.limits import RefusedError

MAX_WAIT = 0.004  # seconds that a picture waits for others, where the model is idle


class ImageCache:
    """The pictures that were asked for last, by their content, within so many bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._known: OrderedDict[str, tuple[EncodedImage, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, content: str) -> EncodedImage | None:
        """A picture, None where it is not known."""
        if content not in self._known:
            return None
        self._known.move_to_end(content)
        return self._known[content][0]

    def put(self, content: str, image: EncodedImage) -> None:
        """Remember a picture, and forget those that were not asked for longest."""
        size = bytes_of(image.state)
        if content in self._known or size > self.max_bytes:
            return
        self._known[content] = (image, size)
        self.bytes += size
        while self.bytes > self.max_bytes:
            _, (_, freed) = self._known.popitem(last=False)
            self.bytes -= freed


def bytes_of(value: Any) -> int:
    """Bytes of all tensors in nested dataclasses and tuples."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if is_dataclass(value):
        return sum(bytes_of(getattr(value, field.name)) for field in fields(value))
    return sum(map(bytes_of, value)) if isinstance(value, (tuple, list)) else 0


class ImageBatcher:
    """Looks at pictures: those that come while the model works go through its tower together next.

    All of it runs in the event loop, but for the model.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[np.ndarray]], Sequence[EncodedImage]],
        executor: Executor,
        cache: ImageCache,
        *,
        batch: int,
        waiting: int,
        told: Callable[[int], None] = lambda size: None,
    ) -> None:
        """Make one; its task starts with the first picture.

        Args:
            encode: Looks at pictures (H, W, 3).
            executor: One thread, the model's.
            cache: What is remembered.
            batch: Most pictures that go together.
            waiting: Most pictures that wait.
            told: Is told the size of each batch.
        """
        self._encode, self._executor, self.cache = encode, executor, cache
        self._batch, self._most_waiting, self._told = batch, waiting, told
        self._queue: list[tuple[str, np.ndarray, asyncio.Future[EncodedImage]]] = []
        self._coming: dict[str, asyncio.Future[EncodedImage]] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Pictures that wait."""
        return len(self._queue)

    async def __call__(self, content: str, decode: Callable[[], Awaitable[np.ndarray]]) -> EncodedImage:
        """A picture, looked at or remembered.

        Args:
            content: Its content's name.
            decode: Gives its pixels (H, W, 3), where they are needed.

        Raises:
            RefusedError: With status 503 where too many wait.
        """
        known = self.cache.get(content)
        if known is not None:
            return known
        if content not in self._coming:
            if len(self._coming) >= self._most_waiting:
                raise RefusedError(503, f"{len(self._coming)} pictures are waiting: try again soon")
            future = asyncio.get_running_loop().create_future()
            self._coming[content] = future
            future.add_done_callback(lambda done: self._coming.pop(content, None))
            try:
                pixels = await decode()
            except BaseException as error:
                # Others may wait for the same picture.
                future.set_exception(error if isinstance(error, Exception) else RefusedError(503, "stopped"))
                future.exception()
                raise
            self._queue.append((content, pixels, future))
            self._wake.set()
            if self._task is None:
                self._task = asyncio.create_task(self._run())
        return await asyncio.shield(self._coming[content])

    async def close(self) -> None:
        """Stop the task; what waits is answered with 503."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        for _, _, future in self._queue:
            if not future.done():
                future.set_exception(RefusedError(503, "the server stops"))
        self._queue = []

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            if len(self._queue) < self._batch:
                await asyncio.sleep(MAX_WAIT)
            taken, self._queue = self._queue[: self._batch], self._queue[self._batch :]
            if not self._queue:
                self._wake.clear()
            if taken:
                await self._look_at(taken)

    async def _look_at(self, taken: Sequence[tuple[str, np.ndarray, asyncio.Future[EncodedImage]]]) -> None:
        loop = asyncio.get_running_loop()
        self._told(len(taken))
        try:
            images = await loop.run_in_executor(self._executor, self._encode, [row[1] for row in taken])
        except Exception as error:  # the model's, or a lack of memory: it is each picture's answer
            if len(taken) > 1:
                for row in taken:  # one bad picture is no fault of those beside it
                    await self._look_at([row])
                return
            if not taken[0][2].done():
                taken[0][2].set_exception(error)
            return
        for (content, _, future), image in zip(taken, images):
            self.cache.put(content, image)
            if not future.done():
                future.set_result(image)
