"""Batches computed at once, each by one thread: on a CPU faster than all cores on one batch of a small model."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

GivenT = TypeVar("GivenT")
FoundT = TypeVar("FoundT")


def in_parallel(work: Callable[[GivenT], FoundT], batches: Iterable[GivenT], *, workers: int) -> Iterator[FoundT]:
    """The results of `work` in the order of `batches`, of which at most 2 x `workers` are held."""
    if workers == 1:
        yield from map(work, batches)
        return
    waiting: deque[Future[FoundT]] = deque()
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for batch in batches:
            waiting.append(pool.submit(work, batch))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
