"""A model on more images than one machine wants to do: a Ray Data job whose results are finished shard by shard.

The list of images is cut into shards and those into batches. Tasks read batches, an actor for each GPU (or each node)
finds instances, and this process alone gathers the batches of a shard and writes it. A worker that dies therefore loses
only batches that nobody has written; they are done again. What is done twice is written once.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import UserError
from ..inference.predictor import Predictor
from ..inference.tiles.grid import check_tiles
from .gathering import Batches, BatchSummary, Gathering
from .image_list import list_images
from .reading import Row
from .resources import Workers, plan_workers
from .shards import ShardFolder
from .workers import OUT_OF_MEMORY, ModelFiles, Pass, Search

logger = logging.getLogger(__name__)
ATTEMPTS = 3
MOST_TASKS = 20_000
"""Reading tasks of a job: what is kept for each of them stays small for ten million images, too."""
READ_AT_ONCE = 16
"""Images that a task reads, at least."""
WATCH_SECONDS = 10
"""So long without a result, and the nodes are counted."""


def batch_predict(
    model: str | Path,
    inputs: Sequence[str],
    output: str,
    *,
    column: str | None = None,
    threshold: float = 0.5,
    max_detections: int = 100,
    tile: int | None = None,
    overlap: float = 0.2,
    batch_size: int = 1,
    device: str | None = None,
    ray_address: str | None = None,
    actors: int | None = None,
    cpus_per_actor: float | None = None,
    gpus_per_actor: float | None = None,
    shard_size: int = 1000,
    retry_failed: bool = False,
    progress: bool = False,
) -> BatchSummary:
    """Find instances in all images of `inputs` (see `list_images`) and leave them in `output` (see `batch_shards`).

    Images that are in `output` already are not done again; with retry_failed those that failed are. The results are
    those of `predict`. ray_address: of a cluster ("auto": the one of this machine); None for RAY_ADDRESS or, without
    it, for one that lives as long as the call; where Ray is initialised already, that one is used. actors,
    cpus_per_actor, gpus_per_actor: see `plan_workers`. device: None for GPUs if the cluster has some, "cpu" or "cuda".
    tile, overlap: as `Predictor` takes them; a batch is then one image. Raises UserError for what the user can mend,
    KeyboardInterrupt with the finished shards kept.
    """
    counts = {"batch_size": batch_size, "shard_size": shard_size, "actors": actors}
    _check(threshold, device, cpus_per_actor, gpus_per_actor, **counts)
    if tile is not None:
        check_tiles(tile, overlap)
    predictor = Predictor.from_pretrained(model, "cpu")  # a model that cannot be used is known before anything starts
    files = ModelFiles.read(_path_of(model))
    search = Search(threshold, max_detections, tile, overlap)
    folder = ShardFolder(output, _settings(model, files, search, predictor))
    if retry_failed:
        folder.forget_failures()
    left, summary = _what_is_left(list_images(inputs, column), folder)
    if not len(left):
        return summary
    batches = Batches(left, shard_size, 1 if tile else batch_size)
    gpus = {"cpu": 0.0, "cuda": gpus_per_actor or 1.0}.get(device or "", gpus_per_actor)
    bar = tqdm(total=len(left), desc="predict", unit="image", disable=not progress)
    with bar, _cluster(ray_address):
        import ray

        size = predictor.processor.size
        job = Job(batches, ray.put(files), (size["height"], size["width"]), search, batch_size)
        del files, predictor
        gathering = Gathering(batches, folder, summary, bar)
        try:
            _find_all(job, gathering, lambda: plan_workers(list(_nodes().values()), actors, cpus_per_actor, gpus))
        except KeyboardInterrupt:
            done = summary.images + summary.failed
            raise KeyboardInterrupt(
                f"stopped after {done} images in {output}; the same command does the rest"
            ) from None
    return summary


@dataclass(frozen=True)
class Job:
    """Batches and what is needed to find instances in them. model: a reference in Ray's object store to `ModelFiles`.

    batch_size: images, or tiles of one, at once.
    """

    batches: Batches
    model: Any
    canvas: tuple[int, int]
    search: Search
    batch_size: int


def _find_all(job: Job, gathering: Gathering, plan: Callable[[], Workers]) -> None:
    """Pass over what is missing until nothing is; a batch that is lost ATTEMPTS times has failed.

    Raises UserError when a model runs out of memory or nothing gets done at all, RuntimeError with the worker's
    traceback when a model fails.
    """
    import ray

    attempt = 0  # passes that came to their end
    lost = 0  # passes in a row that did not, and did nothing: with a node that dies Ray may lose the next one, too
    while len(numbers := gathering.missing()) and attempt < ATTEMPTS:
        try:
            for row in _results(job, numbers, plan(), careful=attempt > 0):
                if row["trouble"] == OUT_OF_MEMORY:
                    raise UserError(f"a worker is {OUT_OF_MEMORY}; lower the batch size")
                if row["trouble"]:
                    raise RuntimeError(f"the model failed on a worker\n{row['trouble']}")
                gathering.add(row["number"], pickle.loads(row["found"]))
        except ray.exceptions.RayError as error:
            lost = lost + 1 if len(gathering.missing()) == len(numbers) else 0
            if lost == ATTEMPTS:
                raise UserError(f"the workers failed: {str(error).strip().splitlines()[-1]}") from error
            logger.warning("Ray lost its work; going on with what is missing")
            continue
        except NodeLostError as error:
            logger.warning("%s; going on with the others", error)
            continue
        attempt, lost = attempt + 1, 0
        missing = len(gathering.missing())
        if missing == len(numbers) and attempt == 1:
            raise UserError("every worker died, most likely out of memory; lower the batch size, or use fewer actors")
        if missing and attempt < ATTEMPTS:
            logger.warning("%d batches were lost with a worker that died; they are done again", missing)
    gathering.give_up(f"the worker that had it died, {ATTEMPTS} times; most likely it ran out of memory")


class NodeLostError(Exception):
    """A node that was planned with is gone."""


def _results(job: Job, numbers: NDArray[np.int64], workers: Workers, *, careful: bool) -> Iterator[Row]:
    """One pass over batches. Raises NodeLostError when nothing comes and a node is gone.

    Ray starts the actors of a lost node again on another, where they may take the last CPU from the tasks that read
    images, and both wait for ever; and an actor that died may outlive its pass. So the pass is a process of its own:
    when that is killed, all that it started ends with it.
    """
    import pyarrow as pa
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    tasks = len(numbers) if careful else min(-(-len(numbers) * job.batches.batch_size // READ_AT_ONCE), MOST_TASKS)
    # Arrow tables, one at a time: as Python objects all names would be many times as large.
    parts = [
        ray.put(pa.table({"number": part, "images": [job.batches.images_of(number) for number in part.tolist()]}))
        for part in np.array_split(numbers, min(tasks, len(numbers)))
    ]
    planned = _nodes().keys()
    # The node that this process is on does not die before it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    run = ray.remote(num_cpus=0, scheduling_strategy=here)(Pass).remote()
    rows = run.results.options(num_returns="streaming").remote(
        parts, [job.model], job.canvas, job.search, workers, batch_size=job.batch_size, careful=careful
    )
    try:
        while True:
            ready, _ = ray.wait([rows], timeout=WATCH_SECONDS)
            if ready:
                yield ray.get(next(rows))
            elif lost := planned - _nodes().keys():
                raise NodeLostError(f"{len(lost)} of {len(planned)} nodes of the cluster are gone")
    except StopIteration:
        return
    finally:
        ray.kill(run)


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """Ray, initialised; it is shut down after use unless it was there before."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell others what it runs
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default, else it warns
    import ray

    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith("ray://"):
        raise UserError(
            f"ray_address {address}: Ray Data needs a driver on the cluster; run it there with --ray-address auto"
        )
    ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def _nodes() -> dict[str, dict[str, float]]:
    """Resources of the nodes that are alive."""
    import ray

    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def _need_extra() -> None:
    """Raise UserError unless the packages of the extra are there."""
    try:
        import fsspec  # noqa: F401
        import pyarrow  # noqa: F401
        import ray  # noqa: F401
    except ImportError as error:
        raise UserError(f"batch-predict: needs {error.name}; pip install 'mask2former-dinov3[ray]'") from error


