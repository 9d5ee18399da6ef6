"""How many actors fit on a Ray cluster beside the tasks that read images for them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import ConfigError, OptionError, mismatch

logger = logging.getLogger(__name__)
READER_CPUS = 0.5
"""CPUs that a reading task reserves. Ray uses reservations to decide what may run at once; it does not enforce them."""


@dataclass(frozen=True)
class Workers:
    """count: number of actors, each with a model. cpus, gpus: what each reserves on its node."""

    count: int
    cpus: float
    gpus: float


def plan_workers(
    nodes: Sequence[Mapping[str, float]],
    count: int | None = None,
    cpus: float | None = None,
    gpus: float | None = None,
) -> Workers:
    """Actors that fit on `nodes` (Ray's resources of each) wherever Ray places them, with CPUs left to read images.

    Reading tasks without a CPU would wait for actors that wait for images: a deadlock. So every node counts only as
    many actors as leave READER_CPUS free on it. To fill all nodes takes more actors than the sum of these counts;
    therefore one node always has room for a reading task, however Ray spreads the actors.

    count: None for one actor per GPU, or one per node without GPUs. cpus of each: None for an equal share of the
    smallest node, at most 1 if there are GPUs. gpus of each, 0 to 1: None for 1 if there are GPUs. A warning is logged
    if fewer than `count` fit. Raises ConfigError if not even one fits.
    """
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
    hosts = [node for node in nodes if node.get("CPU", 0) > 0 and node.get("GPU", 0) >= gpus]
    cluster = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
    if not hosts:
        expected = f"a node with a CPU and {gpus:g} GPUs per actor"
        raise ConfigError(f"Ray cluster: {mismatch(expected, cluster, 'lower gpus_per_actor, or use device cpu')}")
    if cpus is None:
        cpus = _share_cpus(hosts, count, gpus)
    most = sum(_count_on(host, cpus, gpus) for host in hosts)
    if most == 0:
        expected = f"at most a node's CPUs minus {READER_CPUS:g} for a reading task"
        raise OptionError("cpus_per_actor", expected, f"{cpus:g} on a cluster of {cluster}", "lower it")
    if count is not None and count > most:
        logger.warning(
            "only %d of %d actors with %g CPUs and %g GPUs each fit on the cluster (%s) beside the reading tasks",
            most,
            count,
            cpus,
            gpus,
            cluster,
        )
    return Workers(min(count or most, most), cpus, gpus)


def _share_cpus(hosts: Sequence[Mapping[str, float]], count: int | None, gpus: float) -> float:
    """CPUs per actor if the user names none."""
    on_each = math.ceil(count / len(hosts)) if count else 1
    if gpus and not count:
        on_each = int(max(host["GPU"] for host in hosts) / gpus)
    share = max((min(host["CPU"] for host in hosts) - READER_CPUS) / on_each, READER_CPUS)
    return min(share, 1.0) if gpus or share < 1 else float(math.floor(share))


def _count_on(host: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Actors that fit on one node beside a reading task."""
    room = int((host["CPU"] - READER_CPUS) / cpus + 1e-9)
    return max(min(room, int(host["GPU"] / gpus + 1e-9)) if gpus else room, 0)
