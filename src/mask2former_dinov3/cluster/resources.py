"""How many workers a Ray cluster holds beside the tasks that read images for them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import UserError

logger = logging.getLogger(__name__)
READER_CPUS = 0.5
"""What a task that reads images reserves. Reservations are Ray's bookkeeping of what may run at once, no limits."""


@dataclass(frozen=True)
class Workers:
    """`count` processes with a model each; what each reserves of its node."""

    count: int
    cpus: float
    gpus: float


def plan_workers(
    nodes: Sequence[Mapping[str, float]],
    count: int | None = None,
    cpus: float | None = None,
    gpus: float | None = None,
) -> Workers:
    """Workers that fit on `nodes` (Ray's resources of each) wherever Ray puts them, with CPUs left to read images.

    Readers that find no CPU would wait for workers that wait for images, for ever. Where every node counts only as many
    workers as leave READER_CPUS free there, it takes more workers than are counted to fill all nodes; so some node has
    room for a reader, however Ray spreads the workers.

    count: None for one worker a GPU, or one a node without GPUs. cpus of each: None for a share of the smallest node;
    one at most where there are GPUs. gpus of each, 0 to 1: None for 1 where there are GPUs. Fewer workers than asked
    for are said in a warning. Raises UserError when not even one fits.
    """
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
    hosts = [node for node in nodes if node.get("CPU", 0) > 0 and node.get("GPU", 0) >= gpus]
    cluster = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
    if not hosts:
        raise UserError(f"gpus_per_actor {gpus:g}: no node of the cluster has that and a CPU ({cluster})")
    if cpus is None:
        on_each = math.ceil(count / len(hosts)) if count else 1
        if gpus and not count:
            on_each = int(max(host["GPU"] for host in hosts) / gpus)
        share = max((min(host["CPU"] for host in hosts) - READER_CPUS) / on_each, READER_CPUS)
        cpus = min(share, 1.0) if gpus or share < 1 else float(math.floor(share))
    most = sum(_room(host, cpus, gpus) for host in hosts)
    if most == 0:
        raise UserError(
            f"no worker of {cpus:g} CPUs and {gpus:g} GPUs fits on the cluster ({cluster}) beside a task that reads "
            f"images ({READER_CPUS:g} CPUs); lower cpus_per_actor"
        )
    if count is not None and count > most:
        logger.warning(
            "%d actors of %g CPUs and %g GPUs were asked for; %d fit beside the tasks that read images (%s)",
            count,
            cpus,
            gpus,
            most,
            cluster,
        )
    return Workers(min(count or most, most), cpus, gpus)


def _room(host: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Workers for one node, a reader beside them."""
    room = int((host["CPU"] - READER_CPUS) / cpus + 1e-9)
    return max(min(room, int(host["GPU"] / gpus + 1e-9)) if gpus else room, 0)
