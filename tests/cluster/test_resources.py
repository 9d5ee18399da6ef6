"""Workers fit beside the tasks that read for them, wherever Ray puts them."""

from __future__ import annotations

import itertools
import logging

import pytest

from mask2former_dinov3.cluster.resources import READER_CPUS, Workers, plan_workers
from mask2former_dinov3.errors import UserError


@pytest.mark.parametrize(
    ("nodes", "count", "expected"),
    [
        ([{"CPU": 1}], None, Workers(1, 0.5, 0)),
        ([{"CPU": 2}], None, Workers(1, 1, 0)),
        ([{"CPU": 2}], 2, Workers(2, 0.75, 0)),
        ([{"CPU": 16}], None, Workers(1, 15, 0)),
        ([{"CPU": 16}], 3, Workers(3, 5, 0)),
        ([{"CPU": 8}] * 4, None, Workers(4, 7, 0)),
        ([{}, {"CPU": 4}, {"CPU": 4}], None, Workers(2, 3, 0)),  # a head that only manages
        ([{"CPU": 16, "GPU": 1}], None, Workers(1, 1, 1)),
        ([{"CPU": 96, "GPU": 8}] * 2, None, Workers(16, 1, 1)),
        ([{"CPU": 4, "GPU": 8}], None, Workers(7, 0.5, 1)),
        ([{"CPU": 64}, {"CPU": 8, "GPU": 2}], None, Workers(2, 1, 1)),
    ],
)
def test_plan_workers__fills_the_cluster(nodes: list[dict[str, float]], count: int | None, expected: Workers) -> None:
    assert plan_workers(nodes, count) == expected


def test_plan_workers__leaves_room_to_read_however_they_are_spread() -> None:
    """All ways to put the workers on up to three nodes: some node always has CPUs for a reader."""
    for sizes in itertools.combinations_with_replacement((1, 2, 3, 4), 3):
        for cpus in (0.5, 0.75, 1, 1.5, 2):
            try:
                workers = plan_workers([{"CPU": size} for size in sizes], cpus=cpus)
            except UserError:
                assert all(size - cpus < READER_CPUS for size in sizes)
                continue
            for spread in itertools.product(range(9), repeat=3):
                free = [size - cpus * on_it for size, on_it in zip(sizes, spread, strict=True)]
                if sum(spread) == workers.count and min(free) >= 0:
                    assert max(free) >= READER_CPUS, (sizes, cpus, spread)


def test_plan_workers__says_that_fewer_fit(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert plan_workers([{"CPU": 4}], 8, cpus=1) == Workers(3, 1, 0)
        assert plan_workers([{"CPU": 4, "GPU": 1}], 4, gpus=0.5) == Workers(2, 0.875, 0.5)
    assert "only 3 of 8 actors with 1 CPUs and 0 GPUs each fit" in caplog.text
    assert "only 2 of 4 actors with 0.875 CPUs and 0.5 GPUs each fit" in caplog.text


def test_plan_workers__refuses_what_cannot_be() -> None:
    with pytest.raises(
        UserError, match=r"^cpus_per_actor: expected at most .*, got 4 on a cluster of 4 CPUs and 0 GPUs; lower it$"
    ):
        plan_workers([{"CPU": 4}], cpus=4)
    with pytest.raises(
        UserError,
        match=r"^Ray cluster: expected a node with a CPU and 1 GPUs per actor, got 4 CPUs and 0 GPUs; lower ",
    ):
        plan_workers([{"CPU": 4}], gpus=1)
