"""What trials reserve on clusters of several shapes."""

from __future__ import annotations

import logging

import pytest

from mask2former_dinov3.errors import ConfigError
from mask2former_dinov3.tuning.trial_places import reserve_for_trials

CPUS = [{"CPU": 8.0}, {"CPU": 4.0}]
GPUS = [{"CPU": 32.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 2.0}, {"CPU": 2.0}]


@pytest.mark.parametrize(
    ("nodes", "options", "expected"),
    [
        (CPUS, {}, (4, 0)),  # one on each node
        (CPUS, {"at_once": 4}, (2, 0)),
        (CPUS, {"at_once": 16}, (0.5, 0)),
        (CPUS, {"cpus": 3}, (3, 0)),
        (GPUS, {}, (4, 1)),
        (GPUS, {"gpus": 0.5}, (2, 0.5)),
        (GPUS, {"gpus": 0}, (2, 0)),
        (GPUS, {"cpus": 1, "gpus": 1}, (1, 1)),
    ],
)
def test_reserve_for_trials__shares_the_nodes(
    nodes: list[dict[str, float]], options: dict[str, float], expected: tuple[float, float]
) -> None:
    found = reserve_for_trials(nodes, **options)  # type: ignore[arg-type]
    assert (found["cpu"], found["gpu"]) == expected


def test_reserve_for_trials__says_what_does_not_fit(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match=r"^Ray cluster: expected a node with a CPU and 1 GPUs per trial, got 8 CPUs"):
        reserve_for_trials(CPUS, gpus=1)
    with pytest.raises(ConfigError, match=r"^cpus_per_trial: expected at most a node's CPUs, got 9 on a cluster of 8"):
        reserve_for_trials(CPUS, cpus=9)
    with caplog.at_level(logging.WARNING):
        reserve_for_trials(CPUS, at_once=4, cpus=4)
    assert "only 3 of 4 trials with 4 CPUs and 0 GPUs each fit on the cluster" in caplog.text
