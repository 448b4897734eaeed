"""Questions of many clients through the model together; each picture once while it is remembered."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import fields, is_dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from torch import Tensor

from open_cloc.inference.encoded import EncodedImage
from open_cloc.server.limits import RefusedError

Q = TypeVar("Q")
A = TypeVar("A")

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


class Batcher(Generic[Q, A]):
    """Answers questions: those that come while the model works are answered together next.

    All of it runs in the event loop, but for the model.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Q]], Sequence[A]],
        executor: Executor,
        *,
        batch: int,
        wait: float = 0.0,
        told: Callable[[int], None] = lambda size: None,
    ) -> None:
        """Make one; its task starts with the first question.

        Args:
            answer: Answers questions.
            executor: One thread, the model's.
            batch: Most questions that go together.
            wait: Seconds that a question waits for others, where the model is idle.
            told: Is told the size of each batch.
        """
        self._answer, self._executor = answer, executor
        self._batch, self._wait, self._told = batch, wait, told
        self._queue: deque[tuple[Q, asyncio.Future[A]]] = deque()
        self._asked: list[tuple[Q, asyncio.Future[A]]] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    @property
    def waiting(self) -> int:
        """Questions that wait."""
        return len(self._queue)

    async def __call__(self, question: Q) -> A:
        """The answer to a question; raises what answering it alone raises, or `RefusedError` once closed."""
        if self._is_closed:
            raise RefusedError(503, "the server stops")
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._queue.append((question, future))
        self._wake.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await future

    async def close(self) -> None:
        """Stop the task; what waits is answered with 503."""
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        for _, future in [*self._asked, *self._queue]:
            if not future.done():
                future.set_exception(RefusedError(503, "the server stops"))
        self._asked = []
        self._queue.clear()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            if len(self._queue) < self._batch:
                await asyncio.sleep(self._wait)
            outcomes = await loop.run_in_executor(self._executor, self._take)
            self._told(len(outcomes))
            for (_, future), outcome in zip(self._asked, outcomes):
                if future.done():  # whoever asked has gone
                    continue
                if isinstance(outcome, Exception):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)
            self._asked = []
            if not self._queue:
                self._wake.clear()

    def _take(self) -> list[A | Exception]:
        """Answer what waits by the time the model is free; in its thread."""
        self._asked = [self._queue.popleft() for _ in range(min(len(self._queue), self._batch))]
        questions = [question for question, _ in self._asked]
        outcomes = self._try(questions)
        if len(questions) > 1 and isinstance(outcomes[0], Exception):
            # A bad one is no fault of those beside it.
            return [self._try([question])[0] for question in questions]
        return outcomes

    def _try(self, questions: Sequence[Q]) -> list[A | Exception]:
        try:
            return list(self._answer(questions))
        except Exception as error:  # the model's, or a lack of memory: it is each question's answer
            return [error] * len(questions)


class ImageBatcher:
    """Looks at pictures, each once while it is remembered, and several together."""

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
        """Make one.

        Args:
            encode: Looks at pictures (H, W, 3).
            executor: One thread, the model's.
            cache: What is remembered.
            batch: Most pictures that go together.
            waiting: Most pictures that wait.
            told: Is told the size of each batch.
        """
        self.cache, self._most_waiting = cache, waiting
        self._look = Batcher(encode, executor, batch=batch, wait=MAX_WAIT, told=told)
        self._coming: dict[str, asyncio.Future[EncodedImage]] = {}

    @property
    def waiting(self) -> int:
        """Pictures that wait."""
        return self._look.waiting

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
            # A task of its own: it goes on for others where whoever asked first has gone.
            task = asyncio.create_task(self._see(content, decode))
            self._coming[content] = task
            task.add_done_callback(lambda done: self._forget(content, done))
        return await asyncio.shield(self._coming[content])

    async def close(self) -> None:
        """Stop; what waits is answered with 503."""
        await self._look.close()
        await asyncio.gather(*self._coming.values(), return_exceptions=True)

    async def _see(self, content: str, decode: Callable[[], Awaitable[np.ndarray]]) -> EncodedImage:
        image = await self._look(await decode())
        self.cache.put(content, image)
        return image

    def _forget(self, content: str, done: asyncio.Future[EncodedImage]) -> None:
        self._coming.pop(content, None)
        if not done.cancelled():
            done.exception()  # is told to those who wait; where nobody does, it is no defect
