"""The order of training images: the same for any number of processes, and every image once an epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mask2former_dinov3.data.sampler import EpochPlan, SampleKey, TrainingOrder

FACTORS = np.array([1.0, 2.5, 1.0, 3.0, 1.25, 1.0, 1.0])


def steps(num_images: int, num_steps: int, processes: int, **kwargs: Any) -> list[set[SampleKey]]:
    """What each optimiser step sees over all processes."""
    seen: list[set[SampleKey]] = [set() for _ in range(num_steps)]
    for rank in range(processes):
        order = TrainingOrder(num_images, rank=rank, num_processes=processes, last_step=num_steps, **kwargs)
        batches = list(order)
        assert len(batches) == len(order)
        for number, batch in enumerate(batches):
            seen[number // order.accumulation] |= set(batch)
    return seen


@pytest.mark.parametrize("factors", [None, FACTORS])
@pytest.mark.parametrize(
    ("processes", "batch_size", "accumulation"), [(2, 2, 1), (4, 1, 1), (1, 1, 4), (1, 2, 2), (2, 1, 2)]
)
def test_order__does_not_depend_on_how_a_step_is_shared(
    processes: int, batch_size: int, accumulation: int, factors: Any
) -> None:
    options = {"seed": 3, "repeat_factors": factors}
    expected = steps(7, 5, 1, batch_size=4, **options)
    assert steps(7, 5, processes, batch_size=batch_size, accumulation=accumulation, **options) == expected


def test_order__shows_every_image_once_an_epoch() -> None:
    batches = list(TrainingOrder(7, batch_size=2, seed=0, last_step=7))
    places = [place for batch in batches for place in batch]
    assert sorted(places) == [(epoch, index) for epoch in range(2) for index in range(7)]
    assert [index for _, index in places[:7]] != [index for _, index in places[7:]]


@pytest.mark.parametrize("factors", [None, FACTORS[:5]])
def test_order__goes_on_where_it_was_cut(factors: Any) -> None:
    options: dict[str, Any] = {"accumulation": 2, "seed": 1, "repeat_factors": factors}
    whole = list(TrainingOrder(5, batch_size=2, last_step=12, **options))
    rest = list(TrainingOrder(5, batch_size=2, first_step=9, last_step=12, **options))
    assert rest == whole[18:]


def test_order__without_factors_is_one_permutation_an_epoch() -> None:
    """What runs of earlier versions saw: a resumed one continues with it."""
    order = TrainingOrder(7, batch_size=7, seed=5, last_step=2)
    expected = [[(e, i) for i in np.random.default_rng([5, e]).permutation(7).tolist()] for e in range(2)]
    assert list(order) == expected


def test_order__counts_epochs() -> None:
    order = TrainingOrder(5, batch_size=2, last_step=10)
    assert [order.epochs_done(step) for step in range(7)] == [0, 0, 0, 1, 1, 2, 2]


def test_plan__an_image_appears_as_often_as_its_factor_says() -> None:
    """Whole factors exactly in each epoch, others rounded up or down, right on average; appearances are numbered."""
    plan = EpochPlan(7, 2, FACTORS)
    counts = []
    for epoch in range(400):
        keys = [plan.key_at(position) for position in range(plan.start(epoch), plan.start(epoch + 1))]
        assert {key[0] for key in keys} == {epoch}
        found = [sorted(key[2:] for key in keys if key[1] == index) for index in range(7)]
        assert all(own == [(), *((number,) for number in range(1, len(own)))] for own in found)
        counts.append([len(own) for own in found])
    assert set(np.unique(np.array(counts)[:, 1])) == {2, 3}
    assert (np.array(counts)[:, [0, 2, 3, 5, 6]] == [1, 1, 3, 1, 1]).all()
    np.testing.assert_allclose(np.mean(counts, axis=0), FACTORS, atol=0.1)


def test_plan__counts_epochs_of_different_length() -> None:
    order = TrainingOrder(7, batch_size=1, seed=2, last_step=10**6, repeat_factors=FACTORS)
    lengths = [order.plan.start(epoch + 1) - order.plan.start(epoch) for epoch in range(8)]
    assert len(set(lengths)) > 1
    assert order.epochs_done(sum(lengths[:8])) == order.epochs_at(sum(lengths[:8])) == 8
    assert order.epochs_done(sum(lengths[:8]) - 1) == 7
    assert order.epochs_at(lengths[0] // 2) == pytest.approx(lengths[0] // 2 / lengths[0])
    assert EpochPlan(7, 2, FACTORS).key_at(60) == order.image_at(60)  # asked for without those before
