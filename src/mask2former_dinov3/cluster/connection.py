"""The connection to a Ray cluster: an existing one, or one that is started for a command."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import OptionError


@contextmanager
def connect_ray(address: str | None) -> Iterator[None]:
    """Initialise Ray, and shut it down afterwards unless it was initialised before.

    address: see `batch_predict`. Raises OptionError for the address of a client, which cannot run jobs.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would send usage statistics to its makers
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the future default; without it Ray warns
    import ray

    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith("ray://"):
        expected = 'the address of a cluster that this machine is a node of, or "auto"'
        raise OptionError("ray_address", expected, address, "run the command on the cluster")
    ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def live_nodes() -> dict[str, dict[str, float]]:
    """Resources of the nodes that are alive, by node id."""
    import ray

    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
