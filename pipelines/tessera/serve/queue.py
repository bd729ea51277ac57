"""Requests wait here for the engine: a bounded queue, one worker, and answers that come back piece by piece.

The worker is a thread, so that the event loop keeps answering /health and refusing what is too much while a model
computes. Whoever stops listening stops the work at the next token, and gives its place free.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from tessera.serve.engine import Completion, Engine, Prepared

Item = tuple[int, str | Completion]
"""Which prompt of the request, and a piece of its text or, last, its completion."""


class Full(Exception):
    """As many requests as allowed run or wait."""


class Queue:
    """Gives the engine one request after the other; made and used in one event loop."""

    def __init__(self, engine: Engine, *, max_requests: int) -> None:
        self.engine = engine
        self.max_requests = max_requests
        self.num_requests = 0
        """Requests that run or wait."""
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tessera-engine")

    def admit(self) -> "Place":
        """A place among those who run or wait.

        Raises:
            Full: there is none.
        """
        if self.num_requests >= self.max_requests:
            raise Full
        self.num_requests += 1
        return Place(self)

    def close(self) -> None:
        """Takes no more work; what waits is dropped."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _leave(self) -> None:
        self.num_requests -= 1


class Place:
    """One admitted request: `async with place: async for item in place.run(...)`."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._gone = threading.Event()
        self._work: Future[None] | None = None

    async def run(self, prompts: Sequence[Prepared]) -> AsyncIterator[Item]:
        """Yields the items of all prompts in order; raises what the engine raised."""
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[Item | BaseException | None] = asyncio.Queue()

        def send(item: Item | BaseException | None) -> None:
            loop.call_soon_threadsafe(items.put_nowait, item)

        def work() -> None:
            try:
                for index, prompt in enumerate(prompts):
                    stream = self._queue.engine.stream(prompt)
                    for item in stream:
                        if self._gone.is_set():
                            stream.close()
                            return
                        send((index, item))
                send(None)
            except BaseException as error:
                send(error)

        self._work = self._queue._worker.submit(work)
        while (item := await items.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def release(self) -> None:
        """Gives the place free, at once or when the worker has noticed that nobody listens; may be called again."""
        if self._gone.is_set():
            return
        self._gone.set()
        if self._work is None or self._work.cancel() or self._work.done():
            self._queue._leave()
            return
        loop = asyncio.get_running_loop()
        self._work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._queue._leave))
