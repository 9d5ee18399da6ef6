"""The order of training images: the same for any number of processes, and every image once an epoch."""

from __future__ import annotations

from typing import Any

import pytest

from mask2former_dinov3.data.sampler import TrainingOrder


def steps(num_images: int, num_steps: int, processes: int, **kwargs: Any) -> list[set[tuple[int, int]]]:
    """What each optimiser step sees over all processes."""
    seen: list[set[tuple[int, int]]] = [set() for _ in range(num_steps)]
    for rank in range(processes):
        order = TrainingOrder(num_images, rank=rank, num_processes=processes, last_step=num_steps, **kwargs)
        batches = list(order)
        assert len(batches) == len(order)
        for number, batch in enumerate(batches):
            seen[number // order.accumulation] |= set(batch)
    return seen


@pytest.mark.parametrize(
    ("processes", "batch_size", "accumulation"), [(2, 2, 1), (4, 1, 1), (1, 1, 4), (1, 2, 2), (2, 1, 2)]
)
def test_order__does_not_depend_on_how_a_step_is_shared(processes: int, batch_size: int, accumulation: int) -> None:
    expected = steps(7, 5, 1, batch_size=4, seed=3)
    assert steps(7, 5, processes, batch_size=batch_size, accumulation=accumulation, seed=3) == expected


def test_order__shows_every_image_once_an_epoch() -> None:
    batches = list(TrainingOrder(7, batch_size=2, seed=0, last_step=7))
    places = [place for batch in batches for place in batch]
    assert sorted(places) == [(epoch, index) for epoch in range(2) for index in range(7)]
    assert [index for _, index in places[:7]] != [index for _, index in places[7:]]


def test_order__goes_on_where_it_was_cut() -> None:
    whole = list(TrainingOrder(5, batch_size=2, accumulation=2, seed=1, last_step=6))
    rest = list(TrainingOrder(5, batch_size=2, accumulation=2, seed=1, first_step=3, last_step=6))
    assert rest == whole[6:]


def test_order__counts_epochs() -> None:
    order = TrainingOrder(5, batch_size=2, last_step=10)
    assert [order.epochs_done(step) for step in range(7)] == [0, 0, 0, 1, 1, 2, 2]
