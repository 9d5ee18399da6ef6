"""Load images in threads while the model works on earlier ones; memory stays bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def prefetch(
    items: Iterable[Item], load: Callable[[Item], Loaded], *, ahead: int, workers: int = 2
) -> Generator[Loaded, None, None]:
    """Yield `load(item)` for every item, in the order of `items`.

    ahead: maximum number of results that are being loaded or wait for the caller. While the caller works on one
    result, the next `ahead` are loaded by `workers` threads. `items` is iterated in the caller's thread and never
    further than that.
    An exception of `load` is raised when its item would be yielded, and ends the iteration; a `load` whose failures
    should not end it returns them. When the iterator is closed, exhausted or has raised, loads that have not begun are
    cancelled and the threads are joined.
    Raises ValueError, at the first `next`, when `ahead` is below 1.
    """
    if ahead < 1:
        raise ValueError(f"ahead: expected at least 1, got {ahead}")
    pool = ThreadPoolExecutor(max_workers=workers)
    coming = iter(items)
    try:
        waiting: deque[Future[Loaded]] = deque(pool.submit(load, item) for item in islice(coming, ahead))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(load, item) for item in islice(coming, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
