"""One Ray cluster of this machine for all tests that need one: each of its processes imports for seconds."""

from __future__ import annotations

from typing import Any

import pytest
from ray.cluster_utils import Cluster

from support.paths import SOURCE

STORE = 200_000_000  # bytes of Ray's object store on each node
ENVIRONMENT = {
    "PYTHONPATH": str(SOURCE),  # workers find the package
    "OMP_NUM_THREADS": "1",  # torch computes as in the tests, so that numbers are the same
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray's workers would give way to every other process of the machine, and wait for the tests that run beside them.
    "RAY_worker_niceness": "0",
}
HEAD: dict[str, Any] = {
    "object_store_memory": STORE,
    "include_dashboard": False,
    "_system_config": {"health_check_period_ms": 500},  # five failures in a row are the loss of a node
}

_running: list[Cluster] = []


def running_cluster() -> Cluster:
    """The cluster of two nodes of one CPU each; it is started for the first that asks."""
    if not _running:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in ENVIRONMENT.items():
                patch.setenv(name, value)
            cluster = Cluster(initialize_head=True, head_node_args={**HEAD, "num_cpus": 1})
            cluster.add_node(num_cpus=1, object_store_memory=STORE)
        _running.append(cluster)
    return _running[0]


def end_cluster() -> None:
    """Stop the cluster if it runs: nobody asks for it soon. Otherwise Ray stops it with this process."""
    while _running:
        _running.pop().shutdown()