def _check(
    threshold: float,
    device: str | None,
    cpus_per_actor: float | None,
    gpus_per_actor: float | None,
    **counts: int | None,
) -> None:
    """Raise UserError for what could not be, and without the extra."""
    _need_extra()
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UserError(f"{name}: expected at least 1, got {value}")
    if not 0 <= threshold <= 1:
        raise UserError(f"threshold: expected a score between 0 and 1, got {threshold}")
    if device not in (None, "cpu", "cuda"):
        raise UserError(f"device: expected cpu or cuda, got {device}; Ray gives every actor a GPU of its own")
    if cpus_per_actor is not None and not 0 < cpus_per_actor < math.inf:
        raise UserError(f"cpus_per_actor: expected a number above 0, got {cpus_per_actor}")
    if gpus_per_actor is not None and not 0 <= gpus_per_actor <= 1:
        raise UserError(f"gpus_per_actor: expected 0 to 1, got {gpus_per_actor}; a model runs on one GPU")


def _path_of(model: str | Path) -> Path:
    """The folder or file of a model that has just been loaded; for a hub id its place in the cache."""
    from huggingface_hub import snapshot_download

    path = Path(model)
    return path if path.exists() else Path(snapshot_download(str(model), local_files_only=True))


def _settings(model: str | Path, files: ModelFiles, search: Search, predictor: Predictor) -> dict[str, Any]:
    """Whatever decides the results, for settings.json."""
    digest = hashlib.sha256()
    for name, data in files.files.items():
        digest.update(f"{name} {len(data)} ".encode())
        digest.update(data)
    return {
        "model_sha256": digest.hexdigest(),
        **asdict(search),
        "categories": [{"id": id_, "name": name} for id_, name in predictor.categories],
    }


def _what_is_left(images: Any, folder: ShardFolder) -> tuple[Any, BatchSummary]:
    """The images that are in no finished shard, and a summary that counts the others."""
    import pyarrow.compute as pc

    done, failed = folder.done()
    is_done, has_failed = (pc.is_in(images, value_set=some) for some in (done, failed))
    left = images.filter(pc.invert(pc.or_(is_done, has_failed)))
    earlier, failed_earlier = (pc.sum(some).as_py() or 0 for some in (is_done, has_failed))
    return left, BatchSummary(folder.output, earlier=earlier, failed_earlier=failed_earlier)
