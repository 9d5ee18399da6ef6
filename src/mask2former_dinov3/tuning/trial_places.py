"""What a trial reserves on a Ray cluster."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

from ..errors import ConfigError, OptionError, mismatch

logger = logging.getLogger(__name__)


def reserve_for_trials(
    nodes: Sequence[Mapping[str, float]],
    at_once: int | None = None,
    cpus: float | None = None,
    gpus: float | None = None,
) -> dict[str, float]:
    """CPUs and GPUs of a trial, as `{"cpu": …, "gpu": …}`. nodes: Ray's resources of each.

    at_once: trials at the same time, None for as many as fit. gpus: None for 1 if there are GPUs, otherwise 0. cpus:
    None for an equal share of the smallest node. A warning is logged if fewer than `at_once` fit. Raises ConfigError if
    not even one fits.
    """
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
    cluster = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
    hosts = [node for node in nodes if node.get("CPU", 0) > 0 and node.get("GPU", 0) >= gpus]
    if not hosts:
        expected = f"a node with a CPU and {gpus:g} GPUs per trial"
        raise ConfigError(f"Ray cluster: {mismatch(expected, cluster, 'lower --gpus-per-trial')}")
    if cpus is None:
        on_each = max(host["GPU"] for host in hosts) // gpus if gpus else math.ceil((at_once or 1) / len(hosts))
        share = min(host["CPU"] for host in hosts) / max(on_each, 1)
        cpus = float(math.floor(share)) if share >= 1 else share
    most = sum(_fit_on(host, cpus, gpus) for host in hosts)
    if most == 0:
        raise OptionError("cpus_per_trial", "at most a node's CPUs", f"{cpus:g} on a cluster of {cluster}", "lower it")
    if at_once is not None and at_once > most:
        each = f"{cpus:g} CPUs and {gpus:g} GPUs"
        logger.warning(
            "only %d of %d trials with %s each fit on the cluster (%s) at once", most, at_once, each, cluster
        )
    return {"cpu": cpus, "gpu": gpus}


def _fit_on(host: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Trials that fit on one node at once."""
    room = int(host["CPU"] / cpus + 1e-9)
    return min(room, int(host["GPU"] / gpus + 1e-9)) if gpus else room
