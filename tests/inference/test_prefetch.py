"""The look-ahead over images: order, bound on memory, errors, and threads that end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from mask2former_dinov3.inference.prefetch import prefetch


def threads_of_pools() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")}


@pytest.mark.parametrize("ahead", [1, 2, 5, 100])
def test_prefetch__keeps_the_order_when_later_items_load_faster(ahead: int) -> None:
    def load(item: int) -> int:
        time.sleep(0.002 * (item % 3 == 0))
        return item * item

    assert list(prefetch(range(20), load, ahead=ahead, workers=4)) == [item * item for item in range(20)]
    assert list(prefetch([], load, ahead=ahead)) == []


@pytest.mark.parametrize("ahead", [1, 3])
def test_prefetch__loads_exactly_so_many_ahead(ahead: int) -> None:
    taken: list[int] = []
    loaded: list[int] = []

    def items() -> Iterator[int]:
        for item in range(10):
            taken.append(item)
            yield item

    def load(item: int) -> int:
        loaded.append(item)
        return item

    for done, result in enumerate(prefetch(items(), load, ahead=ahead), start=1):
        assert result == done - 1
        expected = min(done + ahead, 10)  # what was yielded, and those in flight
        assert len(taken) == expected
        deadline = time.monotonic() + 60
        while len(loaded) < expected and time.monotonic() < deadline:  # they load while the caller is busy
            time.sleep(0.001)
        assert len(loaded) == expected


def test_prefetch__loads_in_as_many_threads_as_told() -> None:
    together = threading.Barrier(3)
    assert list(prefetch(range(3), lambda item: item + 0 * together.wait(timeout=60), ahead=3, workers=3)) == [0, 1, 2]


def test_prefetch__raises_an_error_at_its_place_and_ends() -> None:
    def load(item: int) -> int:
        if item == 2:
            raise OSError("item 2 is broken")
        return item

    before = threads_of_pools()
    results = prefetch(range(5), load, ahead=4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(OSError, match=r"^item 2 is broken$"):
        next(results)
    assert list(results) == []
    assert threads_of_pools() == before


def test_prefetch__closed_early_cancels_what_waits_and_joins_its_threads() -> None:
    release = threading.Event()
    begun: list[int] = []

    def load(item: int) -> int:
        begun.append(item)
        if item:
            release.wait(timeout=60)
        return item

    before = threads_of_pools()
    results = prefetch(range(10), load, ahead=8, workers=1)
    assert next(results) == 0
    while 1 not in begun:
        time.sleep(0.001)
    threading.Timer(0.05, release.set).start()
    results.close()
    assert begun == [0, 1]  # 2 to 8 were submitted, and never ran
    assert threads_of_pools() == before


def test_prefetch__refuses_to_look_nowhere() -> None:
    with pytest.raises(ValueError, match=r"^ahead: expected at least 1, got 0$"):
        next(prefetch([1], str, ahead=0))
